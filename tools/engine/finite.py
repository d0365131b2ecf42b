"""Numbers that are not finite: found and named."""

import math

import numpy as np

from engine.errors import NotFinite


def check(arrays, words="{name} is not finite"):
    """Raise NotFinite where a float is nan or infinite, and name what holds it.

    Args:
        arrays: pairs (name, array), any shape and dtype.
        words: of the message, with ``{name}`` in them.
    """
    named = [(name, np.asarray(array)) for name, array in arrays]
    floats = [(name, array) for name, array in named if array.dtype.kind == "f"]
    with np.errstate(all="ignore"):
        # all are finite if their sum is, which is quick; else the sum itself may have grown too large
        if math.isfinite(sum(float(np.add.reduce(array, axis=None)) for _, array in floats)):
            return
        wrong = [name for name, array in floats if not np.isfinite(array).all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise NotFinite(words.format(name=", ".join(wrong[:3]) + more))


def check_scalars(named):
    """``check`` of the scalars among what a step gives, name -> array of any size."""
    check((name, value) for name, value in named.items() if np.size(value) == 1)
