"""A column of numbers -> inputs of the network: standardised, bounded, and piece by piece.

The pieces lie between ``edges``, quantiles of the training rows. The number of piece t is 0 below it, 1 above it and
rises from 0 to 1 within it (piecewise-linear encoding, Gorishniy et al., NeurIPS 2022, arXiv 2203.05556, equation 1).
So a network can treat each range of values in its own way, and no value is further out than those of the training rows.
"""

import dataclasses
import functools
import math

import numpy as np

from tabular.late import LateArray

ENCODED_TOGETHER = 1024  # rows; with many more, what is computed on the way leaves the processor's cache


def _log(numbers):
    return np.copysign(np.log1p(np.abs(numbers)), numbers)


SCALES = {"": lambda numbers: numbers, "log": _log}  # log: log(1 + x), and -log(1 - x) below 0


@dataclasses.dataclass(frozen=True)
class Number:
    """How a column of numbers is encoded.

    Args:
        column: its name.
        mean, deviation: of the training rows.
        edges: rising; none: only the standardised number, without bounds.
        missing: whether empty fields have an input of their own. An empty field is otherwise read as the mean.
        scale: one of ``SCALES``, on which mean, deviation and edges are.
    Raises:
        ValueError: the numbers cannot be used.
    """

    column: str
    mean: float
    deviation: float
    edges: tuple = ()
    missing: bool = False
    scale: str = ""

    def __post_init__(self):
        if self.scale not in SCALES:
            raise ValueError(f"the scale of {self.column} is {self.scale!r}, but must be log")
        numbers = [self.mean, self.deviation, *self.edges]
        if not all(map(math.isfinite, numbers)) or self.deviation <= 0:
            raise ValueError(f"the mean or deviation of {self.column} is not finite, or not > 0")
        if len(self.edges) == 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"the edges of {self.column} do not rise")

    @classmethod
    def read(cls, entry):
        """One of ``numbers`` in vocabulary.json."""
        edges = tuple(float(edge) for edge in entry.get("edges", ()))
        is_missing = entry.get("missing", False)
        if not isinstance(is_missing, bool):
            raise ValueError(f"missing of {entry['column']} is neither true nor false")
        scale = str(entry.get("scale", ""))
        return cls(str(entry["column"]), float(entry["mean"]), float(entry["deviation"]), edges, is_missing, scale)

    @property
    def width(self):
        """How many inputs the column has."""
        return 1 + max(len(self.edges) - 1, 0) + self.missing

    @functools.cached_property
    def _pieces(self):
        """(Where the pieces begin, how long they are), float64 [number of pieces] each."""
        edges = np.asarray(self.edges)
        return edges[:-1], np.diff(edges)

    def _bounded(self, numbers):
        numbers = np.where(np.isnan(numbers), self.mean, SCALES[self.scale](numbers))
        return np.clip(numbers, self.edges[0], self.edges[-1]) if self.edges else numbers

    def _standardised(self, bounded):
        return (bounded - self.mean) / self.deviation

    def does_not_fit(self, numbers):
        """Whether numbers are beyond float32 when standardised: float64 [N], nan where a field is empty -> bool [N]."""
        with np.errstate(over="ignore"):
            return np.isinf(self._standardised(self._bounded(numbers)).astype(np.float32))

    def encode(self, numbers, inputs):
        """Write the inputs of numbers.

        Args:
            numbers: float64 [N], nan where a field is empty.
            inputs: float32 [N, width], to be written.
        """
        bounded = self._bounded(numbers)
        inputs[:, 0] = self._standardised(bounded)
        if self.edges:
            begins, lengths = self._pieces
            pieces = (bounded[:, None] - begins) / lengths
            np.clip(pieces, 0.0, 1.0, out=inputs[:, 1 : len(self.edges)], casting="same_kind")
        if self.missing:
            inputs[:, -1] = np.isnan(numbers)


class Numbers(LateArray):
    """Rows of numbers as they are in the table. ``numpy.asarray`` encodes them: float32 [rows, sum of the widths].

    Args:
        encodings: the Number of each column.
        values: float64 [rows, number of columns], nan where a field is empty.
    """

    def __init__(self, encodings, values):
        self.encodings, self.values = encodings, values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        values = self.values[rows]
        if values.ndim == 1:
            return np.asarray(Numbers(self.encodings, values[None]))[0]
        return Numbers(self.encodings, values)

    @property
    def width(self):
        """How many inputs a row has."""
        return sum(number.width for number in self.encodings)

    def __array__(self, dtype=None, copy=None):
        inputs = np.empty([len(self), self.width], np.float32)
        ends = np.cumsum([number.width for number in self.encodings])
        for first in range(0, len(self), ENCODED_TOGETHER):
            rows = slice(first, first + ENCODED_TOGETHER)
            for number, end, column in zip(self.encodings, ends, self.values[rows].T):
                number.encode(column, inputs[rows, end - number.width : end])
        return inputs if dtype is None else inputs.astype(dtype)

    def smaller(self):
        """These rows, or their array if that takes no more memory."""
        return self if self.width * np.dtype(np.float32).itemsize > self.values[:1].nbytes else np.asarray(self)

    @classmethod
    def joined(cls, parts):
        return cls(parts[0].encodings, np.concatenate([part.values for part in parts]))
