"""The lines of the log: one an interval, one an epoch, in PaddleRec's format.

Paddle's scripts look for the words ``ips:`` and ``auc:``, each followed by a blank and the number.
"""

import collections
import logging
import time

import numpy as np

LOG = logging.getLogger("engine")

# How an interval's line is put together, for (graph, job). A metric is a float that the package
# keeps over the epoch; a tensor is what the last step gave.
Style = collections.namedtuple("Style", "metric tensor gap ips brackets")
STYLES = {
    ("dynamic", "train"): Style("{}:{:.6f}, ", "{}:{},", " ", "{:.5f}", False),
    ("dynamic", "infer"): Style("{}: {:.6f},", "{}:{},", " ", "{:.2f}", False),
    ("static", "train"): Style("", "{}: {}, ", "", "{:.5f}", False),
    ("static", "infer"): Style("", "{}: {}, ", "", "{:.2f}", True),
    ("exported", "infer"): Style("{}: {:.6f},", "{}:{},", " ", "{:.2f}", False),
}
DONE_METRIC = "{}: {:.6f},"


class Meter:
    """Counts time and examples between two lines; takes means over an epoch, weighted by examples.

    Args:
        graph_name: "dynamic", "static" or "exported".
        job: "train" or "infer".
        interval: steps between two lines.
        scalars: function (name, value, step) that records a number elsewhere as well, or None.
    """

    def __init__(self, graph_name, job, interval, scalars=None):
        self.style = STYLES[graph_name, job]
        self.prints_means = graph_name == "static"  # the dynamic graph's metrics are over the epoch already
        self.interval, self.scalars = interval, scalars
        self.step = 0

    def begin(self, state=None):
        """Start an epoch, or go on in the middle of one from its ``state()``."""
        self.started = time.perf_counter()
        self.sums, self.examples = (dict(state["sums"]), state["examples"]) if state else ({}, 0)
        self.tensors = {}
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
        self.tensors = step.tensors
        self.examples += examples
        self.batches += 1
        self.interval_examples += examples
        self.reader_s += reader_s
        self.step_s += step_s
        self._add_to_means(examples)
        if batch_id % self.interval == 0:
            self._write_interval(epoch, batch_id, step.metrics())
        self.step += 1

    def state(self):
        """What the epoch's means are made of, as plain numbers."""
        return {"sums": self.sums, "examples": self.examples}

    def _add_to_means(self, examples):
        for name, value in self.tensors.items():
            if np.size(value) == 1:
                self.sums[name] = self.sums.get(name, 0.0) + float(np.reshape(value, [])) * examples

    def _write_interval(self, epoch, batch_id, metrics):
        style, cost = self.style, self.reader_s + self.step_s
        LOG.info(
            "epoch: %d, batch_id: %d, %s%s%savg_reader_cost: %.5f sec, avg_batch_cost: %.5f sec, "
            "avg_samples: %.5f, ips: %s ins/s",
            epoch,
            batch_id,
            "".join(style.metric.format(name, value) for name, value in metrics.items()),
            self._tensor_texts(),
            style.gap,
            self.reader_s / self.batches,
            cost / self.batches,
            self.interval_examples / self.batches,
            style.ips.format(self.interval_examples / max(cost, 1e-9)),
        )
        if self.scalars is not None:
            self._record(metrics)
        self._begin_interval()

    def _tensor_texts(self):
        return "".join(
            self.style.tensor.format(name, _text(value, self.style.brackets)) for name, value in self.tensors.items()
        )

    def _record(self, metrics):
        numbers = {name: np.asarray(value) for name, value in self.tensors.items()}
        for name, value in {**metrics, **numbers}.items():
            if np.size(value) == 1:
                self.scalars(name, float(np.reshape(value, [])), self.step)

    def close(self, epoch, metrics):
        """End an epoch and write its line.

        Args:
            metrics: name -> float, over the epoch.
        Returns:
            name -> float: the means over the epoch of all numbers, and the metrics.
        """
        means = {name: total / self.examples for name, total in self.sums.items()}
        if self.prints_means:
            LOG.info(
                "epoch: %d mean, %s",
                epoch,
                ", ".join(f"{name}: {mean:.6f}" for name, mean in means.items()),
            )
        LOG.info(
            "epoch: %d done, %s%s%sepoch time: %.2f s",
            epoch,
            "".join(DONE_METRIC.format(name, value) for name, value in metrics.items()),
            self._tensor_texts(),
            self.style.gap,
            time.perf_counter() - self.started,
        )
        return {**means, **metrics}


# What a graph gives for a step: name -> tensor, and a function without arguments for the metrics so
# far (name -> float), which is called only when a line is due.
Step = collections.namedtuple("Step", "tensors metrics")


def _text(value, brackets):
    text = str(np.asarray(value))
    return text if brackets else text.strip("[]")
