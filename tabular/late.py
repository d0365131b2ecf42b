"""Rows that become an array when a batch is made of them, because the array takes more memory than they do."""

import numpy as np


class LateArray:
    """``len``, indexing of rows and ``numpy.asarray`` work as for an array [rows, ...], and ``numpy.concatenate`` of
    several of one class, along the rows.

    Subclasses have ``__len__``, ``__getitem__``, ``__array__`` and ``joined``.
    """

    @classmethod
    def joined(cls, parts):
        """The rows of several objects of this class, one after another."""
        raise NotImplementedError

    def __array_function__(self, function, types, arguments, options):
        if function is not np.concatenate or options or not all(issubclass(kind, type(self)) for kind in types):
            return NotImplemented
        return self.joined(*arguments)
