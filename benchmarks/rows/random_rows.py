"""Random rows of a table, for timings: what they hold does not matter to the time of a step."""

import numpy as np
from paddle.io import Dataset

ROWS = 32768  # so that no save falls into the steps that are measured


class RecDataset(Dataset):
    """[dense, ids, label of each task]: as many features and ids as the config's ``hyper_parameters.input`` says."""

    def __init__(self, file_list, config):
        super().__init__()
        rng, prefix = np.random.default_rng(1), "hyper_parameters.input."
        dense = rng.normal(size=[ROWS, config[prefix + "dense_size"]]).astype("float32")
        ids = np.stack([rng.integers(size, size=ROWS) for size in config[prefix + "vocabulary_sizes"]], axis=1)
        labels = [(dense[:, task] > 0).astype("float32") for task in range(2)]
        self.arrays = [dense, ids, *labels]

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return [array[i] for array in self.arrays]

    def gather(self, indices):
        return [array[indices] for array in self.arrays]
