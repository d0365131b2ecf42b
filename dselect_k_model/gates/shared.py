"""Softmax and top-k gates whose weights are the same for all examples."""

from typing import Any, Optional

import paddle
from paddle import Tensor

import net


class SharedGate(net.Gate):
    """A gate over free logits: that of each example, which reads the number 1 in place of the features.

    So softmax(W x) becomes softmax(w), with w [n]. Its first values are those of a W for one feature.

    Args:
        gate: per example, of feature size 1. Its penalties are left out: they spread a batch's examples over the
            experts, and here all examples have the same experts.
    """

    def __init__(self, gate: net.Gate) -> None:
        super().__init__(gate.expert_num)
        self.gate = gate

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``net.Gate.forward``; there is no state."""
        weights, _ = self.gate(paddle.ones([1, 1], self.gate.weight.dtype))
        return paddle.reshape(weights, [self.expert_num]), None
