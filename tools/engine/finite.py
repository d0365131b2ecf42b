"""Numbers that are not finite: found and named."""

import numpy as np

from engine.errors import NotFinite


def check(arrays, words="{name} is not finite"):
    """Raise NotFinite where a float is nan or infinite, and name what holds it.

    Args:
        arrays: pairs (name, array), any shape and dtype.
        words: of the message, with ``{name}`` in them.
    """
    wrong = [name for name, array in arrays if not _is_finite(np.asarray(array))]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise NotFinite(words.format(name=", ".join(wrong[:3]) + more))


def check_scalars(named):
    """``check`` of the scalars among what a step gives, name -> array of any size."""
    check((name, value) for name, value in named.items() if np.size(value) == 1)


def _is_finite(array):
    if array.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        total = array.sum()  # finite: so are all; else the sum itself may have grown too large
    return bool(np.isfinite(total) or np.isfinite(array).all())
