"""``runner.progress``: whether a bar is shown in place of the lines of the intervals."""

import functools
import sys

from engine.errors import UserError


def bars(choice, count_steps):
    """What shows a bar, a function (title, steps taken earlier) for a ``with`` statement; None for plain lines.

    Args:
        choice: True, False, or "auto": where stderr is a terminal and tqdm is installed.
        count_steps: function without arguments: the steps of an epoch, or None if unknown. Called only for a bar: it
            may read all the data.
    Raises:
        UserError: a bar is asked for, but tqdm is not installed.
    """
    if choice is False or (choice == "auto" and not sys.stderr.isatty()):
        return None
    try:
        from engine import bar  # not before: tqdm is an extra
    except ImportError as error:
        if choice == "auto":
            return None
        raise UserError(
            f"runner.progress is true, but tqdm cannot be imported ({error}). Run: pip install tqdm"
        ) from error
    return functools.partial(bar.show, count_steps())
