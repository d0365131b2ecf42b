"""Runs a tool as a user does, as a process."""

import os
import re
import subprocess
import sys

import kill_resume
from conftest import ROOT

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


def small_data(folder):
    """Make ``folder``/train and ``folder``/test of a part of the sample; gives the overrides that point at them."""
    return [kill_resume.make_data(str(folder / part), n, part) for part, n in (("train", 70), ("test", TEST_NUM))]


def assert_refused(process, *words):
    """Exit code 2, one message with ``words``, no traceback."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    assert not re.search(r"^\w*(Error|Exception):", process.stderr, re.MULTILINE), process.stderr
    messages = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, process.stderr
    for word in words:
        assert str(word) in process.stderr[process.stderr.index("error: ") :], process.stderr
