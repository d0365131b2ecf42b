"""The jobs of the tools: each puts package, device, data, graph and loop together."""

import contextlib
import logging
import os
import pkgutil

from engine import loop, processes, progress
from engine.batches import CustomBatches, find_reader, open_batches
from engine.checkpoints import compatibility, folders, which
from engine.checkpoints.session import Session
from engine.config import keys_in_force
from engine.errors import Lost, Stopped, UserError
from engine.graphs import executor, process
from engine.graphs.device import set_device
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph, result_path
from engine.interface import offered
from engine.journal import visual_log
from engine.keys import check_unknown_keys, default_values
from engine.meter import Meter
from engine.package import Package
from engine.report import Report
from engine.seeds import set_seeds
from engine.serving import export as exporting
from engine.serving import predict as predicting
from engine.serving import signature, to_onnx
from engine.validation import Validation

LOG = logging.getLogger("engine")
GRAPHS = {graph.name: graph for graph in (DynamicGraph, StaticGraph)}
BANNER = "**************common.configs**********"


def run(tool, config, settings, overrides=()):
    """Do what a tool is for.

    Args:
        tool: a ``tools.Tool``.
        config: flat config dict.
        settings: the tools' own settings.
        overrides: texts KEY=VALUE, as given to ``load_config``.
    Raises:
        UserError: a mistake that the message explains.
        Lost: another process of the job has ended, or hangs.
        Stopped: a signal ended the run after a step, which has been saved.
    """
    with processes.joined(settings.processes_timeout) as settings.processes:
        if settings.processes.number > 1:
            executor.keep_program_order()
        try:
            _run(tool, config, settings, overrides)
        except (UserError, Lost, Stopped):
            raise
        except Exception as error:
            raise settings.processes.loss_of_another(error) or error from error


def _run(tool, config, settings, overrides):
    with process.as_new(tool.graph), Report(tool, config, settings, overrides) as report:
        if settings.log_json is not None:
            settings.processes.first(lambda: folders.check_file(settings.log_json, "runner.log_json"))
        pkgutil.resolve_name(tool.run)(tool, config, settings, report)


def train(tool, config, settings, report):
    """Train, validating after each epoch if there is validation data. Arguments and errors of all jobs: see ``run``."""
    graph, batches, meter, config, validation_reader = _open(tool, config, settings, report, "model_save_path")
    validation = names = None
    if settings.validation_data_dir is not None:
        scalars = _scalars(config, settings, "validation")
        validation = Validation(graph, validation_reader, config, settings, scalars, report.journal)
        names = validation.names()
    source = "training" if validation is None else "validation"
    evaluated = graph if validation is None else validation.graph
    higher_is_better = {**graph.higher_is_better(), **evaluated.higher_is_better()}
    with Session(graph, config, settings, meter, names, report.journal, higher_is_better) as session:
        first = session.first()
        report.begin(run=session.run)
        session.listen()
        stopped = None
        try:
            loop.train(graph, batches, first, settings.epochs, meter, session, validation)
        except Stopped as stop:
            stopped = stop
        results, best = settings.processes.first(lambda: (session.results(), session.best()), takes_long=True)
        report.end_of_training(results, best, source, stopped)
        if stopped is not None:
            raise stopped


def infer(tool, config, settings, report):
    """Evaluate checkpoints."""
    graph, batches, meter, *_ = _open(tool, config, settings, report, "infer_load_path")
    report.begin()

    def chosen():
        if settings.infer_epoch is None:
            return which.to_evaluate(settings)
        return [which.chosen_epoch(settings, "infer_epoch", "evaluate")]

    epochs = settings.processes.first(chosen, takes_long=True)

    def load(epoch):
        LOG.info("load model epoch %d", epoch)
        graph.read(os.path.join(settings.infer_load_path, str(epoch)))

    def write_data(_):
        graph.write_data(settings.infer_load_path)

    results = loop.infer(graph, batches, epochs, meter, load, write_data)
    report.end_of_evaluation(results, _can_be_exported(graph.package, settings))


def export(tool, config, settings, report):
    """Write a checkpoint, of either graph, as an exported model."""
    folders.check_folder(settings.export_path, "runner.export_path")
    report.begin()
    package = Package(config["config_abs_dir"])
    reader, _ = _readers(tool, package, config, settings)
    package.encoding = compatibility.find_encoding(reader, config)
    epoch = which.chosen_epoch(settings, "export_epoch", "export")
    path = os.path.realpath(settings.export_path)
    _check_replaceable(path)
    graph = StaticGraph(package, config, settings, "export", set_device(settings))
    graph.read(os.path.join(settings.infer_load_path, str(epoch)))
    with folders.new_folder(*os.path.split(path)) as folder:
        exporting.write_graph(graph, folder)
        if settings.export_format == "onnx":
            to_onnx.write(folder)
    LOG.info("exported epoch %d", epoch)
    report.end_of_export()


def predict(tool, config, settings, report):
    """Write an exported model's predictions for the test data."""
    settings.processes.first(lambda: folders.check_file(settings.predict_path, "runner.predict_path"))
    report.begin()
    try:
        predicting.predict_folder(config, settings, report.journal)
    except UserError:
        if settings.processes.is_first and os.path.lexists(settings.predict_path):
            LOG.warning("%s is from an earlier run; this run wrote no predictions", settings.predict_path)
        raise
    report.end()


def print_config(tool, config, settings, overrides):
    """Print every key in force, its value, and whether it is the default's, the file's or from ``-o``; valid YAML."""
    package = Package(config["config_abs_dir"])
    defaults = {}
    for keys in _declared(_readers(tool, package, config, settings)):
        defaults.update(default_values(keys) if isinstance(keys, dict) else {f"runner.{name}": None for name in keys})
    if tool.graph in GRAPHS:  # an exported model has no wrapper
        defaults.update(offered(GRAPHS[tool.graph].find_wrapper(package), "config_defaults"))
    for line in keys_in_force(config, overrides, defaults):
        print(line)


def _open(tool, config, settings, report, output_key):
    """(graph, batches, meter, config for the package, reader for validation or None) to train or evaluate with."""
    output = getattr(settings, output_key)

    if tool.job == "train" and settings.use_save_data and settings.processes.number > 1:
        raise UserError("runner.use_save_data is true, but several processes train: each has only a part of a batch.")

    def check_output():
        folders.check_folder(output, f"runner.{output_key}")
        if tool.graph == "static" and settings.use_save_data:
            folders.check_file(result_path(output), f"runner.use_save_data, in {output_key}")

    settings.processes.first(check_output)
    if tool.graph == "static":
        os.environ["CPU_NUM"] = str(settings.thread_num)
    _log_banner(tool, settings)
    package = Package(config["config_abs_dir"])
    place = set_device(settings)
    if settings.tune_process:
        executor.keep_tensors(place)
    set_seeds(settings.seed)
    reader, validation_reader = _readers(tool, package, config, settings)
    config = {**config, "runner.job": tool.job}  # for readers whose files hold more than one part
    if reader is not None:
        batches, config = open_batches(reader, settings, config, tool.job)
    package.encoding = compatibility.find_encoding(reader, config)
    set_seeds(settings.seed)  # again: the reader may have drawn
    graph = GRAPHS[tool.graph](package, config, settings, tool.job, place)
    graph.exporter = exporting.write_graph
    if reader is None:
        by_rows = tool.job == "train" or graph.evaluates_by_rows
        batches = CustomBatches(graph.model.create_data_loader(), settings.processes, by_rows)
    elif graph.evaluates_by_rows:
        batches.spread_by_rows()
    meter = Meter(
        tool.graph, tool.job, settings.print_interval, _scalars(config, settings, tool.job), graph.values_at_end(),
        open_bar=progress.bars(settings.progress, batches.steps) if settings.processes.is_first else None,
        journal=report.journal, higher_is_better=graph.higher_is_better(), processes=settings.processes,
        by_rows=graph.evaluates_by_rows,
    )  # fmt: skip
    return graph, batches, meter, config, validation_reader


def _scalars(config, settings, name):
    is_wanted = settings.use_visual and settings.processes.is_first
    return visual_log(config["config_abs_dir"], name) if is_wanted else None


def _readers(tool, package, config, settings):
    """The package's readers for the job and for validation; each may be None. Unknown keys are reported."""
    custom = tool.graph == "static" and settings.reader_type == "CustomizeDataLoader"
    validates = tool.job == "train" and settings.validation_data_dir is not None
    needed = {tool.job: not custom, "validate": validates and not custom}
    readers = [find_reader(package, settings, part) if is_needed else None for part, is_needed in needed.items()]
    check_unknown_keys(config, settings.strict, [name for keys in _declared(readers) for name in keys])
    return readers


def _declared(readers):
    """The ``config_keys`` of each reader."""
    return [offered(reader, "config_keys") for reader in readers]


def _can_be_exported(package, settings):
    """Whether tools/export.py can know what to export of a package."""
    if not package.has_part("static_model"):
        return False
    if settings.save_inference_fetch_varnames:
        return True
    with contextlib.suppress(UserError):  # its module needs another that is not installed
        return offered(StaticGraph.find_wrapper(package), "export_tasks") is not None
    return False


def _check_replaceable(path):
    """Raise UserError if ``path`` holds anything but an earlier export: writing the new one would remove it."""
    existing = os.listdir(path) if os.path.isdir(path) else [path] if os.path.lexists(path) else []
    own = [name for name in existing if name.startswith(f"{signature.PREFIX}.") or name == signature.SIGNATURE]
    others = sorted(set(existing) - set(own))
    if others:
        raise UserError(
            f"runner.export_path: {path}: {others[0]} is in the way; no export wrote it, and it would be lost. "
            "Give another folder."
        )


def _log_banner(tool, settings):
    if tool.graph == "static":
        LOG.info("cpu_num: %s", os.environ.get("CPU_NUM"))
    LOG.info(BANNER)
    LOG.info(", ".join(f"{label}: {getattr(settings, key)}" for label, key in tool.banner.items()))
    LOG.info(BANNER)
