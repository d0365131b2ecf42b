"""An exported model over a folder of data, by Paddle Inference. Needs the reader and the exported files alone."""

import json
import logging
import os
import time

import numpy as np
import paddle
from paddle import inference

from engine import loop, progress, visual
from engine.batches import Batches, find_reader, open_dataset
from engine.errors import UserError
from engine.graphs.device import set_seeds
from engine.interface import offered
from engine.journal import SILENT
from engine.keys import check_unknown_keys
from engine.meter import Meter, Step
from engine.package import Package
from engine.saves import encodings, folders, manifests
from engine.serving.export import FORMAT, PREFIX, SIGNATURE
from engine.serving.prediction_files import CsvFile, NpzFile

LOG = logging.getLogger("engine")
PARTS = {  # kind of a task -> the outputs it may have
    "classes": ("logits", "probabilities"), "binary": ("logits", "probabilities"), "regression": ("value",)
}  # fmt: skip


def predict_folder(config, settings, journal=SILENT):
    """Predict every example of ``test_data_dir``, in order, and write ``predict_path``, whole or not at all.

    Args:
        config: flat config dict.
        settings: the tools' own settings.
        journal: takes the numbers as well.
    Raises:
        UserError: a mistake that the message explains.
    """
    file_kind = {".csv": CsvFile, ".npz": NpzFile}.get(os.path.splitext(settings.predict_path)[1])
    if file_kind is None:
        raise UserError(f"runner.predict_path is {settings.predict_path!r}, but must end in .csv or .npz.")
    if settings.use_gpu is True or settings.use_xpu or settings.use_npu:
        raise UserError("tools/predict.py computes on the CPU. Set runner.use_gpu, use_xpu and use_npu to false.")
    package = Package(config["config_abs_dir"])
    reader = find_reader(package, settings, "infer")
    check_unknown_keys(config, settings.strict, offered(reader, "config_keys"))
    config = {**config, "runner.job": "infer", "runner.inference": True}  # the latter is what PaddleRec tells readers
    set_seeds(settings.seed)  # for readers that draw
    model = ExportedModel(settings.export_path, settings.predict_threads or _cores())
    model.check_encoding(encodings.find(reader, config))
    batches = Batches(open_dataset(reader, settings, config, "infer"), settings, "infer", paddle.CPUPlace())

    def predict_into(file):
        model.table = file_kind(file, model.signature)
        scalars = visual.open_log(config["config_abs_dir"], "infer") if settings.use_visual else None
        open_bar = progress.bars(settings.progress, batches.steps)
        meter = Meter(model.name, "infer", settings.print_interval, scalars, open_bar=open_bar, journal=journal)
        loop.infer(model, batches, [0], meter, lambda epoch: None, lambda epoch: model.table.close())

    folders.write_file(settings.predict_path, predict_into)
    LOG.info(
        "%d examples into %s, ips: %.2f ins/s, the model alone %.2f ins/s",
        model.examples, settings.predict_path, model.examples / (time.perf_counter() - model.opened_at),
        model.examples / model.model_s,
    )  # fmt: skip


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_signature(folder):
    """What ``export`` wrote of a folder, its files checked.

    Raises:
        UserError: the folder or one of its files is missing or changed.
    """
    path = os.path.join(folder, SIGNATURE)
    try:
        with open(path, encoding="utf-8") as file:
            signature = json.load(file)
        known = signature["format"] == FORMAT
        files = dict(signature["files"])
        _check_types(signature)
    except OSError as error:
        raise UserError(
            f"runner.export_path: {path} cannot be read ({error.strerror}). Give a folder that tools/export.py wrote."
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: this is not the signature of an exported model ({error!r}). Export it again."
        ) from error
    if not known:
        raise UserError(f"{path}: its format is {signature['format']!r}; these tools read format {FORMAT}.")
    manifests.check_files(folder, files, path)
    return signature


def _check_types(signature):
    """Raise ValueError, KeyError or TypeError where a signature is not as ``export`` writes it."""
    for feed in signature["feeds"]:
        np.dtype(feed["dtype"]), [int(size) for size in feed["shape"]], feed["name"].strip()
    outputs = [output["name"] for output in signature["outputs"] if type(output["per_example"]) is bool]
    feeds = [feed["name"] for feed in signature["feeds"]]
    for task in signature["tasks"]:
        parts = PARTS[task["kind"]]
        if not isinstance(task["suffix"], str) or not task["outputs"] or not set(task["outputs"]) <= set(parts):
            raise ValueError("a task of it is described wrongly")
        if not set(task["outputs"].values()) <= set(outputs) or task["label"] not in [*feeds, None]:
            raise ValueError("its names do not fit together")
    if not manifests.are_digests(signature.get("encoding", {})):
        raise ValueError("its encoding is described wrongly")
    if not signature["inputs"] or not set(signature["inputs"]) <= set(feeds):
        raise ValueError("its names do not fit together")


class ExportedModel:
    """An exported folder, run as the tools run a graph; ``table`` takes what it predicts.

    Args:
        folder: that an export wrote.
        threads: of the mathematics.
    Raises:
        UserError: it is no such folder.
    """

    name = "exported"

    def __init__(self, folder, threads):
        self.folder, self.threads = folder, threads
        self.signature = read_signature(folder)
        if os.path.exists(_file(folder, ".json")) and paddle.__version__.startswith("2."):  # it would crash
            raise UserError(
                f"{folder}: Paddle {self.signature.get('paddle')} exported it, in a form that Paddle "
                f"{paddle.__version__} cannot read. Export it with this release."
            )
        self.predictor = self.table = None
        self.model_s = 0.0

    def check_encoding(self, found):
        """Raise UserError if the reader's inputs are encoded by other files than the training's."""
        signature = os.path.join(self.folder, SIGNATURE)
        encodings.check(self.signature.get("encoding"), found, signature, _file(self.folder, "."))

    def begin_evaluation(self):
        self.examples, self.totals = 0, {}

    def status(self):
        """Nothing: the package's network is not there to be asked."""
        return {}

    def infer_step(self, batch):
        """Predict a batch: (Step, number of examples)."""
        items = [np.asarray(item) for item in batch]
        outputs, examples = self.outputs(self._inputs(items)), len(items[0])
        columns = {}
        for task in self.signature["tasks"]:
            columns.update(self._columns(task, outputs, self._label(task, items)))
        self.table.add(columns, outputs)
        self.examples += examples
        return Step({}, self.metrics), examples

    def _columns(self, task, outputs, label):
        """What a table says of a task, and its label where the reader gives one: name -> [B]."""
        names, suffix = task["outputs"], task["suffix"]
        columns = {} if label is None else {f"label{suffix}": label}
        if task["kind"] == "regression":
            columns[f"value{suffix}"] = prediction = outputs[names["value"]].reshape(-1)
        elif task["kind"] == "binary":
            positive = outputs[names["probabilities"]] - 0.5 if "probabilities" in names else outputs[names["logits"]]
            columns[f"prediction{suffix}"] = prediction = (positive.reshape(-1) > 0).astype("int64")
            if "probabilities" in names:
                columns[f"probability{suffix}"] = outputs[names["probabilities"]].reshape(-1)
        else:
            columns[f"prediction{suffix}"] = prediction = outputs[next(iter(names.values()))].argmax(axis=-1)
            if "probabilities" in names:
                of_prediction = np.take_along_axis(outputs[names["probabilities"]], prediction[:, None], axis=1)
                columns[f"probability{suffix}"] = of_prediction[:, 0]
        if label is not None:
            self._count(task, prediction, label)
        return columns

    def _count(self, task, prediction, label):
        """Add a batch to the task's metric: examples without a label are left out."""
        is_number = task["kind"] == "regression"
        there = ~np.isnan(label) if label.dtype.kind == "f" else np.ones(len(label), bool)
        there &= is_number | (label >= 0)
        error = np.abs(prediction - label)[there] if is_number else (prediction == label)[there]
        total, count = self.totals.get(task["suffix"], (0.0, 0))
        self.totals[task["suffix"]] = total + float(error.sum()), count + int(there.sum())

    def metrics(self):
        """Each task's accuracy so far, or mean absolute error, by name; a task without a label has none."""
        names = {
            task["suffix"]: "mae" if task["kind"] == "regression" else "Accuracy" for task in self.signature["tasks"]
        }
        return {f"{names[suffix]}{suffix}": total / count for suffix, (total, count) in self.totals.items() if count}

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
        """A task's labels [B] in a batch of the reader, or None if it gives none."""
        names = [feed["name"] for feed in self.signature["feeds"]]
        place = names.index(task["label"]) if task["label"] in names else len(items)
        return items[place].reshape(-1) if place < len(items) else None

    def outputs(self, inputs):
        """All outputs for ``inputs``, both name -> array."""
        if self.predictor is None:
            self.predictor = self._open(inputs)
            self.opened_at = time.perf_counter()
        started = time.perf_counter()
        values = _compute(self.predictor, inputs)
        self.model_s += time.perf_counter() - started
        return {output["name"]: value for output, value in zip(self.signature["outputs"], values)}

    def _open(self, inputs):
        """A predictor: with oneDNN if that runs ``inputs`` to the same outputs as without it."""
        try:
            plain, expected = self._try(inputs, onednn=False)
        except Exception as error:  # of Paddle's own, under many names
            raise UserError(f"{self.folder}: Paddle {paddle.__version__} cannot run it: {_last_line(error)}") from error
        try:
            fast, outputs = self._try(inputs, onednn=True)
            trouble = None if _close(outputs, expected) else "its outputs are not those without it"
        except Exception as error:
            trouble = _last_line(error)
        if trouble is not None:
            LOG.warning("oneDNN cannot run this model in Paddle %s and is off: %s", paddle.__version__, trouble)
        LOG.info("oneDNN: %s, threads: %d", "off" if trouble else "on", self.threads)
        return plain if trouble else fast

    def _try(self, inputs, onednn):
        opened = predictor(self.folder, self.threads, onednn)
        return opened, _compute(opened, inputs)


def _last_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


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


def predictor(folder, threads, onednn):
    """Paddle Inference's predictor of an exported folder, on the CPU.

    Args:
        folder: that an export wrote.
        threads: of the mathematics.
        onednn: use oneDNN.
    """
    program = _file(folder, ".json" if os.path.exists(_file(folder, ".json")) else ".pdmodel")
    config = inference.Config(program, _file(folder, ".pdiparams"))
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
