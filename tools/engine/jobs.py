"""What each tool does: package, device, data, graph and loop put together, once for all tools."""

import logging
import os

from engine import loop, visual
from engine.batches import Batches, CustomBatches, find_reader, open_dataset
from engine.config import keys_in_force
from engine.errors import UserError
from engine.graphs import executor
from engine.graphs.device import set_device, set_seeds
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph
from engine.interface import offered
from engine.keys import check_unknown_keys
from engine.meter import Meter
from engine.package import Package
from engine.saves import runs
from engine.saves.folders import new_folder
from engine.saves.session import Session
from engine.serving import export, predict, to_onnx

LOG = logging.getLogger("engine")
GRAPHS = {graph.name: graph for graph in (DynamicGraph, StaticGraph)}
BANNER = "**************common.configs**********"


def run(graph_name, job, config, settings):
    """Do what a tool is for.

    Args:
        graph_name: "dynamic", "static" or "exported".
        job: "train", "infer" or "export".
        config: flat config dict.
        settings: the tools' own settings.
    Raises:
        UserError: a mistake that the message explains.
        Stopped: a signal ended the training, which has been saved.
    """
    if graph_name == "exported":
        predict.predict_folder(config, settings)
    elif job == "export":
        export_epoch(config, settings)
    else:
        train_or_infer(graph_name, job, config, settings)


def train_or_infer(graph_name, job, config, settings):
    """Train, or evaluate saved epochs. Arguments and errors: see ``run``."""
    if graph_name == "static":
        os.environ["CPU_NUM"] = str(settings.thread_num)
    _log_banner(graph_name, job, settings)
    package = Package(config["config_abs_dir"])
    place = set_device(settings)
    if settings.tune_process:
        executor.keep_tensors(place)
    set_seeds(settings.seed)
    reader = _reader(package, graph_name, job, config, settings)
    config = {**config, "runner.job": job}  # for readers whose files hold more than one part
    batches = None
    if reader is not None:
        batches = Batches(open_dataset(reader, settings, config, job), settings, job, place)
        if settings.steps_per_epoch is None:
            config["runner.steps_per_epoch"] = batches.steps()  # for packages with a schedule
    set_seeds(settings.seed)  # again, for the reader may have drawn
    graph = GRAPHS[graph_name](package, config, settings, job, place)
    if batches is None:
        batches = CustomBatches(graph.model.create_data_loader())
    scalars = visual.open_log(config["config_abs_dir"], job) if settings.use_visual else None
    meter = Meter(graph.name, job, settings.print_interval, scalars, graph.values_at_end())
    if job == "train":
        _train(graph, batches, meter, settings, config)
    else:
        _infer(graph, batches, meter, settings)


def _reader(package, graph_name, job, config, settings):
    """The package's reader, its unknown keys told; None where the package makes its own batches."""
    custom = graph_name == "static" and settings.reader_type == "CustomizeDataLoader"
    reader = None if custom else find_reader(package, settings, job)
    check_unknown_keys(config, settings.strict, offered(reader, "config_keys"))
    return reader


def print_config(graph_name, job, config, settings, overrides):
    """Print every key in force, its value, and whether it is the default's, the file's or from ``-o``; valid YAML."""
    package = Package(config["config_abs_dir"])
    reader = _reader(package, graph_name, job, config, settings)
    defaults = dict.fromkeys((f"runner.{name}" for name in offered(reader, "config_keys")), None)
    if graph_name in GRAPHS:  # an exported model has no wrapper
        defaults.update(offered(GRAPHS[graph_name].find_wrapper(package), "config_defaults"))
    for line in keys_in_force(config, overrides, defaults):
        print(line)


def _train(graph, batches, meter, settings, config):
    session = Session(graph, config, settings, meter)
    first = session.first()
    session.listen()
    loop.train(graph, batches, first, settings.epochs, meter, session)


def _infer(graph, batches, meter, settings):
    wanted = range(settings.infer_start_epoch, settings.infer_end_epoch)
    there = runs.epochs(settings.infer_load_path, settings.infer_run)
    found = [epoch for epoch in there if epoch in wanted]
    if not found:
        raise UserError(
            f"runner.infer_load_path: {settings.infer_load_path} has none of the epochs "
            f"{wanted.start} to {wanted.stop - 1} (infer_start_epoch, infer_end_epoch). It has: "
            f"{', '.join(map(str, there)) or 'none'}."
        )
    missing = wanted.stop - wanted.start - len(found)  # len() has a limit
    if missing:
        first = next(epoch for epoch in wanted if epoch not in found)
        LOG.warning(
            "epoch %d%s is not in %s and left out",
            first,
            f" (and {missing - 1} more)" if missing > 1 else "",
            settings.infer_load_path,
        )

    def load(epoch):
        LOG.info("load model epoch %d", epoch)
        graph.read(os.path.join(settings.infer_load_path, str(epoch)))

    loop.infer(graph, batches, found, meter, load, lambda epoch: graph.write_data(settings.infer_load_path))


def export_epoch(config, settings):
    """Write a saved epoch of either graph as an exported model.

    Raises:
        UserError: a mistake that the message explains.
    """
    package = Package(config["config_abs_dir"])
    _reader(package, "static", "export", config, settings)
    epoch = _epoch_to_export(settings)
    path = os.path.realpath(settings.export_path)
    _check_replaceable(path)
    graph = StaticGraph(package, config, settings, "export", set_device(settings))
    graph.read(os.path.join(settings.infer_load_path, str(epoch)))
    with new_folder(*os.path.split(path)) as folder:
        graph.export(folder)
        if settings.export_format == "onnx":
            to_onnx.write(folder)
    LOG.info("exported epoch %d", epoch)


def _epoch_to_export(settings):
    there, wanted = runs.epochs(settings.infer_load_path, settings.infer_run), settings.export_epoch
    if wanted in there or (wanted is None and there):
        return there[-1] if wanted is None else wanted
    raise UserError(
        f"runner.infer_load_path: {settings.infer_load_path} has no epoch {'at all' if wanted is None else wanted} "
        f"to export (export_epoch). It has: {', '.join(map(str, there)) or 'none'}."
    )


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
