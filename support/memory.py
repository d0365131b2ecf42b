"""How much memory a call takes."""

import tracemalloc


def peak_of(function, *arguments):
    """The most bytes of Python's and NumPy's that a call holds at one time; what is memory-mapped does not count."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
