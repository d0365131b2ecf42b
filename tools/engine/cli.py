"""The command line of all tools: ``-m config.yaml -o key=value ...``. Imports paddle once the process is set up."""

import argparse
import contextlib
import logging
import os
import sys
import warnings

from engine import package, streams
from engine.config import load_config
from engine.errors import Lost, Stopped, UserError
from engine.graphs import process_settings
from engine.keys import read_settings
from engine.processes import announced, stay_for_the_others
from engine.tools import TOOLS

LOG = logging.getLogger("engine")
LOGS = (LOG, logging.getLogger("dselect_k"))  # the tools', and that of the project's models and readers
ENVIRONMENT = ("GLOG_minloglevel", "MKL_DEBUG_CPU_TYPE", "CPU_NUM", "PADDLE_DISTRI_BACKEND")  # what a run sets in it
# Paddle's warnings about its own code, which come at each run and which no user of the tools can act on
IGNORED_WARNINGS = ("No ccache found", "When training, we now always track", "Tensor do not have 'place' interface")


def main(name, arguments=None):
    """Run a tool. If the process goes on, as a notebook's does, it is afterwards as it was before.

    Args:
        name: of the tool, see ``tools.TOOLS``.
        arguments: of the command line, a list of texts; None: those of the process.
    Raises:
        SystemExit: with code 2, after one message, if the user made a mistake; with 128 and a signal's number if that
            ended the run. If another process of the job is lost, this process ends with the code 75.
    """
    tool = TOOLS[name]
    streams.open_missing()
    with streams.forgiving("stderr"):
        args = _parser(tool).parse_args(arguments)
        try:
            with _restored():
                _do(tool, args)
        except UserError as error:
            _report(error)
            sys.exit(2)
        except Lost as error:
            _report(error)
            os._exit(Lost.code)  # what Paddle does at a regular end may wait for the lost process, or crash
        except Stopped as stop:
            sys.exit(128 + stop.signal_number)


def _report(error):
    print(f"error: {error}", file=sys.stderr)
    sys.stderr.flush()
    with contextlib.suppress(UserError):  # the message is that the environment does not describe the processes
        stay_for_the_others()


def _parser(tool):
    parser = _Parser(prog=f"{tool.name}.py", description=tool.does)
    parser.add_argument("-m", "--config_yaml", required=True, metavar="PATH", help="YAML file of a model package")
    parser.add_argument(
        "-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the YAML"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show every key in force and where its value is from, and end"
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in the form in which the tools report one in a config."""

    def error(self, message):
        self.exit(2, f"error: {message}. For instance: -m config.yaml -o runner.epochs=2\n")


@contextlib.contextmanager
def _restored():
    """Start the log; afterwards restore it, the warning filters and the environment."""
    before, disabled = [(log.handlers[:], log.level, log.propagate) for log in LOGS], logging.root.manager.disable
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    with warnings.catch_warnings():
        try:
            _start_log()
            yield
        finally:
            for log, (handlers, log.level, log.propagate) in zip(LOGS, before):
                log.handlers[:] = handlers
            logging.disable(disabled)
            for name, value in environment.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _start_log():
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ code logs errors only
    handler = logging.StreamHandler()
    rank, _ = announced()
    whose = f"process {rank} - " if rank else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s - {whose}%(levelname)s - %(message)s"))
    for log in LOGS:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # Paddle 3 puts a handler of its own on the root logger
    logging.disable(logging.INFO if rank else logging.NOTSET)  # the first process's log is the job's
    for words in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", words)


def _do(tool, args):
    config = load_config(args.config_yaml, args.opt)
    settings = read_settings(config, tool.job)
    _check_processes(tool, settings, args.print_config)
    if settings.tune_process:
        process_settings.tune()
    with package.modules_apart(config["config_abs_dir"]):
        jobs = _import_jobs()
        if args.print_config:
            _print_config(jobs, tool, config, settings, args.opt)
        else:
            with streams.forgiving("stdout"):
                jobs.run(tool, config, settings, args.opt)


def _check_processes(tool, settings, prints_config):
    """Raise UserError where a launcher has started several processes of what works in one."""
    _, number = announced()
    if settings.use_fleet is True and number == 1:
        LOG.warning(
            "runner.use_fleet is true, but this is the only process. To start several: python -m "
            "paddle.distributed.launch --nproc_per_node 2 tools/trainer.py -m config.yaml"
        )
    if settings.use_fleet is False and number > 1:
        raise UserError(
            f"runner.use_fleet is false, but {number} processes have been started. Remove the key, and they work "
            "together; or start one process, without a launcher."
        )
    if number > 1 and (prints_config or not tool.spreads):
        what = "--print-config" if prints_config else f"{tool.name}.py"
        raise UserError(f"{what} works in one process, but this is one of {number}. Start it without a launcher.")


def _import_jobs():
    """The module with the jobs, which imports paddle."""
    try:
        from engine import jobs

        return jobs
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error}. Activate the environment that has it (after make: . .venv/bin/activate), or install what the "
            "tools need: pip install paddlepaddle numpy pyyaml"
        ) from error
    except TypeError as error:
        if sys.flags.optimize < 2:
            raise
        raise UserError(
            f"this release of Paddle cannot be imported without docstrings ({error}). Unset PYTHONOPTIMIZE, or do not "
            "use -OO."
        ) from error


def _print_config(jobs, *arguments):
    try:
        jobs.print_config(*arguments)
        sys.stdout.flush()
    except OSError as error:
        streams.empty(sys.stdout)
        raise UserError(f"standard output cannot be written ({error}).") from error
