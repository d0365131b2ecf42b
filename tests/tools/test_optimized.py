"""PYTHONOPTIMIZE=2: without docstrings and asserts every tool and script runs."""

import os
import subprocess
import sys

import paddle
import pytest

from support import ROOT
from support.toolbox import TIMEOUT_S, assert_refused, run_tool, small_data

OPTIMIZED = {"PYTHONOPTIMIZE": "2"}
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tools", "data", "scripts", "examples/census", "experiments", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "ArgumentParser" in (text := path.read_text(encoding="utf-8")) or "command_line(" in text or folder == "tools"
)


PADDLE_CANNOT = paddle.__version__.startswith("2.")  # its own modules need their docstrings


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_gives_its_help(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **OPTIMIZED}, capture_output=True, timeout=TIMEOUT_S
    )
    if PADDLE_CANNOT and b"import paddle" in done.stderr:
        pytest.skip("the script needs Paddle, which cannot be imported so")
    assert done.returncode == 0 and b"usage:" in done.stdout, done.stderr.decode()


def test_the_tools_run_one_after_the_other(tmp_path):
    overrides = [
        *small_data(tmp_path), "runner.epochs=1", "runner.train_batch_size=16", "hyper_parameters.expert_num=4",
        "hyper_parameters.expert_size=8", "runner.infer_end_epoch=1", "runner.infer_load_path=saves",
        "runner.model_save_path=saves",
    ]  # fmt: skip
    for tool in ("static_trainer", "static_infer", "trainer", "infer", "export", "predict"):
        run = run_tool(tool, ROOT / "config.yaml", *overrides, cwd=tmp_path, env=OPTIMIZED)
        if PADDLE_CANNOT:
            assert_refused(run, "cannot be imported without docstrings", "PYTHONOPTIMIZE")
            continue
        assert run.returncode == 0, run.stderr
