"""Rows of random numbers, in float64, so that two ways to the same sum differ in the last of sixteen digits only."""

import numpy as np
import paddle
from paddle.io import Dataset

ROWS, DENSE, IDS = 496, 6, 9


class RecDataset(Dataset):
    """[dense, id, class, yes or no, number, weight, group]; labels are missing, some classes in long runs."""

    config_keys = ("wide",)

    def __init__(self, file_list, config):
        super().__init__()
        self.dtype = "float64" if config.get("runner.wide") else "float32"
        paddle.set_default_dtype(self.dtype)
        rng = np.random.default_rng(5)
        dense = rng.normal(size=[ROWS, DENSE])
        ids = rng.integers(IDS, size=[ROWS, 1])
        score = dense @ rng.normal(size=[DENSE, 3]) + 0.1 * ids
        classes, buys, number = score.argmax(axis=1), (score[:, 0] > 0).astype(self.dtype), np.tanh(score[:, 1])
        classes[rng.random(ROWS) < 0.3] = -1
        buys[: ROWS // 2] = -1  # shuffled, so some batches have their few labels on one process
        buys[rng.random(ROWS) < 0.8] = -1
        number[rng.random(ROWS) < 0.5] = np.nan
        # some are 0, and all are exact in float32, as which rankings keep them
        weight, group = rng.integers(4, size=ROWS) / 64, rng.integers(9, size=ROWS)
        self.arrays = [dense.astype(self.dtype), ids, classes, buys, number.astype(self.dtype)]
        self.arrays += [weight.astype(self.dtype), group]

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return [array[i] for array in self.arrays]

    def gather(self, indices):
        return [array[indices] for array in self.arrays]
