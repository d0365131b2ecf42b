"""Experts that only one task may use, beside experts that all tasks share: customized gate control."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

import net
from dselect_k_model.config_key import NETWORK, Key

KEYS = {
    "own_experts": Key(
        int,
        None,
        "The number of experts that a task has for itself; all others are shared. Without it, expert_num / (number of "
        "tasks + 1), rounded down, but at least 1.",
        low=1,
        decides=NETWORK,
    )
}


class CGCGate(net.Gate):
    """softmax(W x) over the experts that a task may use; the weights of the others are exactly 0.

    One level of progressive layered extraction (Tang, Liu, Zhao and Gong, RecSys 2020, section 4.1, equations 1 to 3).

    Args:
        expert_num: n >= 1.
        allowed: the numbers of the experts that the task may use, from 0, at least one.
        feature_size: number of routing features, >= 1.
        learning_rate_factor: the gate's learning rate over the optimizer's, > 0.
    """

    def __init__(self, expert_num, allowed, feature_size, learning_rate_factor=1.0):
        super().__init__(expert_num, feature_size)
        self.allowed = list(allowed)
        normal = nn.initializer.TruncatedNormal(std=1.0 / math.sqrt(feature_size))
        self.add_weight("weight", [feature_size, len(self.allowed)], normal, learning_rate_factor)
        self.places = np.eye(expert_num)[self.allowed].astype(paddle.get_default_dtype())  # [allowed, n]

    def forward(self, features=None):
        """See ``net.Gate.forward``; there is no state."""
        self.check_features(features)
        return F.softmax(features @ self.weight, axis=-1) @ paddle.assign(self.places), None

    def extra_repr(self):
        return f"expert_num={self.expert_num}, allowed={self.allowed}, feature_size={self.feature_size}"


def make(hyper, task, expert_num, feature_size, own_experts):
    """The gate of a task: see ``gates.Gate.make``.

    The first experts are the first task's own, the next ones the second's, and so on; the last ones are shared.

    Raises:
        ValueError: there are too few experts.
    """
    task_num = len(hyper.task_list)
    own = own_experts or max(expert_num // (task_num + 1), 1)
    if own * task_num > expert_num:
        raise ValueError(
            f"hyper_parameters.expert_num is {expert_num}, but the gate cgc needs {own} for each of {task_num} tasks "
            "(gate_options.own_experts). Give more experts."
        )
    allowed = [*range(task * own, (task + 1) * own), *range(task_num * own, expert_num)]
    return CGCGate(expert_num, allowed, feature_size, hyper.optimizer_gate_learning_rate_factor)
