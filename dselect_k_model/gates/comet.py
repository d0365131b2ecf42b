"""The gate COMET: k soft decision trees, each of which chooses an expert for each example.

Source: Ibrahim et al., *COMET: Learning Cardinality Constrained Mixture of Experts with Trees and Local Search*,
KDD 2023 (arXiv 2306.02824); its trees are those of Hazimeh et al., *The Tree Ensemble Layer*, ICML 2020
(arXiv 2002.07772). The order of the leaves, where n is no power of two, and the initial values are this project's. The
paper's local search is in local_search.py, for any gate.

Shapes: B batch, n experts, k trees.
"""

from typing import Any, Optional

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

import net

LEAST_REACHED = 1e-30  # a leaf's probability from which on it has a weight; see tree_weights


def leaf_probabilities(split_logits: Tensor, gamma: float = 1.0) -> Tensor:
    """v, the product over the splits on the way to a leaf of S(z) where it turns right, S(-z) where it turns left.

    S is the smooth-step. The tree has exactly n leaves, so there is no way that ends without an expert: its nodes are
    numbered 1 to 2n - 1 as in a heap, node i < n splits into 2i, to the left, and 2i + 1, and leaf n + e is expert e.
    The ways to two experts differ in length by 1 at most.

    A zero is exact, and then every partial derivative of that v is exactly zero as well, as long as the product has
    not underflowed.

    Args:
        split_logits: z, float32 or float64 [k, n - 1] or [B, k, n - 1] with n >= 2, of the nodes 1 to n - 1.
        gamma: width of the smooth-step's band, > 0.
    Returns:
        v, [k, n] or [B, k, n], each >= 0. Sums to 1 over the experts, but for rounding.
    """
    *lead, top_k, split_num = split_logits.shape
    rows, expert_num = [-1, top_k] if lead else [top_k], split_num + 1
    z = paddle.unsqueeze(split_logits, -1)
    turns = net.smooth_step(paddle.concat([-z, z], axis=-1), gamma)  # [..., k, n - 1, 2]
    reached, first = turns[..., 0, :], 2  # the probabilities of a level's nodes, and the number of the first of them
    while first < expert_num:
        splits = min(first, expert_num - first)  # of the level; its other nodes are leaves
        turned = paddle.unsqueeze(reached[..., :splits], -1) * turns[..., first - 1 : first - 1 + splits, :]
        children = paddle.reshape(turned, [*rows, 2 * splits])
        reached = children if splits == first else paddle.concat([reached[..., splits:], children], axis=-1)
        first *= 2
    return reached


def tree_weights(leaves: Tensor, leaf_logits: Tensor) -> Tensor:
    """q_i = sum_j exp(a_ij) v_ij / sum_j,l exp(a_lj) v_lj: a softmax over the leaves that the trees reach.

    The greatest logit is that of a leaf with v > 1e-30, so the denominator is at least 1e-30 / (k n), whatever the
    logits. Leaves with a smaller v count as not reached; only logits 60 and more above all others could tell.

    Args:
        leaves: v, [k, n] or [B, k, n]; each tree has a leaf with v > 1e-30.
        leaf_logits: a, shaped like v.
    Returns:
        q, [n] or [B, n]: 0 where no tree reaches the expert, and there with a slope of exactly 0. Sums to 1.
    """
    *lead, top_k, expert_num = leaves.shape
    rows = [-1] * len(lead)
    reached = paddle.cast(leaves > LEAST_REACHED, leaves.dtype)
    masked = leaf_logits + (reached - 1.0) * 1e30
    shares = F.softmax(paddle.reshape(masked, [*rows, top_k * expert_num]), axis=-1)
    # once more by ``reached``: on a CPU, Paddle's softmax gives no share below exp(-64)
    weighted = paddle.reshape(shares, [*rows, top_k, expert_num]) * (leaves * reached)
    of_experts = paddle.mean(weighted, axis=-2)  # sums do not build everywhere: see net.py
    return of_experts / (paddle.mean(of_experts, axis=-1, keepdim=True) * float(expert_num))


class CometGate(net.Gate):
    """The gate of COMET: weights of n experts, at most k of them > 0 once each tree has settled on a leaf.

    The splits' logits z [k, n - 1] and the leaves' logits a [k, n] are linear in each example's features, z = W x + b,
    a = A x + c, or free parameters, the same for every example (``feature_size`` 0). Initial values, and those of W, b,
    A, c, as for DSelect-k: z ~ U(-gamma/100, gamma/100), a ~ U(-0.05, 0.05).
    Its penalty is ``entropy``, that of the trees' leaf probabilities (``net.selector_entropy``).

    Args:
        expert_num: n >= 1.
        top_k: k, the number of trees, from 1 to n.
        gamma: width of the smooth-step's band, > 0.
        feature_size: number of routing features; 0 for free parameters.
        learning_rate_factor: the gate's learning rate over the optimizer's, > 0.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, expert_num: int, top_k: int, gamma: float = 1.0, feature_size: int = 0, learning_rate_factor: float = 1.0
    ) -> None:
        super().__init__(expert_num, feature_size)
        net.check_whole("top_k", top_k, 1, expert_num)
        net.check_positive("gamma", gamma)
        net.check_positive("learning_rate_factor", learning_rate_factor)
        self.top_k, self.gamma = top_k, gamma
        parts = [("leaf", top_k * expert_num, 0.05)]
        if expert_num > 1:  # a single expert is reached without a split
            parts.insert(0, ("split", top_k * (expert_num - 1), gamma / 100))
        for name, size, bound in parts:
            uniform = nn.initializer.Uniform(-bound, bound)
            if feature_size:
                self.add_weight(f"{name}_weight", [feature_size, size], uniform, learning_rate_factor)
            self.add_weight(f"{name}_logits", [size], uniform, learning_rate_factor)

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; the state is the leaf probabilities v, [k, n] or [B, k, n]."""
        if self.feature_size:
            self.check_features(features)
        leaf_logits = self._logits("leaf", features, self.expert_num)
        if self.expert_num == 1:
            leaves = paddle.ones_like(leaf_logits)
        else:
            leaves = leaf_probabilities(self._logits("split", features, self.expert_num - 1), self.gamma)
        return tree_weights(leaves, leaf_logits), leaves

    def _logits(self, name, features, size):
        """[k, size], or [B, k, size]."""
        logits = getattr(self, f"{name}_logits")
        if not self.feature_size:
            return paddle.reshape(logits, [self.top_k, size])
        return paddle.reshape(F.linear(features, getattr(self, f"{name}_weight"), logits), [-1, self.top_k, size])

    def penalties(self, state: Any) -> dict[str, Tensor]:
        return {"entropy": net.selector_entropy(state)}

    def extra_repr(self):
        features = f"feature_size={self.feature_size}" if self.feature_size else "the same for every example"
        return f"expert_num={self.expert_num}, top_k={self.top_k}, gamma={self.gamma}, {features}"
