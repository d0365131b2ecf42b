"""PYTHONOPTIMIZE=2: without docstrings and asserts every tool and script runs."""

import os
import subprocess
import sys

import paddle
import pytest

from support import ROOT
from support.toolbox import TIMEOUT_S, assert_refused, small_data


def is_script(text):
    """Whether a file with this text reads a command line."""
    return '__name__ == "__main__"' in text and ("ArgumentParser" in text or "command_line(" in text)


SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tools", "data", "scripts", "examples/census", "experiments", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if folder == "tools" or is_script(path.read_text(encoding="utf-8"))
)


PADDLE_CANNOT = paddle.__version__.startswith("2.")  # its own modules need their docstrings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python so; its bytecode is kept, or each process would compile Paddle's files again."""
    kept = {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("bytecode")), "PYTHONDONTWRITEBYTECODE": ""}
    environment = {**os.environ, **kept, "PYTHONOPTIMIZE": "2"}

    def run(*arguments, cwd):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_gives_its_help(script, run, tmp_path):
    done = run(ROOT / script, "--help", cwd=tmp_path)
    if PADDLE_CANNOT and "import paddle" in done.stderr:
        pytest.skip("the script needs Paddle, which cannot be imported so")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


IN_TURN = """
import sys
sys.path.insert(0, sys.argv[1])
from engine import cli
for tool in ("static_trainer", "static_infer", "trainer", "infer", "export", "predict"):
    cli.main(tool, sys.argv[2:])
print("all have run")
"""


def test_the_tools_run_one_after_the_other(run, tmp_path):
    overrides = [
        *small_data(tmp_path), "runner.epochs=1", "runner.train_batch_size=16", "hyper_parameters.expert_num=2",
        "hyper_parameters.expert_size=8", "runner.infer_end_epoch=1", "runner.infer_load_path=saves",
        "runner.model_save_path=saves",
    ]  # fmt: skip
    done = run("-c", IN_TURN, ROOT / "tools", "-m", ROOT / "config.yaml", "-o", *overrides, cwd=tmp_path)
    if PADDLE_CANNOT:
        assert_refused(done, "cannot be imported without docstrings", "PYTHONOPTIMIZE")
    else:
        assert done.stdout.endswith("all have run\n"), done.stderr
