"""An exported model over a folder of data, by Paddle Inference. Needs the reader and the exported files alone."""

import logging
import os
import time

from engine import loop, progress
from engine.batches import Batches, find_reader, open_dataset
from engine.checkpoints import compatibility, folders
from engine.errors import UserError, user_errors
from engine.graphs.static import StaticGraph
from engine.interface import offered
from engine.journal import SILENT, visual_log
from engine.keys import check_unknown_keys
from engine.meter import Meter
from engine.package import Package
from engine.seeds import set_seeds
from engine.serving.exported import ExportedModel
from engine.serving.prediction_files import CsvFile, NpzFile, SharedTable

LOG = logging.getLogger("engine")


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
    processes = settings.processes
    model = ExportedModel(settings.export_path, settings.predict_threads, processes)
    model.check_encoding(compatibility.find_encoding(reader, config))
    model.counter = _counter(package, config, model.signature)
    dataset = open_dataset(reader, settings, config, "infer")
    batches = Batches(dataset, settings, "infer", may_be_empty=True)

    def predict_into(file):
        table = None if file is None else file_kind(file, model.signature)
        model.table = table if processes.number == 1 else SharedTable(table, processes)
        scalars = visual_log(config["config_abs_dir"], "infer") if settings.use_visual and processes.is_first else None
        open_bar = progress.bars(settings.progress, batches.steps) if processes.is_first else None
        meter = Meter(
            model.name, "infer", settings.print_interval, scalars, open_bar=open_bar, journal=journal,
            processes=processes,
        )  # fmt: skip
        loop.infer(model, batches, [0], meter, lambda epoch: None, lambda epoch: model.end())

    if processes.is_first:
        folders.write_file(settings.predict_path, predict_into)
    else:
        predict_into(None)
    examples, model_s = (sum(of_all) for of_all in zip(*processes.gather((model.examples, model.model_s))))
    if not examples:
        LOG.warning("%s has no example: %s has none either", settings.test_data_dir, settings.predict_path)
    LOG.info(
        "%d examples into %s, ips: %.2f ins/s, the model alone %.2f ins/s",
        examples, settings.predict_path, examples / (time.perf_counter() - model.opened_at),
        examples / (model_s / processes.number),
    )  # fmt: skip


def _counter(package, config, signature):
    """The package's StaticModel, if it can count its metrics from the outputs of an exported model; else None.

    Prediction needs no model files, so it is none where they are not there or the config is no longer theirs.
    """
    try:
        with user_errors(config["yaml_path"]):
            model = StaticGraph.find_wrapper(package)(config)
            names = offered(model, "observed_outputs")
    except UserError:
        return None
    if names is None or not {*names()} <= {output["name"] for output in signature["outputs"]}:
        return None
    return model
