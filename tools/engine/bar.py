"""The bar that stands on a terminal for an epoch's steps, by tqdm. To be imported only where one is shown."""

import logging

from tqdm import tqdm
from tqdm.contrib.logging import tqdm_logging_redirect

LOG = logging.getLogger("engine")
KNOWN = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {examples_rate}{postfix}]"
UNKNOWN = "{desc}: {n_fmt} steps [{elapsed}, {examples_rate}{postfix}]"  # how many steps there will be


def show(steps, title, begin):
    """A bar for a ``with`` block, in which the log's lines go above it; afterwards it is gone.

    Args:
        steps: of the epoch, or None.
        title: what stands before the bar.
        begin: steps that were taken earlier.
    """
    return tqdm_logging_redirect(
        tqdm_class=_Bar, loggers=[LOG, logging.root], desc=title, total=steps, initial=begin, leave=False,
        dynamic_ncols=True, miniters=1, bar_format=UNKNOWN if steps is None else KNOWN,
    )  # fmt: skip


class _Bar(tqdm):
    """Counts steps, and tells the rate in examples."""

    monitor_interval = 0  # no thread of tqdm's beside the workers that are forked
    examples = 0

    def step(self, examples):
        """Count a step over so many examples."""
        self.examples += examples
        self.update()

    @property
    def format_dict(self):
        """What ``bar_format`` names. tqdm asks for it only when it draws."""
        known, taken = super().format_dict, self.n - self.initial
        rate = known["rate"] or (taken / known["elapsed"] if known["elapsed"] else 0.0)
        of_examples = rate * self.examples / max(taken, 1)
        return {**known, "examples_rate": f"{of_examples:.0f} examples/s" if taken else "? examples/s"}
