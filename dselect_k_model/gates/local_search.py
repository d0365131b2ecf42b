"""Permutation-based local search around any gate: training tries other experts in the places of those it chose.

A sparse gate soon settles, and then no gradient leads it to another expert. So for the first steps of training its
weights q are multiplied by a permutation of the experts that is trained too: soft at first, so that every expert has a
weight and a gradient, and harder step by step.

Source: the local search of Ibrahim et al., *COMET: Learning Cardinality Constrained Mixture of Experts with Trees and
Local Search*, KDD 2023 (arXiv 2306.02824). That a permutation is learned during the first steps and fixed from then on
is theirs, as far as this project knows it: from the abstract, not from the paper's text. The rest is ours: soft
permutations by Sinkhorn's operator as in Mena et al., *Learning Latent Permutations with Gumbel-Sinkhorn Networks*,
ICLR 2018 (arXiv 1802.08665), with normal noise in the place of Gumbel's; the temperatures, the noise and the number of
rounds; the greedy choice of the hard permutation.

Shapes: B batch, n experts.
"""

from typing import Any, Optional

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

import net

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.1
NOISE = 0.5  # standard deviation of what is added to scores / temperature
ROUNDS = 20  # of Sinkhorn's operator
LEAST_SHARE = 1e-20  # of a softmax; see soft_permutation


def soft_permutation(logits: Tensor) -> Tensor:
    """Sinkhorn's operator: exp(logits), its columns and rows divided by their sums in turn, ``ROUNDS`` times.

    Every entry is > 0, for the softmax that it begins with has no share below 1e-20 here: a column of zeros could not
    be divided by its sum.

    Args:
        logits: float32 or float64, [..., n, n].
    Returns:
        P, shaped like ``logits``. Its rows sum to 1 but for rounding, its columns the more nearly the less the logits
        differ.
    """
    size = float(logits.shape[-1])
    p = paddle.clip(F.softmax(logits, axis=-1), min=LEAST_SHARE)
    for _ in range(ROUNDS):
        for axis in (-2, -1):  # sums do not build everywhere: see net.py
            p = p / (paddle.mean(p, axis=axis, keepdim=True) * size)
    return p


def greedy_permutation(scores: Tensor) -> Tensor:
    """The place of the greatest score, then that of the greatest one in other rows and columns, and so on.

    It takes n rounds over n^2 scores.

    Args:
        scores: float32 or float64 [n, n], of size 1e20 at most.
    Returns:
        [n, n], exactly one 1 in each row and column, else 0; without gradient.
    """
    size = scores.shape[-1]
    free, chosen = paddle.ones_like(scores), paddle.zeros_like(scores)
    for _ in range(size):
        _, place = paddle.topk(paddle.reshape(scores + (free - 1.0) * 1e30, [1, size * size]), 1)
        one = paddle.reshape(paddle.cast(F.one_hot(place, size * size), scores.dtype), [size, size])
        for axis in (0, 1):
            free = free * (1.0 - paddle.max(one, axis=axis, keepdim=True))
        chosen = chosen + one
    chosen.stop_gradient = True
    return chosen


class LocalSearch(net.Gate):
    """A gate whose weights q are multiplied by a permutation that training searches: q' = q P.

    In the first ``steps`` training steps P is ``soft_permutation(scores / T + 0.5 noise)``, with trained ``scores``,
    standard normal noise, and a temperature T that falls from 1 to 0.1 in equal ratios. Each of these steps computes
    all experts, and stores in ``permutation`` the greedy choice from P without noise: greedy in P, not in the scores,
    because P weighs all rows and columns against each other, as the network in training has them. After the search, and
    in evaluation and export at any time, P is ``permutation``, and zeros of q are exact zeros of q'.

    ``permutation``, at first the identity, and ``step``, the number of forward passes in training mode, are parameters
    that no gradient reaches, because a static program refuses buffers: they are saved with the weights, so that a
    resumed search goes on where it was. The noise is from Paddle's generator. Of several processes each draws noise of
    its own, and the gradient of the scores is the mean over it; ``permutation`` depends on the scores alone, which are
    the same on all.

    After the search a step costs a branch, a product of q and P, and the drawing of n^2 numbers that nobody uses. The
    legacy programs of Paddle 3.x hold no branch: there, every step computes soft and greedy permutation, to no effect.

    Args:
        gate: the gate to search around, over n >= 2 experts: any ``net.Gate``. Its penalties are those of q.
        steps: number of training steps of the search, >= 1.
        learning_rate_factor: the scores' learning rate over the optimizer's, > 0.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, gate: Any, steps: int, learning_rate_factor: float = 1.0) -> None:
        net.check_whole("expert_num", gate.expert_num, 2)
        net.check_whole("steps", steps, 1)
        net.check_positive("learning_rate_factor", learning_rate_factor)
        super().__init__(gate.expert_num, getattr(gate, "feature_size", 0))
        shape, dtype = [self.expert_num, self.expert_num], paddle.get_default_dtype()
        self.gate, self.steps, self.per_example = gate, steps, gate.per_example
        self.temperatures = np.geomspace(FIRST_TEMPERATURE, LAST_TEMPERATURE, steps).astype(dtype)
        self.add_weight("scores", shape, nn.initializer.Normal(std=0.01), learning_rate_factor)
        identity = nn.initializer.Assign(np.eye(self.expert_num, dtype=dtype))
        self.permutation = self.create_parameter(shape, default_initializer=identity)
        self.step = self.create_parameter([1], dtype="int64", default_initializer=nn.initializer.Constant(0))
        self.permutation.stop_gradient = self.step.stop_gradient = True

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; the state is that of the gate within."""
        weights, state = self.gate(features)
        permutation = self._of_training() if self.training else self.permutation
        rows = paddle.reshape(weights, [-1, self.expert_num]) @ permutation
        return paddle.reshape(rows, [-1] * (len(weights.shape) - 1) + [self.expert_num]), state

    def _of_training(self):
        """P of a training step, [n, n]; moves on ``permutation`` and ``step``."""
        noise = paddle.randn(self.scores.shape, self.scores.dtype)  # not in a branch: gates would draw in any order
        searches = self.step < self.steps
        if net.can_branch():
            used, kept = paddle.static.nn.cond(searches, lambda: self._searched(noise), self._found)
        else:
            share = paddle.cast(searches, self.scores.dtype)
            used, kept = (share * a + (1.0 - share) * b for a, b in zip(self._searched(noise), self._found()))
        kept.stop_gradient = True
        paddle.assign(kept, self.permutation)
        paddle.increment(self.step)
        return used

    def _searched(self, noise):
        """The soft permutation with noise, and the hard one without."""
        temperature = paddle.gather(net.constant(self.temperatures), paddle.clip(self.step, 0, self.steps - 1))
        logits = self.scores / temperature
        soft = soft_permutation(paddle.stack([logits + NOISE * noise, logits]))
        without_noise = soft[1]
        without_noise.stop_gradient = True
        return soft[0], greedy_permutation(without_noise)

    def _found(self):
        return self.permutation * 1.0, self.permutation * 1.0  # copies: the parameter itself is written to

    def penalties(self, state: Any) -> dict[str, Tensor]:
        return self.gate.penalties(state)

    def extra_repr(self):
        return f"expert_num={self.expert_num}, steps={self.steps}"
