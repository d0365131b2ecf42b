import numpy as np
from paddle.io import Dataset


class RecDataset(Dataset):
    def __init__(self, file_list, config=None):
        self.rows = np.concatenate([np.loadtxt(path, delimiter=",", ndmin=2) for path in file_list])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i].astype("float32")
        return row[:3], row[3:]
