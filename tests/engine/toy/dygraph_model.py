"""A toy: one weight, which begins at 0. Its loss is its value, so a step of SGD moves it by the rate, which halves.

What must not change a training, evaluation does: it draws, and moves the buffer ``seen``.
"""

import random

import numpy as np
import paddle


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([1, 1], default_initializer=paddle.nn.initializer.Constant(0.0))
        seen = paddle.zeros([1])
        seen.name = "seen"
        self.register_buffer("seen", seen)

    def forward(self):
        paddle.assign(self.seen + 1, self.seen)
        return self.weight + 0  # Paddle 2.6.2 compiles no function that returns a parameter itself


class DygraphModel:
    higher_is_better = {"error_type": True}

    def create_model(self, config):
        return Net()

    def create_optimizer(self, net, config):
        rate = paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)
        return paddle.optimizer.SGD(rate, parameters=net.parameters())

    def create_metrics(self):
        return [], []

    def train_forward(self, net, metrics, batch, config):
        assert net.training
        loss = net().sum()
        steps = paddle.to_tensor(config["runner.steps_per_epoch"] or -1)
        drawn = {"by_paddle": paddle.rand([]), "by_numpy": np.random.rand(), "by_random": random.random()}
        drawn = {name: paddle.to_tensor(float(value)) for name, value in drawn.items()}
        printed = {"loss": loss, "first": batch[0][0, 0], "steps": steps, "seen": net.seen, "error": loss * 0}
        return loss, metrics, {**printed, **drawn}

    def infer_forward(self, net, metrics, batch, config):
        assert not net.training
        paddle.rand([3]), np.random.rand(3), random.random()
        weight = net()
        error = ((weight - batch[0]) ** 2).mean()
        printed = {"loss": weight.sum(), "first": batch[0][0, 0], "error": error, "error_type": -error}
        return metrics, printed
