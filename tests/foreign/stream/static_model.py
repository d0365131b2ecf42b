import os

import numpy as np
import paddle
import paddle.nn.functional as F

import net
import train_reader


class StaticModel:
    def __init__(self, config):
        self.config = config
        self.batch_size = config["runner.train_batch_size"]

    def create_feeds(self, is_infer=False):
        return [
            paddle.static.data("x", [None, 2], "float32"),
            paddle.static.data("label", [None, 1], "int64"),
        ]

    def create_data_loader(self):
        folder = os.path.join(self.config["config_abs_dir"], self.config["runner.train_data_dir"])

        def batches():
            data = [row for name in sorted(os.listdir(folder)) for row in train_reader.rows(os.path.join(folder, name))]
            for i in range(0, len(data), self.batch_size):
                part = data[i : i + self.batch_size]
                yield [np.stack([x for x, _ in part]), np.stack([label for _, label in part])]

        return batches

    def net(self, input, is_infer=False):
        x, label = input
        logits = net.OrderLayer()(x)
        self.cost = paddle.mean(F.cross_entropy(logits, label))
        return {"cost": self.cost, "acc": paddle.static.accuracy(input=logits, label=label)}

    def infer_net(self, input):
        return self.net(input, is_infer=True)

    def create_optimizer(self, strategy=None):
        paddle.optimizer.SGD(self.config["hyper_parameters.learning_rate"]).minimize(self.cost)
