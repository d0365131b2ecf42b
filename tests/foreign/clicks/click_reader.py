import numpy as np
from paddle.io import IterableDataset


class RecDataset(IterableDataset):
    def __init__(self, file_list, config):
        super().__init__()
        self.file_list = file_list

    def __iter__(self):
        for path in self.file_list:
            with open(path) as file:
                for line in file:
                    label, ids, dense = line.rstrip("\n").split("\t")
                    yield [
                        np.array([int(label)], "int64"),
                        np.array([int(x) for x in ids.split()], "int64"),
                        np.array([float(dense)], "float32"),
                    ]
