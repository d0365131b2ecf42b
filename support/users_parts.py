"""Gates and experts as users write them, for configs of tests: ``gate: support.users_parts.gate_of_two``."""

import math

import numpy as np
import paddle

import net
from dselect_k_model.config_key import REQUIRED, Key


class GateOfTwo(net.SoftmaxGate):
    """Softmax, then 0 for all but the first two experts: no example needs the others."""

    def forward(self, features=None):
        weights, state = net.SoftmaxGate.forward(self, features)  # Paddle 2.6.2's to_static does not know super()
        used = np.arange(self.expert_num) < 2
        return weights * paddle.assign(used.astype(paddle.get_default_dtype())), state


def gate_of_two(expert_num, top_k, feature_size):
    return GateOfTwo(expert_num, feature_size)


class RestlessGate(net.Gate):
    """Expert 1 for every example; in training also those that noise adds."""

    def __init__(self, expert_num):
        super().__init__(expert_num)
        one = np.eye(expert_num, dtype=paddle.get_default_dtype())[1]
        self.add_weight("logits", [expert_num], paddle.nn.initializer.Assign(one))

    def forward(self, features=None):
        noise = paddle.rand([self.expert_num]) if self.training else 0.0
        return paddle.clip(self.logits + noise, 0.0, 1.0), None


def restless_gate(expert_num, top_k, feature_size):
    return RestlessGate(expert_num)


def gate_with_keys(expert_num, top_k, feature_size, chosen, weight):
    return net.FixedGate([weight * (i == chosen) for i in range(expert_num)])


gate_with_keys.keys = {
    "chosen": Key(int, REQUIRED, "The expert.", low=0),
    "weight": Key(float, 0.5, "Its weight.", above=0),
}


def expert_with_keys(shape, expert_size, width):
    return net.MLP(math.prod(shape), [width, expert_size])


expert_with_keys.keys = {"width": Key(int, 6, "The width of the hidden layer.", low=1)}


def normed_expert(shape, expert_size):
    return paddle.nn.Sequential(paddle.nn.LayerNorm(shape), net.MLP(math.prod(shape), [expert_size]))


class RecurrentExpert(paddle.nn.Layer):
    def __init__(self, shape, expert_size):
        super().__init__()
        self.rnn = paddle.nn.SimpleRNN(1, expert_size)

    def forward(self, x):
        return self.rnn(paddle.unsqueeze(x, axis=2))[0][:, -1]


def prelu_expert(shape, expert_size):
    return paddle.nn.Sequential(paddle.nn.Linear(math.prod(shape), expert_size), paddle.nn.PReLU())


def too_wide_expert(shape, expert_size):
    return net.MLP(math.prod(shape), [expert_size + 1])


def no_layer(*sizes):
    return "an expert"
