"""Runs a tool as a user does, as a process; or its graph in this one."""

import contextlib
import os
import re
import subprocess
import sys

import kill_resume
import paddle
from conftest import ROOT

from engine.batches import Batches, find_reader, open_dataset
from engine.config import load_config
from engine.device import set_seeds
from engine.keys import read_settings
from engine.package import Package
from engine.run import GRAPHS

TEST_NUM = 50  # examples to evaluate on: no multiple of the batch, so the last one is partial
TIMEOUT_S = 120  # a hang is a failure


def run_tool(name, config, *overrides, cwd, env=None):
    """The finished process of ``python tools/<name>.py -m config -o overrides``."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "-m", str(config)]
    if overrides:
        command += ["-o", *map(str, overrides)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=TIMEOUT_S
    )


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
    programs = paddle.static.program_guard(paddle.static.Program(), paddle.static.Program())
    with paddle.utils.unique_name.guard(), programs, paddle.static.scope_guard(paddle.static.Scope()):
        set_seeds(settings.seed)
        (paddle.enable_static if graph_name == "static" else paddle.disable_static)()
        yield GRAPHS[graph_name](Package(str(ROOT)), config, settings, job, place), config, settings
    paddle.disable_static()


def batches_of(config, settings, job):
    reader = find_reader(Package(str(ROOT)), settings, job)
    return Batches(open_dataset(reader, settings, {**config, "runner.job": job}, job), settings, job, paddle.CPUPlace())
