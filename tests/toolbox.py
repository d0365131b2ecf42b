"""Runs a tool as a user does, as a process; or within this one, to the same end in a tenth of the time."""

import contextlib
import io
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from unittest import mock

import kill_resume
import paddle
import processes
from conftest import ROOT

from engine import cli
from engine.batches import Batches, find_reader, open_dataset
from engine.commands import TOOLS
from engine.config import load_config
from engine.graphs import executor, process_settings, programs
from engine.graphs.device import set_seeds
from engine.jobs import GRAPHS
from engine.keys import read_settings
from engine.package import Package
from engine.saves import folders
from engine.saves.session import Session

TEST_NUM = 50  # examples to evaluate on: no multiple of the batch, so the last one is partial
TIMEOUT_S = 120  # a hang is a failure


def run_tool(name, config, *overrides, cwd, env=None):
    """The finished process of ``python tools/<name>.py -m config``; with ``env``, a Python started anew."""
    arguments = ["-m", str(config), *(["-o", *map(str, overrides)] if overrides else [])]
    if env:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
        kwargs = {"capture_output": True, "text": True, "timeout": TIMEOUT_S}
        return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        written = [pathlib.Path(folder, stream) for stream in ("stdout", "stderr")]
        process = processes.start(name, arguments, cwd, *written)
        try:
            code = process.wait(TIMEOUT_S)
        finally:
            process.kill()  # a hang
        return subprocess.CompletedProcess(arguments, code, *(path.read_text(encoding="utf-8") for path in written))


JOBS = {tool: job for job, tool in TOOLS.items()}
PACKAGES_MODULES = ("net", "hyper_parameters", "tasks", "training", "dygraph_model", "static_model")  # and the readers


@contextlib.contextmanager
def apart(graph):
    """Programs, scope and names of its own for a graph, as a process of its own would have them.

    The mode is set first: leaving the dynamic mode leaves the program that was guarded within it.
    """
    (paddle.enable_static if graph == "static" else paddle.disable_static)()
    try:
        with programs.apart():
            yield
    finally:
        paddle.disable_static()


def run_here(name, config, *overrides, cwd):
    """``run_tool`` within this process: for a tool that is not killed, and does not set up its process.

    (Its numbers are a process's to rounding: on an AMD CPU the set-up has MKL take another path.)

    Its log and messages are caught as a process's stderr would be. Graph, path, the package's modules, log
    and flags are afterwards as they were.
    """
    command = [name, "-m", str(config), *(["-o", *map(str, overrides)] if overrides else [])]
    log, flag = logging.getLogger("engine"), paddle.get_flags(executor.KEEP_FLAG)
    before, said = (list(log.handlers), log.level, log.propagate), io.StringIO()
    modules, place = dict(sys.modules), os.getcwd()
    take_lock, locks = folders.lock, []
    for module in [m for m in modules if m in PACKAGES_MODULES or m.endswith("reader")]:
        del sys.modules[module]
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch.object(sys, "argv", command), mock.patch.object(sys, "path", list(sys.path)),
            mock.patch.object(process_settings, "tune", lambda: None),
            mock.patch.object(Session, "listen", lambda self: None),
            mock.patch.object(folders, "lock", lambda parent: locks.append(take_lock(parent)) or locks[-1]),
            warnings.catch_warnings(), contextlib.redirect_stderr(said), apart(JOBS[name][0]),
        ):  # fmt: skip
            stack.enter_context(patch)
        os.chdir(cwd)
        try:
            cli.main(*JOBS[name])
            code = 0
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            os.chdir(place)
            for lock in locks:  # as the end of a process lets them go
                lock.close()
    paddle.set_flags(flag)
    log.handlers, log.level, log.propagate = before
    package = os.path.dirname(os.path.abspath(config))
    for module in [
        m for m, it in sys.modules.items() if os.path.dirname(getattr(it, "__file__", None) or "") == package
    ]:
        del sys.modules[module]
    sys.modules.update(modules)
    return subprocess.CompletedProcess(command, code, "", said.getvalue())


def small_data(folder, test_num=TEST_NUM):
    """Make ``folder``/train and ``folder``/test of a part of the sample; gives the overrides that point at them."""
    return [kill_resume.make_data(str(folder / part), n, part) for part, n in (("train", 70), ("test", test_num))]


def assert_refused(process, *words):
    """Exit code 2, one message with ``words``, no traceback."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    assert not re.search(r"^\w*(Error|Exception):", process.stderr, re.MULTILINE), process.stderr
    messages = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, process.stderr
    for word in words:
        assert str(word) in process.stderr[process.stderr.index("error: ") :], process.stderr


def cost_of_reading(path):
    """(seconds, bytes of memory) that array_files.py takes for a file, in a process of its own."""
    code = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
import array_files
def peak():
    if sys.platform == "linux":  # where getrusage takes over what the parent had
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, began = peak(), time.perf_counter()
array_files.read(sys.argv[2])
print(time.perf_counter() - began, peak() - before)
"""
    command = [sys.executable, "-c", code, str(ROOT), str(path)]
    seconds, grown = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.split()
    return float(seconds), int(grown)


@contextlib.contextmanager
def opened(graph_name, job, overrides):
    """A graph of our package in this process, as a tool would build it in its own: (graph, config, settings)."""
    config = load_config(str(ROOT / "config.yaml"), overrides)
    settings = read_settings(config, job)
    place = paddle.set_device("cpu")
    with apart(graph_name):
        set_seeds(settings.seed)
        yield GRAPHS[graph_name](Package(str(ROOT)), config, settings, job, place), config, settings


def batches_of(config, settings, job):
    reader = find_reader(Package(str(ROOT)), settings, job)
    return Batches(open_dataset(reader, settings, {**config, "runner.job": job}, job), settings, job, paddle.CPUPlace())


def saved_after_a_few_steps(folder, test_num, *overrides):
    """Train for an epoch of a few steps, and save its weights in ``folder``/0; gives the overrides to evaluate them."""
    overrides = [*overrides, f"runner.infer_load_path={folder}", *small_data(folder / "data", test_num)]
    overrides += ["runner.steps_per_epoch=4", "runner.train_batch_size=16"]
    with opened("dynamic", "train", overrides) as (graph, config, settings):
        graph.begin_epoch()
        for batch in batches_of(config, settings, "train")(0):
            graph.train_step(batch)
        (folder / "0").mkdir()
        graph.write(str(folder / "0"))
    return overrides
