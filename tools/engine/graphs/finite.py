"""Numbers that are not finite: found and named."""

import math

import numpy as np

from engine.errors import NotFinite

GRADIENT = "the gradient of {names} is not finite"


def check(arrays, words="{names} {are} not finite"):
    """Raise NotFinite where a float is nan or infinite, and name what holds it.

    Args:
        arrays: pairs (name, array), any shape and dtype.
        words: of the message, with ``{names}``, and ``{are}`` for is or are.
    """
    wrong = []
    with np.errstate(all="ignore"):
        for name, array in arrays:  # one at a time: they may be copies
            array = np.asarray(array)
            if array.dtype.kind != "f" or math.isfinite(np.add.reduce(array, axis=None)):
                continue
            if not np.isfinite(array).all():  # or the sum itself has grown too large
                wrong.append(name)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        are = "are" if len(wrong) > 1 else "is"
        raise NotFinite(words.format(names=", ".join(wrong[:3]) + more, are=are))


def check_scalars(named):
    """``check`` of the scalars among what a step gives, name -> array of any size."""
    check((name, value) for name, value in named.items() if np.size(value) == 1)
