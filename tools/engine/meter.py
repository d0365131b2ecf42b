"""The lines of the log: one an interval, one an epoch.

An interval's line is PaddleRec's: what the last step gave, and the package's metrics so far. The line
``epoch: N done`` is the same in both graphs, for training and evaluation, and each number on it is the
epoch's: see ``Meter.close``. ``epoch: N validation`` is such a line too. Paddle's scripts look for the
words ``ips:`` and ``auc:``, each followed by a blank and the number. On a terminal a bar stands in place of an
interval's lines, with the same numbers.
"""

import collections
import contextlib
import logging
import time

import numpy as np

from engine import directions
from engine.journal import SILENT

LOG = logging.getLogger("engine")

# How an interval's line is put together, for (graph, job). A metric is a float that the package
# keeps over the epoch; a tensor is what the last step gave.
Style = collections.namedtuple("Style", "metric tensor gap ips brackets")
STYLES = {
    ("dynamic", "train"): Style("{}:{:.6f}, ", "{}:{},", " ", "{:.5f}", False),
    ("dynamic", "infer"): Style("{}: {:.6f},", "{}:{},", " ", "{:.2f}", False),
    ("static", "train"): Style("{}: {:.6f}, ", "{}: {}, ", "", "{:.5f}", False),
    ("static", "infer"): Style("{}: {:.6f}, ", "{}: {}, ", "", "{:.2f}", True),
    ("exported", "infer"): Style("{}: {:.6f},", "{}:{},", " ", "{:.2f}", False),
}
SHOWN_OF_STATUS = 8  # numbers on a line of the package's own


class Meter:
    """Counts time and examples between two lines; takes means over an epoch, weighted by examples.

    Args:
        graph_name: "dynamic", "static" or "exported".
        job: "train" or "infer".
        interval: steps between two lines; None: no such lines.
        scalars: function (name, value, step) that records a number elsewhere as well, or None.
        values_at_end: names of scalars that describe the model, not a batch. No mean is taken of
            them; an epoch's value is the one after its last step.
        closing: the word after ``epoch: N`` on an epoch's line.
        open_bar: what ``progress.bars`` gives: bars instead of the intervals' lines, or None.
        journal: takes each interval and each epoch as well.
        higher_is_better: metric -> bool, for the epochs' records in the journal.
    """

    def __init__(
        self, graph_name, job, interval, scalars=None, values_at_end=(), closing="done", open_bar=None, journal=SILENT,
        higher_is_better=None,
    ):  # fmt: skip
        self.style = STYLES[graph_name, job]
        self.interval, self.scalars, self.values_at_end = interval, scalars, values_at_end
        self.closing, self.step = closing, 0
        self.open_bar, self.bar, self.journal = open_bar, None, journal
        self.higher_is_better = higher_is_better or {}

    @contextlib.contextmanager
    def on_screen(self, epoch, begin=0):
        """Show a bar meanwhile, if the run shows bars, for the epoch's steps from ``begin`` on."""
        title = f"epoch {epoch}" if self.closing == "done" else f"epoch {epoch} {self.closing}"
        with self.open_bar(title, begin) if self.open_bar else contextlib.nullcontext() as self.bar:
            try:
                yield
            finally:
                self.bar = None

    def begin(self, state=None):
        """Start an epoch, or continue in the middle of one from its ``state()``."""
        self.started = time.perf_counter()
        state = state or {"sums": {}, "examples": {}, "newest": {}}
        self.seen = state.get("seen", 0)  # examples of this epoch so far
        self.sums, self.examples = dict(state["sums"]), dict(state["examples"])
        self.newest = dict(state["newest"])  # of each name: a number, or an array of another size
        self.vectors = set()  # names of what had another size than 1 in some batch
        self._begin_interval()

    def _begin_interval(self):
        self.batches = self.interval_examples = 0
        self.reader_s = self.step_s = 0.0

    def add(self, epoch, batch_id, step, examples, reader_s, step_s):
        """Count a step; write a line if its turn has come.

        Args:
            step: Step, what the graph gave.
            examples: in this batch.
            reader_s, step_s: seconds spent waiting for the batch, and computing.
        """
        self.batches += 1
        self.interval_examples += examples
        self.seen += examples
        self.reader_s += reader_s
        self.step_s += step_s
        self._add_to_epoch(step.tensors, examples)
        if self.interval is not None and batch_id % self.interval == 0:
            self._end_interval(epoch, batch_id, step)
        if self.bar is not None:
            self.bar.step(examples)
        self.step += 1

    def state(self):
        """What the epoch's numbers are made of, as plain numbers."""
        newest = {name: value for name, value in self.newest.items() if name not in self.vectors}
        return {"sums": self.sums, "examples": self.examples, "newest": newest, "seen": self.seen}

    def _add_to_epoch(self, tensors, examples):
        for name, value in tensors.items():
            if not _is_number(value):
                self.vectors.add(name)
                self.newest[name] = value
                continue
            self.newest[name] = number = _number(value)
            if name not in self.values_at_end:
                self.sums[name] = self.sums.get(name, 0.0) + number * examples
                self.examples[name] = self.examples.get(name, 0) + examples

    def _end_interval(self, epoch, batch_id, step):
        metrics = step.metrics()
        values = {**{name: value for name, value in metrics.items() if name not in step.tensors}, **step.tensors}
        numbers = {name: _number(value) for name, value in values.items() if _is_number(value)}
        if self.bar is None:
            self._write_interval(epoch, batch_id, step, metrics)
        else:
            # first what describes the model, for a narrow terminal cuts off the end
            names = sorted(numbers, key=lambda name: name not in self.values_at_end)
            self.bar.set_postfix_str(", ".join(f"{name} {numbers[name]:.4g}" for name in names), refresh=False)
        if self.scalars is not None:
            for name, value in numbers.items():
                self.scalars(name, value, self.step)
        cost = self.reader_s + self.step_s
        self.journal.record(
            "interval", epoch=epoch, batch=batch_id, numbers=numbers, examples=self.interval_examples,
            epoch_examples=self.seen, reader_s=self.reader_s / self.batches, batch_s=cost / self.batches,
            examples_per_s=self.interval_examples / max(cost, 1e-9),
            status=step.status() if self.journal.is_open else {},
        )  # fmt: skip
        self._begin_interval()

    def _write_interval(self, epoch, batch_id, step, metrics):
        style, cost = self.style, self.reader_s + self.step_s
        LOG.info(
            "epoch: %d, batch_id: %d, %s%s%savg_reader_cost: %.5f sec, avg_batch_cost: %.5f sec, "
            "avg_samples: %.5f, ips: %s ins/s",
            epoch,
            batch_id,
            "".join(style.metric.format(*item) for item in metrics.items() if item[0] not in step.tensors),
            "".join(style.tensor.format(name, _text(value, style.brackets)) for name, value in step.tensors.items()),
            style.gap,
            self.reader_s / self.batches,
            cost / self.batches,
            self.interval_examples / self.batches,
            style.ips.format(self.interval_examples / max(cost, 1e-9)),
        )

    def _in_order(self, metrics):
        """Names as on a done line: the metrics, then what else the steps give."""
        return [*metrics, *(name for name in self.newest if name not in metrics)]

    def numbers(self, metrics):
        """The epoch's numbers so far, name -> float or int: see ``close``."""
        means = {name: total / self.examples[name] for name, total in self.sums.items()}
        known = {**self.newest, **means, **metrics}  # a metric is exact where a mean of batches may not be
        return {name: known[name] for name in self._in_order(metrics) if name in metrics or name not in self.vectors}

    def close(self, epoch, metrics, status=None):
        """End an epoch and write its line, and those of what the package says of the network then.

        A number on it is a metric as the package has kept it over the epoch, or the mean of a scalar
        over the epoch's examples, or a scalar of ``values_at_end`` after the last step. What has
        more than one element has no mean: the last batch's is shown, as PaddleRec's tools do.

        Args:
            metrics: name -> float, over the epoch.
            status: title -> name -> number, as the hook ``status`` of a package gives it; a line for each title.
        Returns:
            name -> number: all of them.
        """
        numbers, seconds = self.numbers(metrics), time.perf_counter() - self.started
        texts = {name: rounded(value) for name, value in numbers.items()}
        texts.update((name, _text(self.newest[name], False)) for name in self.vectors)
        LOG.info(
            "epoch: %d %s, %sepoch time: %.2f s",
            epoch,
            self.closing,
            "".join(f"{name}: {texts[name]}, " for name in self._in_order(metrics)),
            seconds,
        )
        for title, values in (status or {}).items():
            LOG.info("epoch: %d %s: %s", epoch, title, _greatest(values))
        event = "epoch" if self.closing == "done" else self.closing
        facts = {"numbers": numbers, "examples": self.seen, "seconds": seconds, "status": status or {}}
        facts["higher_is_better"] = directions.stated(numbers, self.higher_is_better)
        self.journal.record(event, epoch=epoch, **facts)
        return numbers


def _is_number(value):
    value = np.asarray(value)
    return value.size == 1 and value.dtype.kind in "biuf"


def _number(value):
    """A float, or an int if it is one."""
    return np.asarray(value).reshape([]).item()


def _greatest(values):
    """The greatest of named numbers, such as 2 (0.62), 5 (0.38)."""
    names = sorted(values, key=values.get, reverse=True)
    shown = [f"{name} ({values[name]:.3g})" for name in names[:SHOWN_OF_STATUS]]
    left_out = len(names) - len(shown)
    return ", ".join(shown + [f"and {left_out} more"] * bool(left_out)) or "none"


def rounded(number):
    """Six decimals. Nine first: two sums of the same numbers in another order may lie on both sides of a half."""
    return str(number) if isinstance(number, int) else f"{round(number, 9):.6f}"


def _text(value, brackets):
    array = np.asarray(value)
    if array.dtype == np.float64:  # no more digits than a float32 has, like all others
        array = array.astype(np.float32)
    text = str(array)
    return text if brackets else text.strip("[]")
