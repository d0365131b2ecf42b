"""The gate 1.5-entmax: its weights, exact zeros and gradient, against bisection and differences."""

import numpy as np
import paddle
import pytest

from dselect_k_model.gates.entmax import Entmax15Gate, entmax15
from dselect_k_model.gates.sparsemax import sparsemax
from support import oracles
from support.rounding import assert_near

pytestmark = pytest.mark.usefixtures("float64")
# Sums of up to 64 numbers up to 4, some 400 operations rounded by 1e-16 each: 4e-12 for 1 - V. That of the root is at
# most |S| / 2 = 32 times the error of its argument, which is divided by |S|
ROUNDING = 3e-12


def weights_of(logits, dtype="float64"):
    return entmax15(paddle.to_tensor(np.asarray(logits), dtype=dtype)).numpy()


def slopes(logits, dtype="float64"):
    """d p_i / d z_j [n, n] of one row."""
    rows = []
    for i in range(len(logits)):
        z = paddle.to_tensor(np.asarray([logits]), dtype=dtype, stop_gradient=False)
        entmax15(z)[0, i].backward()
        rows.append(z.grad.numpy()[0])
    return np.stack(rows)


@pytest.mark.parametrize("expert_num", [1, 2, 7, 64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_weights_are_those_whose_threshold_makes_them_sum_to_1(expert_num, scale, rng):
    z = rng.randn(30, expert_num) * scale
    p, expected = weights_of(z), np.stack([oracles.entmax(row, 1.5) for row in z])
    assert_near(p, expected, ROUNDING)
    assert_near(p.sum(axis=1), np.ones(30), ROUNDING)
    assert ((p == 0) == (expected == 0)).all() and (p >= 0).all()
    if expert_num == 64 and scale > 1:
        assert (p == 0).mean() > 0.5, "the draw missed the case under test"


@pytest.mark.parametrize(
    "logits,weights",
    [
        ([0.3, 0.3, 0.3, 0.3], [0.25] * 4),
        ([4.0, 4.0, 0.5], [0.5, 0.5, 0]),
        ([1e30, -1e30, 0.0], [1, 0, 0]),
        ([2.0, 0.0, -7.0], [1, 0, 0]),  # the second at the edge
        ([0.4, 0.0], [0.64, 0.36]),  # halves: 0.2 and 0, which lie 0.8 and 0.6 above the threshold
    ],
)
def test_weights_of_chosen_logits(logits, weights):
    found = weights_of([logits])[0]
    assert_near(found, weights, ROUNDING)
    assert ((found == 0) == (np.asarray(weights) == 0)).all()


@pytest.mark.parametrize("dtype,tolerance", [("float64", 1e-13), ("float32", 1e-5)])
def test_the_jacobian_is_finite_and_exactly_0_outside_of_the_support(dtype, tolerance, rng):
    """diag(s) - s s^T / sum s with s = sqrt(p), proposition 2 of the paper; also where the support is of one expert.

    Roundings of some 50 operations on numbers up to 8, through a root whose slope is at most 4.
    """
    sizes = set()
    for z in rng.randn(20, 8) * np.linspace(0.1, 9, 20)[:, None]:
        found, p = slopes(z, dtype), weights_of([z], dtype)[0]
        s = np.sqrt(oracles.entmax(np.asarray(z, dtype), 1.5)) * (p > 0)
        assert np.isfinite(found).all()
        assert_near(found, np.diag(s) - np.outer(s, s) / s.sum(), tolerance)
        assert (found[p == 0] == 0).all() and (found[:, p == 0] == 0).all()
        sizes.add(int((p > 0).sum()))
    assert 1 in sizes and max(sizes) > 4, "the draw missed the case under test"


def test_slopes_are_the_differences_of_the_weights(rng):
    for z in rng.randn(10, 5):
        differences = oracles.central_difference(lambda x: oracles.entmax(x, 1.5), z)
        assert_near(slopes(z), differences, 1e-8)  # curvature of 1, over steps of 1e-6; rounding of 1e-15 over them


def test_it_has_fewer_zeros_than_sparsemax(rng):
    z = paddle.to_tensor(rng.randn(50, 8))
    assert (sparsemax(z).numpy() == 0).sum() > (entmax15(z).numpy() == 0).sum() > 0


def test_a_logit_that_is_nan_is_not_hidden():
    assert np.isnan(weights_of([[0.1, np.nan, 0.2]])).all()


def test_the_gate_is_entmax_of_a_linear_map(rng):
    gate, x = Entmax15Gate(5, 3), rng.randn(9, 3)
    weights, state = gate(paddle.to_tensor(x))
    assert_near(weights.numpy(), [oracles.entmax(row, 1.5) for row in x @ gate.weight.numpy()], ROUNDING)
    assert gate.per_example and gate.penalties(state) == {}
    with pytest.raises(ValueError, match="needs features"):
        gate()
