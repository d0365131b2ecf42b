"""The training step of any model package with PaddleRec's interface, taken as PaddleRec's trainer takes it."""

import os

import case as cases
import paddle

from engine.config import load_config
from engine.package import Package


class PackageStep:
    """A package's network, started afresh: it has neither the case's weights nor need it be the same function.

    Its process must be its own: the package's modules are called ``net`` and so on, as ours are.

    Args:
        path: of the case, of which the batch alone is used.
        folder: of the package; its ``config.yaml`` says the sizes of the network.
    """

    def __init__(self, path, folder):
        folder = os.path.abspath(folder)
        self.batch = [paddle.to_tensor(item) for item in cases.Case(path).batch]
        self.config = load_config(os.path.join(folder, "config.yaml"))
        self.model = Package(folder).find("dygraph_model", "DygraphModel", "the wrapper for the dynamic graph")()
        self.net = self.model.create_model(self.config)
        self.optimizer = self.model.create_optimizer(self.net, self.config)
        self.net.train()
        self.metrics, _ = self.model.create_metrics()

    def step(self):
        """One training step; its loss."""
        self.optimizer.clear_grad()
        loss, self.metrics, _ = self.model.train_forward(self.net, self.metrics, self.batch, self.config)
        loss.backward()
        self.optimizer.step()
        return float(loss)
