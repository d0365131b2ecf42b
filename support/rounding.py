"""How far apart two computations of the same numbers may lie: the tests' tolerances, and what each rests on.

Another way of running, processor, library or number of threads adds up in another order. A sum of N products then
differs by at most N u S: S is the sum of their absolute values, and u the rounding of one operation, 2^-53 (1.1e-16)
in float64 and 2^-24 (6e-8) in float32. On the way to a loss or to a gradient the tests' networks add up some 10,000
products at most, those of a convolution's gradient: 8 examples of 32 x 32 places each.

That is of little help in float32, and of none behind Adam. It divides a gradient by the root of a moment, that is by
its own size: where a gradient is 0 but for rounding, its noise d becomes a step of rate x d / (d + eps), up to rate x
d / eps with eps = 1e-8. Float32 has d = 1e-9 and more: such a step may be a tenth of the rate, or all of it, in any
direction, and a tolerance below it is luck. So where two runs are to be equal, both are in float64 (``usefixtures``
of ``float64``). ReLU and max-pooling too go another way only where two numbers are as near as their rounding: among
1e5 numbers of order 1 that has a chance of 1e-2 in float32, of 1e-11 in float64.
"""

import numpy as np

# float64: losses, outputs, gradients, and parameters behind SGD. N = 10,000, and S = 100 for safety: 1.1e-10
SUMS = 2e-10

# float64, behind Adam with a rate up to 0.01 over some 20 steps. Errors of sums are of either sign and grow as the root
# of N, so the noise d of a gradient that should be 0 is u sqrt(N) S = 1.1e-16 x 100 x 0.1 = 1e-15, or for S = 0.1
# as here. A step of its noise is rate x d / eps = 1e-9 then, and 20 of them, of either sign, 4.5e-9. (Seen: 1e-12.)
ADAM = 1e-8

# float32: gradients and losses of a network without max-pooling. N = 10,000 and S = 1: 6e-4
GRADIENTS_32 = 1e-3

# float32: outputs and losses of evaluation, which jump nowhere: no gradient. The layers of an expert and a tower add up
# 25, 250, 720, 50, 50 and 50 products with S up to 10 each: u sqrt(N) S over the 6 layers is 4e-5
OUTPUTS_32 = 1e-4


def assert_close(ours, theirs, tolerance, names=None):
    """Arrays of two dicts, name -> array, of all names or of ``names``."""
    assert ours.keys() == theirs.keys()
    for name in ours if names is None else names:
        assert ours[name].dtype == theirs[name].dtype, name
        assert_near(ours[name], theirs[name], tolerance, name)


def assert_near(ours, theirs, tolerance, name=""):
    """Arrays, or lists of them, element by element; infinities and nan in the same places."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)
