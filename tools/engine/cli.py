"""The command line of all tools: ``-m config.yaml -o key=value ...``. Imports paddle once the process is set."""

import argparse
import logging
import os
import sys
import warnings

from engine.config import load_config
from engine.errors import Stopped, UserError
from engine.graphs import process_settings
from engine.keys import read_settings

LOG = logging.getLogger("engine")
# What Paddle says of its own code at each run, and nobody here can act on
PADDLES_WARNINGS = ("No ccache found", "When training, we now always track", "Tensor do not have 'place' interface")


def main(graph, job):
    """Run a tool and leave the process: code 0, or 2 after one message if the user made a mistake.

    Args:
        graph: "dynamic", "static" or "exported".
        job: "train", "infer" or "export".
    """
    parser = _Parser()
    parser.add_argument("-m", "--config_yaml", required=True, metavar="PATH", help="YAML file of a model package")
    parser.add_argument(
        "-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the YAML"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show every key in force and where its value is from, and end"
    )
    args = parser.parse_args()
    _start_log()
    try:
        _do(graph, job, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        sys.exit(128 + stop.signal_number)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as the tools say it of a config."""

    def error(self, message):
        self.exit(2, f"error: {message}. For instance: -m config.yaml -o runner.epochs=2\n")


def _do(graph, job, args):
    config = load_config(args.config_yaml, args.opt)
    settings = read_settings(config, job)
    if settings.tune_process:
        process_settings.tune()
    try:
        from engine import jobs  # not before: this imports paddle
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error}. Activate the environment that has it (after make: . .venv/bin/activate), or install what the "
            "tools need: pip install paddlepaddle numpy pyyaml"
        ) from error

    if args.print_config:
        jobs.print_config(graph, job, config, settings, args.opt)
    else:
        jobs.run(graph, job, config, settings, args.opt)


def _start_log():
    os.environ.setdefault("GLOG_minloglevel", "2")  # of Paddle's C++ code: errors, not notes on its own working
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # paddle has put a handler of its own on the root logger
    for words in PADDLES_WARNINGS:
        warnings.filterwarnings("ignore", words)
