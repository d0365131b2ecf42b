"""Lists of ids, one for each row, as one array of all ids: the tools take it as they take an array [rows, ...]."""

import numpy as np

from tabular.late import LateArray

END = -1  # what follows a list in the array that the network reads


class Lists(LateArray):
    """Rows of lists. ``numpy.asarray`` gives int64 [rows, length of the longest list, at least 1], each list followed
    by ``END``.

    Args:
        ids: int [number of all ids], those of the first row first.
        lengths: int [rows].
    """

    def __init__(self, ids, lengths):
        self.ids, self.lengths = ids, lengths
        self.begins = np.cumsum(lengths) - lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, rows):
        lengths, begins = self.lengths[rows], self.begins[rows]
        if np.ndim(lengths) == 0:
            return self.ids[begins : begins + lengths].astype(np.int64)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Lists(self.ids[np.repeat(begins, lengths) + within], lengths)

    def __array__(self, dtype=None, copy=None):
        padded = np.full([len(self), max(1, self.lengths.max(initial=0))], END, dtype or np.int64)
        padded[np.arange(padded.shape[1]) < self.lengths[:, None]] = self.ids
        return padded

    @classmethod
    def joined(cls, parts):
        return cls(*(np.concatenate([getattr(of, name) for of in parts]) for name in ("ids", "lengths")))
