"""The seeds of all that tests draw, moved by one option: ``pytest --seed N``. Each has its usual value at the default.

Whoever draws in a test asks for ``seeded(a number of its own)``, or uses the fixture ``rng``.
"""

import numpy as np

DEFAULT = 7
_shift = 0


def set_option(seed):
    """Take the option's value."""
    global _shift
    _shift = seed - DEFAULT


def seeded(number):
    """The seed that stands for ``number``: the number itself, unless the option says otherwise."""
    return (number + _shift) % 2**32


def random_state(number):
    """NumPy's generator from that seed."""
    return np.random.RandomState(seeded(number))
