"""A toy: one weight, which begins at 0. Its loss is its value, so a step of SGD moves it by the rate, which halves."""

import random

import numpy as np
import paddle


class DygraphModel:
    def create_model(self, config):
        zero = paddle.nn.initializer.Constant(0.0)
        return paddle.nn.Linear(1, 1, weight_attr=paddle.ParamAttr(initializer=zero), bias_attr=False)

    def create_optimizer(self, net, config):
        rate = paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)
        return paddle.optimizer.SGD(rate, parameters=net.parameters())

    def create_metrics(self):
        return [], []

    def train_forward(self, net, metrics, batch, config):
        steps = paddle.to_tensor(config["runner.steps_per_epoch"] or -1)
        drawn = {"by_paddle": paddle.rand([]), "by_numpy": np.random.rand(), "by_random": random.random()}
        drawn = {name: paddle.to_tensor(float(value)) for name, value in drawn.items()}
        loss = net.weight.sum()
        return loss, metrics, {"loss": loss, "first": batch[0][0, 0], "steps": steps, **drawn}

    def infer_forward(self, net, metrics, batch, config):
        return metrics, {"loss": net.weight.sum(), "first": batch[0][0, 0]}
