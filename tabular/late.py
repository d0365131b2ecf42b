"""Rows that become an array when a batch is made of them: until then they take less memory than the array would."""

import numpy as np


class LateArray:
    """``len``, indexing of rows, ``numpy.concatenate`` and ``numpy.asarray`` work as for an array [rows, ...].

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
