"""Runs a tool as a user does, as a process; or within this one, to the same end in a tenth of the time."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from unittest import mock

import paddle

from engine import cli
from engine.batches import Batches, find_reader, open_dataset
from engine.config import load_config
from engine.graphs import process
from engine.jobs import GRAPHS
from engine.keys import read_settings
from engine.package import Package
from engine.seeds import set_seeds
from support import ROOT, processes, resuming

TEST_NUM = 50  # examples to evaluate on: no multiple of the batch, so the last one is partial
TIMEOUT_S = 300  # a hang is a failure; a busy machine is not


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


def apart(graph):
    """Programs, scope and names of its own for a graph, as a process of its own would have them."""
    return process.as_new(graph)


def run_here(name, config, *overrides, cwd):
    """``run_tool`` within this process, as a notebook would run it; for a tool that is not killed.

    (Its results are those of a process to rounding: on an AMD CPU the tool has MKL take another path in a new process.)
    """
    arguments = ["-m", str(config), *(["-o", *map(str, overrides)] if overrides else [])]
    stderr, before, code = io.StringIO(), os.getcwd(), 0
    os.chdir(cwd)
    try:
        with contextlib.redirect_stderr(stderr):
            cli.main(name, arguments)
    except SystemExit as end:
        code = end.code
    except Exception:
        stderr.write(traceback.format_exc())
        code = 1
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, code, "", stderr.getvalue())


@contextlib.contextmanager
def no_file_above(size):
    """Let this process write no file of more bytes: as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_script(module, *arguments, cwd="."):
    """The finished process of a script, whose module is given: its ``main`` runs within this process."""
    arguments, before, code = [str(argument) for argument in arguments], os.getcwd(), 0
    stdout, stderr = io.StringIO(), io.StringIO()
    os.chdir(cwd)
    try:
        with mock.patch.object(sys, "argv", [module.__file__, *arguments]):
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                module.main()
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def copy_model(folder):
    """Copy the model into a folder: what a package of the user's that is one of ours has beside its config."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "dselect_k_model", folder / "dselect_k_model", ignore=shutil.ignore_patterns("__pycache__"))


def small_data(folder, test_num=TEST_NUM):
    """Make ``folder``/train and ``folder``/test of a part of the sample; gives the overrides that point at them."""
    return [resuming.make_data(str(folder / part), n, part) for part, n in (("train", 70), ("test", test_num))]


def assert_refused(process, *words):
    """Exit code 2, one message with ``words``, no traceback."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    assert not re.search(r"^\w*(Error|Exception):", process.stderr, re.MULTILINE), process.stderr
    messages = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, process.stderr
    for word in words:
        assert str(word) in process.stderr[process.stderr.index("error: ") :], process.stderr


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
    return Batches(open_dataset(reader, settings, {**config, "runner.job": job}, job), settings, job)


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
