"""The command line of all four tools: ``-m config.yaml -o key=value ...``"""

import argparse
import logging
import os
import sys

from engine import loop, visual
from engine.batches import Batches, CustomBatches, find_reader, open_dataset
from engine.checkpoint import saved_epochs
from engine.config import check_unknown_keys, load_config, read_settings
from engine.device import set_device, set_seeds
from engine.errors import Stopped, UserError
from engine.meter import Meter
from engine.package import Package
from engine.session import Session

LOG = logging.getLogger("engine")
BANNER = "**************common.configs**********"


def main(graph_class, job):
    """Run a tool and leave the process: code 0, or 2 after one message if the user made a mistake.

    Args:
        graph_class: DynamicGraph or StaticGraph.
        job: "train" or "infer".
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", "--config_yaml", required=True, metavar="PATH", help="YAML file of a model package")
    parser.add_argument(
        "-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the YAML"
    )
    args = parser.parse_args()
    _start_log()
    try:
        _run(graph_class, job, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        LOG.info("stopped; go on with -o runner.resume=auto")
        sys.exit(128 + stop.signal_number)


def _start_log():
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # paddle has put a handler of its own on the root logger


def _run(graph_class, job, args):
    config = load_config(args.config_yaml, args.opt)
    settings = read_settings(config, job)
    if graph_class.name == "static":
        os.environ["CPU_NUM"] = str(settings.thread_num)
    _log_banner(graph_class.name, job, settings)
    package = Package(config["config_abs_dir"])
    place = set_device(settings)
    set_seeds(settings.seed)
    custom = graph_class.name == "static" and settings.reader_type == "CustomizeDataLoader"
    reader = None if custom else find_reader(package, settings, job)
    check_unknown_keys(config, settings.strict, getattr(reader, "config_keys", ()))
    config["runner.job"] = job  # for readers whose files hold more than one part
    batches = None if custom else Batches(open_dataset(reader, settings, config, job), settings, job, place)
    if batches is not None and settings.steps_per_epoch is None:
        config["runner.steps_per_epoch"] = batches.steps()  # for packages with a schedule
    set_seeds(settings.seed)  # again, for the reader may have drawn
    graph = graph_class(package, config, settings, job, place)
    if custom:
        batches = CustomBatches(graph.model.create_data_loader())
    scalars = visual.open_log(config["config_abs_dir"], job) if settings.use_visual else None
    meter = Meter(graph.name, job, settings.print_interval, scalars)
    (_train if job == "train" else _infer)(graph, batches, meter, settings, config)


def _train(graph, batches, meter, settings, config):
    session = Session(graph, config, settings)
    first = session.first()
    session.listen()
    loop.train(graph, batches, first, settings.epochs, meter, session)


def _infer(graph, batches, meter, settings, config):
    wanted = range(settings.infer_start_epoch, settings.infer_end_epoch)
    there = saved_epochs(settings.infer_load_path)
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
