"""A package of PaddleRec's, trained as PaddleRec's trainer does it, from its own initial weights.

Nothing of this project's model is imported here: the package's modules may have the same names, such as ``net``.
"""

import os

import paddle

from engine.config import load_config
from engine.package import Package


class PaddleRecStep:
    """A training step of PaddleRec's trainer.

    Args:
        case: cases.Case, of which only the batch is used.
        folder: of the package; the network's sizes are those of its ``config.yaml``.
    """

    def __init__(self, case, folder):
        self.batch = [paddle.to_tensor(item) for item in case.batch]
        self.config = load_config(os.path.join(folder, "config.yaml"))
        self.model = Package(folder).find("dygraph_model", "DygraphModel", "the wrapper for the dynamic graph")()
        self.net = self.model.create_model(self.config)
        self.optimizer = self.model.create_optimizer(self.net, self.config)
        self.net.train()
        self.metrics, _ = self.model.create_metrics()

    def step(self):
        self.optimizer.clear_grad()
        loss, self.metrics, _ = self.model.train_forward(self.net, self.metrics, self.batch, self.config)
        loss.backward()
        self.optimizer.step()
        return float(loss)
