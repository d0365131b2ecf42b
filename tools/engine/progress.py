"""``runner.progress``: a bar by tqdm, for an epoch's steps, in place of the log's interval lines."""

import functools
import logging
import sys

from engine.errors import UserError

LOG = logging.getLogger("engine")
KNOWN = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {examples_rate}{postfix}]"
UNKNOWN = "{desc}: {n_fmt} steps [{elapsed}, {examples_rate}{postfix}]"  # without a number of steps


def bars(choice, count_steps):
    """A function (title, steps taken earlier) that shows a bar for a ``with`` block; None for plain lines.

    Args:
        choice: True, False, or "auto": if stderr is a terminal and tqdm is installed.
        count_steps: function without arguments: the steps of an epoch, or None if unknown. Called only for a bar: it
            may read all the data.
    Raises:
        UserError: a bar is asked for, but tqdm is not installed.
    """
    if choice is False or (choice == "auto" and not sys.stderr.isatty()):
        return None
    try:
        import tqdm.contrib.logging  # noqa: F401  (tqdm is an extra)
    except ImportError as error:
        if choice == "auto":
            return None
        raise UserError(
            f"runner.progress is true, but tqdm cannot be imported ({error}). Run: pip install tqdm"
        ) from error
    return functools.partial(show, count_steps())


def show(steps, title, begin):
    """A bar for a ``with`` block. Log lines go above it; at the end of the block it disappears.

    Args:
        steps: of the epoch, or None.
        title: the text before the bar.
        begin: steps taken earlier.
    """
    from tqdm.contrib.logging import tqdm_logging_redirect

    return tqdm_logging_redirect(
        tqdm_class=_bar_class(), loggers=[LOG, logging.root], desc=title, total=steps, initial=begin, leave=False,
        dynamic_ncols=True, miniters=1, bar_format=UNKNOWN if steps is None else KNOWN,
    )  # fmt: skip


@functools.cache
def _bar_class():
    from tqdm import tqdm

    class Bar(tqdm):
        """Counts steps, and shows the rate in examples."""

        monitor_interval = 0  # no thread of tqdm's beside the workers that are forked
        examples = 0

        def step(self, examples):
            """Count a step over so many examples."""
            self.examples += examples
            self.update()

        @property
        def format_dict(self):
            """The names in ``bar_format``. tqdm asks for it only when it draws."""
            known, taken = super().format_dict, self.n - self.initial
            steps_per_s = known["rate"] or (taken / known["elapsed"] if known["elapsed"] else 0.0)
            rate = steps_per_s * self.examples / max(taken, 1)
            return {**known, "examples_rate": f"{rate:.0f} examples/s" if taken else "? examples/s"}

    return Bar
