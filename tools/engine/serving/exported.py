"""An exported model, run by Paddle Inference as the tools run a graph."""

import logging
import os
import time

import numpy as np
import paddle
from paddle import inference

from engine.checkpoints import compatibility
from engine.errors import UserError, last_line
from engine.graphs import metric_state
from engine.graphs.graph import EvaluationGraph, Step
from engine.processes import Alone
from engine.serving import signature as signatures
from engine.serving.signature import PREFIX, SIGNATURE
from engine.shared import load

LOG = logging.getLogger("engine")


class ExportedModel(EvaluationGraph):
    """The model in an exported folder; ``table`` takes what it predicts.

    Args:
        folder: that an export wrote.
        threads: of the mathematics; 0 or None: one for each core.
        processes: of the job.
    Raises:
        UserError: it is no such folder.
    """

    name = "exported"

    def __init__(self, folder, threads=None, processes=None):
        self.folder, self.processes = folder, processes or Alone()
        self.threads = threads or load("processes").cores()
        self.signature = signatures.read(folder)
        if os.path.exists(_file(folder, ".json")) and paddle.__version__.startswith("2."):  # it would crash
            raise UserError(
                f"{folder}: Paddle {self.signature.get('paddle')} exported it, in a form that Paddle "
                f"{paddle.__version__} cannot read. Export it with this release."
            )
        self.predictor = self.table = self.counter = None
        self.takes_several = False  # whether the predictor was opened for batches of several examples
        self.model_s, self.opened_at = 0.0, time.perf_counter()

    def check_encoding(self, found):
        """Raise UserError if the reader's inputs are encoded by other files than the training's."""
        signature = os.path.join(self.folder, SIGNATURE)
        compatibility.check_encoding(self.signature.get("encoding"), found, signature, _file(self.folder, "."))

    def begin_evaluation(self):
        self.examples, self.totals = 0, {}
        self.counted = ([], [])

    def end(self):
        """Complete the table; without an example it has its columns all the same, of an example of zeros."""
        if not sum(self.processes.gather(self.examples)) and self.processes.is_first:
            self.table.add(*self.predicted_of_none())
        self.table.close()

    def infer_step(self, batch):
        items = [np.asarray(item) for item in batch]
        columns, outputs = self.predicted(items)
        for task in self.signature["tasks"]:
            if self._label(task, items) is not None and task["metric"] and not self.counter:
                self._count(task, columns)
        if self.counter and len(items) >= len(self.signature["feeds"]):
            self.counted = self.counted if self.counted[0] else self.counter.create_metrics()
            self.counter.update_metrics(self.counted[0], outputs, items)
        self.table.add(columns, outputs)
        self.examples += len(items[0])
        return Step({}, self.metrics), len(items[0])

    def predicted(self, items):
        """The predictions of a batch.

        Args:
            items: the reader's arrays [B, ...], or what becomes one; labels may be missing.
        Returns:
            (The tasks' columns as predict.py writes them, name -> [B]; all outputs, name -> array.)
        """
        items = [np.asarray(item) for item in items]
        outputs = self.outputs(self._inputs(items))
        return self._columns(outputs, items), outputs

    def predicted_of_none(self):
        """``predicted`` for no example, which Paddle cannot run: for an example of zeros, without it."""
        feeds = [feed for feed in self.signature["feeds"] if feed["name"] in self.signature["inputs"]]
        shapes = [[1 if size == -1 else size for size in feed["shape"]] for feed in feeds]
        outputs = self.outputs({feed["name"]: np.zeros(shape, feed["dtype"]) for feed, shape in zip(feeds, shapes)})
        of_examples = {output["name"] for output in self.signature["outputs"] if output["per_example"]}
        columns = {name: column[:0] for name, column in self._columns(outputs).items()}
        return columns, {name: value[:0] if name in of_examples else value for name, value in outputs.items()}

    def _columns(self, outputs, items=()):
        columns = {}
        for task in self.signature["tasks"]:
            columns.update(signatures.columns_of(task, outputs, self._label(task, items)))
        return columns

    def leave_to_another(self):
        self.table.leave_to_another()

    def _count(self, task, columns):
        """Add a batch to the task's metric: examples without a label are skipped."""
        name, column, formula = task["metric"]
        label, prediction = columns[task["label_columns"][0]], columns.get(column + task["suffix"])
        if prediction is None:  # what it is taken of is not among the outputs
            return
        mask = ~np.isnan(label) if label.dtype.kind == "f" else np.ones(len(label), bool)
        if label.dtype.kind == "U":
            mask = label != ""
        elif task["negative_is_missing"]:
            mask &= label >= 0
        values = (prediction == label) if formula == "equal" else np.abs(prediction - label)
        total, count = self.totals.get(name + task["suffix"], (0.0, 0))
        self.totals[name + task["suffix"]] = total + float(values[mask].sum()), count + int(mask.sum())

    def metrics(self):
        """The package's metrics so far, or else those that the signature names; none of a task without a label."""
        if any(self.processes.gather(bool(self.counted[0]))):
            self.counted = self.counted if self.counted[0] else self.counter.create_metrics()
            return metric_state.accumulated(*self.counted, self.processes)
        totals = {}
        for of_one in self.processes.gather(self.totals):
            for name, counted in of_one.items():
                totals[name] = np.add(totals.get(name, (0.0, 0)), counted)
        return {name: float(total / count) for name, (total, count) in totals.items() if count}

    def _inputs(self, items):
        """The model's inputs out of a batch of the reader, checked: name -> array."""
        inputs = {}
        for place, feed in enumerate(self.signature["feeds"]):
            if feed["name"] in self.signature["inputs"]:
                if place >= len(items):
                    raise UserError(
                        f"an example has {len(items)} items, but the exported model's input "
                        f"{feed['name']} is item {place + 1}."
                    )
                inputs[feed["name"]] = _fitted(items[place], feed)
        return inputs

    def _label(self, task, items):
        """A task's labels, [B] or [B, number of labels], in a batch of the reader, or None if it gives none."""
        names = [feed["name"] for feed in self.signature["feeds"]]
        place = names.index(task["label"]) if task["label"] in names else len(items)
        return items[place] if place < len(items) else None

    def outputs(self, inputs):
        """All outputs for ``inputs``, both name -> array."""
        several = self._examples(inputs) > 1
        if self.predictor is None or (several and not self.takes_several):
            self.predictor, self.takes_several = self._open(inputs, several), several
            self.opened_at = time.perf_counter()
        started = time.perf_counter()
        values = _compute(self.predictor, inputs)
        self.model_s += time.perf_counter() - started
        return {output["name"]: value for output, value in zip(self.signature["outputs"], values)}

    def _examples(self, inputs):
        """The number of examples, by the inputs that may hold any number of them."""
        any_number = {feed["name"] for feed in self.signature["feeds"] if feed["shape"] and feed["shape"][0] == -1}
        return max((len(value) for name, value in inputs.items() if name in any_number), default=1)

    def _open(self, inputs, several):
        """A predictor: with oneDNN if that is faster, and runs ``inputs`` to the same outputs."""
        try:
            plain, expected = self._try(inputs, onednn=False)
        except Exception as error:  # of Paddle's own, under many names
            raise UserError(f"{self.folder}: Paddle {paddle.__version__} cannot run it: {last_line(error)}") from error
        why_not = why_no_onednn(self.folder, several)
        if why_not:
            LOG.info("oneDNN: off, %s; threads: %d", why_not, self.threads)
            return plain
        try:
            fast, outputs = self._try(inputs, onednn=True)
            trouble = None if _close(outputs, expected) else "its outputs are not those without it"
        except Exception as error:
            trouble = last_line(error)
        if trouble is not None:
            LOG.warning("oneDNN cannot run this model in Paddle %s and is off: %s", paddle.__version__, trouble)
        LOG.info("oneDNN: %s, threads: %d", "off" if trouble else "on", self.threads)
        return plain if trouble else fast

    def _try(self, inputs, onednn):
        opened = predictor(self.folder, self.threads, onednn)
        return opened, _compute(opened, inputs)


def _close(outputs, expected):
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(outputs, expected))


def _fitted(item, feed):
    """``item`` as the model's input ``feed``, or a UserError."""
    wanted, shape = feed["shape"], list(item.shape)
    if wanted[1:] == [1] and len(shape) == 1:  # as Paddle's executor takes it
        item = item.reshape(-1, 1)
        shape = list(item.shape)
    fits = len(shape) == len(wanted) and all(w in (-1, size) for w, size in zip(wanted, shape))
    if not fits or not np.can_cast(item.dtype, feed["dtype"], "same_kind"):
        raise UserError(
            f"the reader's batch has {shape} {item.dtype}, but the exported model's input {feed['name']} "
            f"is {wanted} {feed['dtype']} (-1: any size). Give the reader and data it was trained with."
        )
    return np.ascontiguousarray(item, feed["dtype"])


def _file(folder, ending):
    return os.path.join(folder, PREFIX + ending)


def why_no_onednn(folder, several):
    """Why oneDNN would make an exported model slower; None: it makes it faster.

    ``make bench TABLES="latency table_latency"`` measures it.

    Args:
        folder: that an export wrote.
        several: whether a batch has several examples.
    """
    path = _program(folder)
    # the older format also lists operators that the program has not, but only convolutions have an input "Filter"
    mark = b"conv2d" if path.endswith(".json") else b"Filter"
    with open(path, "rb") as file:
        if mark not in file.read():
            return "the model has no convolution"
    return None if several else "there is one example at a time"


def _program(folder):
    """Path of the program's file: Paddle 3's, or that of older releases."""
    return _file(folder, ".json" if os.path.exists(_file(folder, ".json")) else ".pdmodel")


def predictor(folder, threads, onednn):
    """Paddle Inference's predictor of an exported folder, on the CPU.

    Args:
        folder: that an export wrote.
        threads: of the mathematics.
        onednn: use oneDNN.
    """
    config = inference.Config(_program(folder), _file(folder, ".pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(threads)
    switch = "enable" if onednn else "disable"
    (getattr(config, f"{switch}_onednn", None) or getattr(config, f"{switch}_mkldnn"))()  # the older name
    return inference.create_predictor(config)


def _compute(opened, inputs):
    for name, value in inputs.items():
        handle = opened.get_input_handle(name)
        handle.reshape(value.shape)
        handle.copy_from_cpu(value)
    opened.run()
    return [opened.get_output_handle(name).copy_to_cpu() for name in opened.get_output_names()]
