"""Rates of the parts: batches from the reader, and the machine's matrix products."""

import os

import numpy as np
import paddle

from engine.batches import Batches, find_reader, open_dataset
from engine.config import load_config
from engine.keys import read_settings
from engine.package import Package

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class EngineBatches:
    """The tools' ``Batches``, shuffled; a step is one batch.

    Args:
        path: not a case's: there is none.
        data: folder of the data files.
        batch: examples in a batch.
    """

    def __init__(self, path, data, batch):
        self.dataset, self.settings, self.batch = *_open(data, batch), batch
        self.batches = Batches(self.dataset, self.settings, "train", paddle.CPUPlace())
        self.epoch, self.left = 0, iter(())

    def step(self):
        """Draw one batch, of the next epoch if need be."""
        batch = next(self.left, None)
        if batch is None:
            self.left, self.epoch = iter(self._begin(self.epoch)), self.epoch + 1
            batch = next(self.left)
        assert len(batch[0]) == self.batch and np.asarray(batch[0]).dtype == np.float32

    def _begin(self, epoch):
        return self.batches(epoch)

    def facts(self):
        arrays = [value for value in vars(self.dataset).values() if isinstance(value, np.ndarray)]
        return {"examples": len(self.dataset), "bytes": sum(array.nbytes for array in arrays)}


class PaddleLoader(EngineBatches):
    """Paddle's loader, example by example, as PaddleRec's tools use it."""

    def _begin(self, epoch):
        return paddle.io.DataLoader(
            self.dataset, batch_size=self.batch, shuffle=True, drop_last=True, places=paddle.CPUPlace()
        )


def _open(data, batch):
    overrides = [f"runner.train_data_dir={data}", f"runner.train_batch_size={batch}"]
    config = load_config(os.path.join(ROOT, "config.yaml"), overrides)
    settings = read_settings(config, "train")
    reader = find_reader(Package(ROOT), settings, "train")
    return open_dataset(reader, settings, config, "train"), settings


class MatrixProduct:
    """A step is one float32 product of two square matrices."""

    def __init__(self, path, size):
        self.left, self.right = paddle.rand([size, size]), paddle.rand([size, size])

    @paddle.no_grad()
    def step(self):
        float((self.left @ self.right)[0, 0])  # waits for the product
