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
from engine.processes import Alone

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
# Of an interval: examples, those of the epoch so far and steps, of all processes; then means over the steps of this one
Costs = collections.namedtuple("Costs", "examples seen batches reader_s batch_s examples_per_s")
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
        processes: of the job. The numbers are all processes', so all must ask for them.
        by_rows: whether in an evaluation too each has its rows of every batch.
    """

    def __init__(
        self, graph_name, job, interval, scalars=None, values_at_end=(), closing="done", open_bar=None, journal=SILENT,
        higher_is_better=None, processes=None, by_rows=False,
    ):  # fmt: skip
        self.style, self.trains = STYLES[graph_name, job], job == "train"
        self.by_rows = by_rows or self.trains
        self.processes = processes or Alone()
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
        self.newest_batch = -1  # of this process
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
        self.newest_batch = batch_id
        self._add_to_epoch(step.tensors, examples)
        if self._is_due(batch_id):
            self._end_interval(epoch, batch_id, step, step.tensors, examples)
        if self.bar is not None:
            self.bar.step(examples)
        self.step += 1

    def add_of_another(self, epoch, batch_id, graph):
        """A batch of an evaluation was another process's; write a line if its turn has come.

        Args:
            graph: EvaluationGraph, for the metrics and the status.
        """
        if self._is_due(batch_id):
            self._end_interval(epoch, batch_id, graph, None, 0)
        if self.bar is not None:
            self.bar.step(0)
        self.step += 1

    def _is_due(self, batch_id):
        return self.interval is not None and batch_id % self.interval == 0

    def state(self):
        """What the epoch's numbers are made of, over all processes, as plain numbers."""
        whole = self._of_all()
        newest = {name: value for name, value in whole["newest"].items() if name not in whole["vectors"]}
        return {**{key: whole[key] for key in ("sums", "examples", "seen")}, "newest": newest}

    def _of_all(self):
        """What all processes have counted in this epoch."""
        own = {"sums": self.sums, "examples": self.examples, "newest": self.newest, "seen": self.seen}
        own.update(vectors=self.vectors, newest_batch=self.newest_batch)
        if self.processes.number == 1:
            return own
        found = self.processes.gather(_as_arrays(own))
        whole = max(found, key=lambda one: one["newest_batch"])  # the first of those
        for key in ("sums", "examples"):
            names = dict.fromkeys(name for one in found for name in one[key])
            whole[key] = {name: sum(one[key].get(name, 0) for one in found) for name in names}
        vectors = set().union(*(one["vectors"] for one in found))
        return {**whole, "vectors": vectors, "seen": sum(one["seen"] for one in found)}

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

    def _end_interval(self, epoch, batch_id, source, tensors, examples):
        metrics, tensors = source.metrics(), self._tensors_of_all(tensors, examples)
        costs = self._costs_of_all()
        # of several processes all must ask, and only the first has a journal
        status = source.status() if self.journal.is_open or self.processes.number > 1 else {}
        values = {**{name: value for name, value in metrics.items() if name not in tensors}, **tensors}
        numbers = {name: _number(value) for name, value in values.items() if _is_number(value)}
        if self.bar is None:
            self._write_interval(epoch, batch_id, tensors, metrics, costs)
        else:
            # first what describes the model, for a narrow terminal cuts off the end
            names = sorted(numbers, key=lambda name: name not in self.values_at_end)
            self.bar.set_postfix_str(", ".join(f"{name} {numbers[name]:.4g}" for name in names), refresh=False)
        if self.scalars is not None:
            for name, value in numbers.items():
                self.scalars(name, value, self.step)
        self.journal.record(
            "interval", epoch=epoch, batch=batch_id, numbers=numbers, examples=costs.examples,
            epoch_examples=costs.seen, reader_s=costs.reader_s, batch_s=costs.batch_s,
            examples_per_s=costs.examples_per_s, status=status,
            **({"sent_bytes": source.sent_bytes} if self.trains and self.processes.number > 1 else {}),
        )  # fmt: skip
        self._begin_interval()

    def _tensors_of_all(self, tensors, examples):
        """What the step printed: means over the processes that have rows of the batch, weighted by their examples."""
        if self.processes.number == 1:
            return tensors
        found = self.processes.gather((_as_arrays(tensors), examples))
        found = [(of_one, number) for of_one, number in found if of_one is not None]
        first, total = found[0][0], max(sum(number for _, number in found), 1)
        means = {
            name: sum(_number(of_one[name]) * number for of_one, number in found) / total
            for name, value in first.items()
            if _is_number(value) and name not in self.values_at_end
        }
        return {**first, **means} if self.by_rows else first

    def _costs_of_all(self):
        """The interval's Costs; the seconds are this process's."""
        batches, examples, seen = self.batches, self.interval_examples, self.seen
        if self.processes.number > 1:
            found = self.processes.gather((batches, examples, seen))
            examples, seen = (sum(one[i] for one in found) for i in (1, 2))
            batches = batches if self.by_rows else sum(one[0] for one in found)
        own, cost = max(self.batches, 1), self.reader_s + self.step_s
        return Costs(examples, seen, batches, self.reader_s / own, cost / own, examples / max(cost, 1e-9))

    def _write_interval(self, epoch, batch_id, tensors, metrics, costs):
        style = self.style
        LOG.info(
            "epoch: %d, batch_id: %d, %s%s%savg_reader_cost: %.5f sec, avg_batch_cost: %.5f sec, "
            "avg_samples: %.5f, ips: %s ins/s",
            epoch,
            batch_id,
            "".join(style.metric.format(*item) for item in metrics.items() if item[0] not in tensors),
            "".join(style.tensor.format(name, _text(value, style.brackets)) for name, value in tensors.items()),
            style.gap,
            costs.reader_s,
            costs.batch_s,
            costs.examples / costs.batches,
            style.ips.format(costs.examples_per_s),
        )

    def numbers(self, metrics):
        """The epoch's numbers so far, name -> float or int: see ``close``."""
        return _numbers(self._of_all(), metrics)

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
        whole, seconds = self._of_all(), time.perf_counter() - self.started
        numbers = _numbers(whole, metrics)
        texts = {name: rounded(value) for name, value in numbers.items()}
        texts.update((name, _text(whole["newest"][name], False)) for name in whole["vectors"])
        LOG.info(
            "epoch: %d %s, %sepoch time: %.2f s",
            epoch,
            self.closing,
            "".join(f"{name}: {texts[name]}, " for name in _in_order(whole, metrics)),
            seconds,
        )
        for title, values in (status or {}).items():
            LOG.info("epoch: %d %s: %s", epoch, title, _greatest(values))
        event = "epoch" if self.closing == "done" else self.closing
        facts = {"numbers": numbers, "examples": whole["seen"], "seconds": seconds, "status": status or {}}
        facts["higher_is_better"] = directions.stated(numbers, self.higher_is_better)
        self.journal.record(event, epoch=epoch, **facts)
        return numbers


def _in_order(whole, metrics):
    """Names as on a done line: the metrics, then what else the steps give."""
    return [*metrics, *(name for name in whole["newest"] if name not in metrics)]


def _numbers(whole, metrics):
    """An epoch's numbers by name, of what ``Meter._of_all`` gives."""
    means = {name: total / whole["examples"][name] for name, total in whole["sums"].items()}
    known = {**whole["newest"], **means, **metrics}  # a metric is exact where a mean of batches may not be
    names = _in_order(whole, metrics)
    return {name: known[name] for name in names if name in metrics or name not in whole["vectors"]}


def _as_arrays(value):
    """Tensors as arrays, for another process."""
    if isinstance(value, dict):
        return {name: _as_arrays(each) for name, each in value.items()}
    return value if value is None or isinstance(value, (int, float, set)) else np.asarray(value)


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
