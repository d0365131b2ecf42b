"""A column of numbers -> inputs of the network: standardised, bounded, and piece by piece.

The pieces lie between ``edges``, quantiles of the training rows. The number of piece t is 0 below it, 1 above it and
rises from 0 to 1 within it (piecewise-linear encoding, Gorishniy et al., NeurIPS 2022, arXiv 2203.05556, equation 1).
So a network can treat each range of values in its own way, and no value is further out than those of the training rows.
"""

import dataclasses
import math

import numpy as np


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

    def encode(self, numbers):
        """float64 [N], nan where a field is empty -> float32 [N, width]; infinite where one does not fit float32."""
        is_empty = np.isnan(numbers)
        numbers = np.where(is_empty, self.mean, SCALES[self.scale](numbers))
        made = np.empty([len(numbers), self.width], np.float32)
        if self.edges:
            numbers = np.clip(numbers, self.edges[0], self.edges[-1])
            edges = np.asarray(self.edges)
            pieces = (numbers[:, None] - edges[:-1]) / np.diff(edges)
            np.clip(pieces, 0.0, 1.0, out=made[:, 1 : len(edges)], casting="same_kind")
        with np.errstate(over="ignore"):
            made[:, 0] = (numbers - self.mean) / self.deviation
        if self.missing:
            made[:, -1] = is_empty
        return made
