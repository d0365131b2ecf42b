"""Variants timed without answers to check: batches, matrix products, another package's training step."""

import os

import numpy as np
import paddle
from worker import ROOT, Case

from engine.batches import Batches, find_reader, open_dataset
from engine.config import load_config
from engine.keys import read_settings
from engine.package import Package


class EngineBatches:
    """The tools' ``Batches``, shuffled; a step is one batch.

    Args:
        path: unused, there is no case.
        data: folder of the data files.
        batch: examples in a batch.
    """

    def __init__(self, path, data, batch):
        overrides = [f"runner.train_data_dir={data}", f"runner.train_batch_size={batch}"]
        config = load_config(str(ROOT / "config.yaml"), overrides)
        self.settings, self.batch = read_settings(config, "train"), batch
        reader = find_reader(Package(str(ROOT)), self.settings, "train")
        self.dataset = open_dataset(reader, self.settings, config, "train")
        self.batches = self._loader()
        self.epoch, self.left = 0, iter(())

    def _loader(self):
        """A function of the epoch's number that gives its batches."""
        return Batches(self.dataset, self.settings, "train", paddle.CPUPlace())

    def step(self):
        """Draw a batch, from the next epoch if this one is over."""
        batch = next(self.left, None)
        if batch is None:
            self.left, self.epoch = iter(self.batches(self.epoch)), self.epoch + 1
            batch = next(self.left)
        assert len(batch[0]) == self.batch and np.asarray(batch[0]).dtype == np.float32

    def facts(self):
        arrays = [value for value in vars(self.dataset).values() if isinstance(value, np.ndarray)]
        return {"examples": len(self.dataset), "bytes": sum(array.nbytes for array in arrays)}


class PaddleLoader(EngineBatches):
    """Paddle's loader, example by example, as in PaddleRec's tools."""

    def _loader(self):
        place = paddle.CPUPlace()
        loader = paddle.io.DataLoader(self.dataset, batch_size=self.batch, shuffle=True, drop_last=True, places=place)
        return lambda epoch: loader


class MatrixProduct:
    """A step is one float32 product of two square matrices.

    Args:
        path: unused, there is no case.
        size: of the matrices.
    """

    def __init__(self, path, size):
        self.left, self.right = paddle.rand([size, size]), paddle.rand([size, size])

    @paddle.no_grad()
    def step(self):
        float((self.left @ self.right)[0, 0])  # waits for the product


class PackageStep:
    """A package with PaddleRec's interface, trained as PaddleRec's trainer does it, from its own initial weights.

    It needs a process of its own, because its modules may have the names of ours, ``net`` and so on.

    Args:
        path: of the case, of which only the batch is used.
        folder: of the package; the network's sizes are those of its ``config.yaml``.
    """

    def __init__(self, path, folder):
        folder = os.path.abspath(folder)
        self.batch = [paddle.to_tensor(item) for item in Case(path).batch]
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
