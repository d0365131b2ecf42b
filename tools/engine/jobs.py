"""What each tool does: package, device, data, graph and loop put together, once for all tools."""

import contextlib
import logging
import os

from engine import loop, progress, visual
from engine.batches import CustomBatches, find_reader, open_batches
from engine.commands import Commands
from engine.config import keys_in_force
from engine.errors import Stopped, UserError
from engine.graphs import executor
from engine.graphs.device import set_device, set_seeds
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph
from engine.interface import offered
from engine.keys import check_unknown_keys
from engine.meter import Meter
from engine.package import Package
from engine.report import Report
from engine.saves import choice, encodings
from engine.saves.folders import new_folder
from engine.saves.session import Session
from engine.serving import export, predict, to_onnx
from engine.validation import Validation

LOG = logging.getLogger("engine")
GRAPHS = {graph.name: graph for graph in (DynamicGraph, StaticGraph)}
BANNER = "**************common.configs**********"


def run(graph_name, job, config, settings, overrides=()):
    """Do what a tool is for.

    Args:
        graph_name: "dynamic", "static" or "exported".
        job: "train", "infer" or "export".
        config: flat config dict.
        settings: the tools' own settings.
        overrides: texts KEY=VALUE, as given to ``load_config``.
    Raises:
        UserError: a mistake that the message explains.
        Stopped: a signal ended the training, which has been saved.
    """
    with Report(Commands(graph_name, job, config["yaml_path"], overrides), config, settings) as report:
        if graph_name == "exported":
            report.begin()
            predict.predict_folder(config, settings, report.journal)
            report.end()
        elif job == "export":
            report.begin()
            export_epoch(config, settings)
            report.end_of_export()
        else:
            train_or_infer(graph_name, job, config, settings, report)


def train_or_infer(graph_name, job, config, settings, report):
    """Train, or evaluate saved epochs. Arguments and errors: see ``run``."""
    if graph_name == "static":
        os.environ["CPU_NUM"] = str(settings.thread_num)
    _log_banner(graph_name, job, settings)
    package = Package(config["config_abs_dir"])
    place = set_device(settings)
    if settings.tune_process:
        executor.keep_tensors(place)
    set_seeds(settings.seed)
    reader, validation_reader = _readers(package, graph_name, job, config, settings)
    config = {**config, "runner.job": job}  # for readers whose files hold more than one part
    if reader is not None:
        batches, config = open_batches(reader, settings, config, job, place)
    package.encoding = encodings.find(reader, config)
    set_seeds(settings.seed)  # again, for the reader may have drawn
    graph = GRAPHS[graph_name](package, config, settings, job, place)
    if reader is None:
        batches = CustomBatches(graph.model.create_data_loader())
    meter = Meter(
        graph.name, job, settings.print_interval, _scalars(config, settings, job), graph.values_at_end(),
        open_bar=progress.bars(settings.progress, batches.steps), journal=report.journal,
    )  # fmt: skip
    if job == "infer":
        _infer(graph, batches, meter, settings, report)
        return
    validation = None
    if settings.validation_data_dir is not None:
        scalars = _scalars(config, settings, "validation")
        validation = Validation(graph, validation_reader, config, settings, scalars, place, report.journal)
    _train(graph, batches, meter, settings, config, validation, report)


def _scalars(config, settings, name):
    """What records numbers for VisualDL as well, or None."""
    return visual.open_log(config["config_abs_dir"], name) if settings.use_visual else None


def _readers(package, graph_name, job, config, settings):
    """The package's readers for the job and for validation in it; unknown keys are reported.

    None stands for a package that makes its own batches, and for no validation.
    """
    custom = graph_name == "static" and settings.reader_type == "CustomizeDataLoader"
    validates = job == "train" and settings.validation_data_dir is not None
    parts = ((job, not custom), ("validate", validates and not custom))
    readers = [find_reader(package, settings, part) if is_read else None for part, is_read in parts]
    declared = [name for reader in readers for name in offered(reader, "config_keys")]
    check_unknown_keys(config, settings.strict, declared)
    return readers


def print_config(graph_name, job, config, settings, overrides):
    """Print every key in force, its value, and whether it is the default's, the file's or from ``-o``; valid YAML."""
    package = Package(config["config_abs_dir"])
    readers = _readers(package, graph_name, job, config, settings)
    declared = [name for reader in readers for name in offered(reader, "config_keys")]
    defaults = dict.fromkeys((f"runner.{name}" for name in declared), None)
    if graph_name in GRAPHS:  # an exported model has no wrapper
        defaults.update(offered(GRAPHS[graph_name].find_wrapper(package), "config_defaults"))
    for line in keys_in_force(config, overrides, defaults):
        print(line)


def _train(graph, batches, meter, settings, config, validation, report):
    names = None if validation is None else validation.names()
    session = Session(graph, config, settings, meter, names, report.journal)
    first = session.first()
    report.begin(run=session.run)
    session.listen()
    whose = "training" if validation is None else "validation"
    try:
        loop.train(graph, batches, first, settings.epochs, meter, session, validation)
    except Stopped as stop:
        report.end_of_training(session.results(), whose, stop)
        raise
    report.end_of_training(session.results(), whose)


def _infer(graph, batches, meter, settings, report):
    report.begin()
    one = settings.infer_epoch
    epochs = choice.evaluated(settings) if one is None else [choice.epoch(settings, "infer_epoch", "evaluate")]

    def load(epoch):
        LOG.info("load model epoch %d", epoch)
        graph.read(os.path.join(settings.infer_load_path, str(epoch)))

    write_data = lambda epoch: graph.write_data(settings.infer_load_path)  # noqa: E731 (a callback)
    numbers = loop.infer(graph, batches, epochs, meter, load, write_data)
    report.end_of_evaluation(numbers, _can_be_exported(graph.package, settings))


def _can_be_exported(package, settings):
    """Whether tools/export.py knows what to export of a package."""
    if not package.has_part("static_model"):
        return False
    if settings.save_inference_fetch_varnames:
        return True
    with contextlib.suppress(UserError):  # its module needs another that is not installed
        return offered(StaticGraph.find_wrapper(package), "export_tasks") is not None
    return False


def export_epoch(config, settings):
    """Write a saved epoch of either graph as an exported model.

    Raises:
        UserError: a mistake that the message explains.
    """
    package = Package(config["config_abs_dir"])
    reader, _ = _readers(package, "static", "export", config, settings)
    package.encoding = encodings.find(reader, config)
    epoch = choice.epoch(settings, "export_epoch", "export")
    path = os.path.realpath(settings.export_path)
    _check_replaceable(path)
    graph = StaticGraph(package, config, settings, "export", set_device(settings))
    graph.read(os.path.join(settings.infer_load_path, str(epoch)))
    with new_folder(*os.path.split(path)) as folder:
        graph.export(folder)
        if settings.export_format == "onnx":
            to_onnx.write(folder)
    LOG.info("exported epoch %d", epoch)


def _check_replaceable(path):
    """Raise UserError if ``path`` holds anything but an earlier export: writing the new one would remove it."""
    there = os.listdir(path) if os.path.isdir(path) else [path] if os.path.lexists(path) else []
    strange = sorted(name for name in there if not name.startswith(export.PREFIX + ".") and name != export.SIGNATURE)
    if strange:
        raise UserError(
            f"runner.export_path: {path}: {strange[0]} is in the way; no export wrote it, and it would be lost. "
            "Give another folder."
        )


def _log_banner(graph_name, job, settings):
    names = ["use_gpu", "use_xpu"] + (["use_npu"] if graph_name == "dynamic" else []) + ["use_visual"]
    values = {name: getattr(settings, name) for name in names}
    if job == "train":
        values.update(
            {
                name: getattr(settings, name)
                for name in ("train_batch_size", "train_data_dir", "epochs", "print_interval", "model_save_path")
            }
        )
    else:
        values.update(
            infer_batch_size=settings.infer_batch_size,
            test_data_dir=settings.test_data_dir,
            start_epoch=settings.infer_start_epoch,
            end_epoch=settings.infer_end_epoch,
            print_interval=settings.print_interval,
            model_load_path=settings.infer_load_path,
        )
    if graph_name == "static":
        LOG.info("cpu_num: %s", os.environ.get("CPU_NUM"))
    LOG.info(BANNER)
    LOG.info(", ".join(f"{name}: {value}" for name, value in values.items()))
    LOG.info(BANNER)
