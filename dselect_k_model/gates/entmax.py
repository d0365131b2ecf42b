"""The gate 1.5-entmax."""

from typing import Any, Optional

from paddle import Tensor

import net
from dselect_k_model.gates.parts import above_threshold, positive_part, total


def entmax15(logits: Tensor) -> Tensor:
    """1.5-entmax, between softmax and sparsemax (Peters, Niculae and Martins, ACL 2019, arXiv 1905.05702).

    p_i = max(z_i / 2 - tau, 0)^2 with tau = M - sqrt((1 - V) / |S|), where S is the support, M the mean of z / 2 over
    it, and V the sum over it of squared deviations from M (its exact algorithm for alpha = 1.5).

    The root's slope is infinite at 0, but the root is at least 1 / |S|: it is the mean over S of the numbers
    d_i = z_i / 2 - tau, which lie in (0, 1] and have squares that sum to 1, so that their own sum is at least 1. That
    is so for S alone, and here the root is taken of nothing else. An algorithm that takes it for each candidate of S
    has to keep the others' roots, of numbers down to below 0, out of the gradient.

    Args:
        logits: z, float32 or float64 [B, n].
    Returns:
        p, [B, n], each >= 0, with the sum 1. Those outside of S are exactly 0, and so is their slope.
    """
    half, mask = above_threshold(logits * 0.5, 2)
    size = total(mask)
    mean = total(mask * half) / size
    squares = total(mask * (half - mean) ** 2)
    tau = mean - ((1.0 - squares) / size) ** 0.5  # paddle.sqrt does not build in legacy programs
    return positive_part(half - tau) ** 2


class Entmax15Gate(net.SoftmaxGate):
    """entmax15(W x): a softmax whose small weights are exactly 0, but fewer of them than sparsemax's.

    Args:
        expert_num, feature_size, learning_rate_factor: see ``net.SoftmaxGate``, whose W it has.
    Raises:
        ValueError: an argument is out of its range.
    """

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; there is no state."""
        self.check_features(features)
        return entmax15(features @ self.weight), None
