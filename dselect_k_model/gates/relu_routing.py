"""The gate of ReMoE: ReLU in the place of a softmax, and an L1 penalty that leaves k weights above 0 on average."""

from typing import Any, Optional

import paddle
from paddle import Tensor, nn

import net
from dselect_k_model.config_key import STEP, Key
from dselect_k_model.gates.parts import positive_part

# The least lambda, far below what a loss of order 1 notices in float32: from 0 nothing would raise it again.
LEAST = 1e-12
# Shares nearer than this are equal: else their rounding would move lambda, and not alike on several processes. Other
# shares of fewer than 1e5 weights are further apart.
SAME = 1e-5

KEYS = {
    "l1_weight": Key(float, 1e-8, "The weight of the L1 penalty at the first step.", low=LEAST, high=1e3, decides=STEP),
    "l1_limit": Key(
        float,
        0.1,
        "What that weight never exceeds. The gate answers it only after some steps, and a high one may by then have "
        "cost it all its experts for good.",
        low=LEAST,
        high=1e3,
        decides=STEP,
    ),
    "l1_rate": Key(
        float,
        1.2,
        "What each step multiplies that weight by while examples use more than top_k experts on average, and divides "
        "it by while they use fewer; 1: the weight stays.",
        low=1,
        high=10,
        decides=STEP,
    ),
    "balanced": Key(
        bool, True, "Whether the penalty on an expert is multiplied by its share of the examples.", decides=STEP
    ),
}


class ReluRoutingGate(net.SoftmaxGate):
    """ReLU(W x): weights of any size, any number of them exactly 0 (Wang et al., *ReMoE*, ICLR 2025, arXiv 2412.14711).

    They do not sum to 1, and all may be 0: the mixture is 0 then. With R for the weights, the penalty ``l1`` is
    lambda sum_i f_i R_i, mean over the examples. f_i is 1 or, where ``balanced``, n / k times the share of examples
    with R_i > 0, as a constant. After each training step lambda is multiplied by ``l1_rate``^sign((1 - k / n) - S), S
    being the share of weights that are 0 in it, and kept within ``LEAST`` and ``l1_limit``. (The paper's sections on
    adaptive L1 regularization and on load balancing. It has one lambda, and one S, for the routers of all layers; here
    each gate has its own, so that each comes to k experts. The bounds are ours.)

    lambda is the parameter ``l1_weight``. No gradient reaches it, like the ``step`` of ``net.MultiTaskNetwork``.

    Args:
        expert_num, feature_size, learning_rate_factor: see ``net.SoftmaxGate``, whose W it has.
        top_k: k, from 1 to n: how many experts an example is to use on average.
        l1_weight, l1_limit, l1_rate, balanced: see ``KEYS``.
    Raises:
        ValueError: an argument is out of its range, or ``l1_weight`` above ``l1_limit``.
    """

    def __init__(
        self,
        expert_num: int,
        top_k: int,
        feature_size: int,
        l1_weight: float = KEYS["l1_weight"].default,
        l1_limit: float = KEYS["l1_limit"].default,
        l1_rate: float = KEYS["l1_rate"].default,
        balanced: bool = KEYS["balanced"].default,
        learning_rate_factor: float = 1.0,
    ) -> None:
        super().__init__(expert_num, feature_size, learning_rate_factor)
        if type(top_k) is not int or not 1 <= top_k <= expert_num:
            raise ValueError(f"top_k is {top_k!r}, but must be a whole number from 1 to {expert_num}")
        first = KEYS["l1_weight"].check("l1_weight", l1_weight)
        self.l1_limit = KEYS["l1_limit"].check("l1_limit", l1_limit)
        if first > self.l1_limit:
            raise ValueError(f"l1_weight is {first}, but must not exceed l1_limit, which is {self.l1_limit}")
        self.l1_rate = KEYS["l1_rate"].check("l1_rate", l1_rate)
        self.top_k, self.balanced = top_k, KEYS["balanced"].check("balanced", balanced)
        self.l1_weight = self.create_parameter([1], default_initializer=nn.initializer.Constant(first))
        self.l1_weight.stop_gradient = True

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; the state is the weights."""
        self.check_features(features)
        weights = positive_part(features @ self.weight)
        return weights, weights

    def penalties(self, state: Any) -> dict[str, Tensor]:
        """See ``net.Gate.penalties``. In training it moves lambda."""
        weights, used = state, paddle.cast(state > 0, state.dtype)
        # [n], the share of the examples that use each expert
        users = self.mean_of_rows(used) if self.training else paddle.mean(used, axis=0)
        users.stop_gradient = True
        sizes = paddle.mean(weights, axis=0)
        if self.balanced:
            sizes = sizes * users * (self.expert_num / self.top_k)
        l1_weight = self.l1_weight * 1.0  # the gradient needs that of this step
        if self.training:
            self._adapt(users)
        return {"l1": paddle.mean(l1_weight * sizes) * float(self.expert_num)}

    def _adapt(self, users):
        """Move lambda by the ``users`` of each expert [n]: S is 1 less their mean."""
        excess = paddle.reshape(paddle.mean(users), [1]) - self.top_k / self.expert_num
        sign = paddle.cast(excess > SAME, users.dtype) - paddle.cast(excess < -SAME, users.dtype)
        rate = paddle.full([1], self.l1_rate, users.dtype)  # as a number it would be float32 in legacy programs
        paddle.assign(paddle.clip(self.l1_weight * rate**sign, LEAST, self.l1_limit), output=self.l1_weight)

    def extra_repr(self):
        balanced = ", balanced" if self.balanced else ""
        return f"expert_num={self.expert_num}, top_k={self.top_k}, feature_size={self.feature_size}{balanced}"
