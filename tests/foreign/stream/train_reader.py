import numpy as np
from paddle.io import IterableDataset


def rows(path):
    with open(path) as file:
        for line in file:
            a, b, label = line.split()
            yield np.array([a, b], "float32"), np.array([label], "int64")


class RecDataset(IterableDataset):
    def __init__(self, file_list, config):
        self.file_list = file_list

    def __iter__(self):
        for path in self.file_list:
            yield from rows(path)
