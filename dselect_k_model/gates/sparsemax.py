"""The gate sparsemax."""

from typing import Any, Optional

from paddle import Tensor

import net
from dselect_k_model.gates.parts import above_threshold, positive_part, total


def sparsemax(logits: Tensor) -> Tensor:
    """The point of the simplex nearest to the logits (Martins and Astudillo, ICML 2016, arXiv 1602.02068).

    p_i = max(z_i - tau, 0) with tau = (sum_{j in S} z_j - 1) / |S|, where S is the support (its algorithm 1). S is
    fixed in the gradient, which so is the paper's Jacobian, diag(s) - s s^T / |S| with s_i = 1 in S and 0 elsewhere.

    Args:
        logits: z, float32 or float64 [B, n].
    Returns:
        p, [B, n], each >= 0, with the sum 1. Those outside of S are exactly 0, and so is their slope.
    """
    z, mask = above_threshold(logits, 1)
    tau = (total(mask * z) - 1.0) / total(mask)
    return positive_part(z - tau)


class SparsemaxGate(net.SoftmaxGate):
    """sparsemax(W x): a softmax whose small weights are exactly 0. Their number is each example's own.

    Args:
        expert_num, feature_size, learning_rate_factor: see ``net.SoftmaxGate``, whose W it has.
    Raises:
        ValueError: an argument is out of its range.
    """

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; there is no state."""
        self.check_features(features)
        return sparsemax(features @ self.weight), None
