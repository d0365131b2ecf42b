"""Each row of the files is one number."""

import numpy as np
from paddle.io import Dataset


class RecDataset(Dataset):
    def __init__(self, file_list, config):
        self.rows = np.concatenate([np.loadtxt(path, ndmin=1) for path in file_list])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return [self.rows[i : i + 1].astype("float32")]
