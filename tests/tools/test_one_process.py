"""tools/engine/cli.py: several tools in one process, as in a notebook; standard streams that are closed or full."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from support import ROOT
from support.toolbox import TIMEOUT_S, small_data

# A notebook's cells: tools by runpy, each with its arguments, and what they leave behind. Its own net is no model.
CELLS = """
import json, logging, os, runpy, signal, sys, warnings
root, cells = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, root + "/tools")  # as %run does
import numpy, paddle
sys.modules["net"] = mine = type(sys)("net")
signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

def state():
    log = logging.getLogger("engine")
    flags = paddle.get_flags(["FLAGS_eager_delete_tensor_gb"])
    static = paddle.static
    return {
        "path": list(sys.path), "filters": list(map(str, warnings.filters)),
        "log": [len(log.handlers), log.level, log.propagate],
        "signals": [str(signal.getsignal(number)) for number in signals], "flags": flags, "device": paddle.get_device(),
        "dynamic": paddle.in_dynamic_mode(), "programs": [id(static.default_main_program()), id(static.global_scope())],
        "names": paddle.utils.unique_name.generate("linear"), "ours": sorted(
            name for name in sys.modules if name.partition(".")[0] in ("net", "dygraph_model", "dselect_k_model")
        ), "mine": sys.modules["net"] is mine, "streams": [id(sys.stdout), id(sys.stderr)],
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("FLAGS_")},
    }

said = []
for tool, *arguments in cells:
    sys.argv = [f"{root}/tools/{tool}.py", *arguments]
    before = state()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    after = state()
    before.pop("names"), after.pop("names")
    said.append([code, {key: [before[key], after[key]] for key in before if before[key] != after[key]}])
    print("----", file=sys.stderr, flush=True)
said.append(paddle.utils.unique_name.generate("linear"))
from engine.checkpoints import folders
folders.lock("saves0").close()  # UserError if a run has left it locked
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    data = small_data(tmp_path_factory.mktemp("data"))
    return [
        *data, "runner.epochs=1", "runner.train_batch_size=16", "hyper_parameters.expert_num=2",
        "hyper_parameters.expert_size=8", "runner.print_interval=1", "runner.infer_end_epoch=1",
        "runner.to_static=false",
    ]  # fmt: skip


def start(*arguments, cwd):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    """Name -> bytes of a checkpoint's weights and state. (A manifest has the time, a program names of its own.)"""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("*.pd*") if path.suffix != ".pdmodel"}


def test_tools_in_one_process_give_the_bits_of_processes_and_leave_nothing_behind(small, tmp_path):
    runs = [
        ("trainer", ["runner.to_static=auto"]), ("infer", []), ("static_trainer", []), ("static_infer", []),
        ("trainer", ["runner.nonsense=1"]), ("trainer", ["runner.num_workers=2"]),
    ]  # fmt: skip
    cells = []
    for i, (tool, more) in enumerate(runs):
        save = f"saves{i - (tool.endswith('infer'))}"
        where = [f"runner.model_save_path={save}", f"runner.infer_load_path={save}", f"runner.log_json={save}.json"]
        cells.append([tool, "-m", f"{ROOT}/config.yaml", "-o", *small, *where, *more])
    done = start("-c", CELLS, ROOT, json.dumps(cells), cwd=tmp_path)
    *found, name = json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.split("----\n")
    assert [code for code, _ in found] == [0, 0, 0, 0, 2, 0], said
    assert [changed for _, changed in found] == [{}] * len(found)
    assert name == f"linear_{2 * len(runs)}"  # the numbers that the cells themselves have drawn, and no more
    banners = [text.count("common.configs") for text in said[:-1]]
    assert banners == [2] * 6, "a handler of the log was left behind"
    for tool, save in (("trainer", "saves5"), ("static_trainer", "saves2")):
        alone = tmp_path / tool
        alone.mkdir()
        start(ROOT / "tools" / f"{tool}.py", "-m", ROOT / "config.yaml", "-o", *small, cwd=alone)
        (theirs,) = alone.glob("output*/0")
        assert files(tmp_path / save / "0") == files(theirs), tool


# --------------------------------------------------------------------------------- standard streams

NO_DEVICE = pytest.mark.skipif(os.name != "posix", reason="descriptors are closed by a shell")
WAYS = ["0<&- 1>&- 2>&-", "1>/dev/full 2>/dev/full"]

READER = """
import os, sys
from multiMNIST_reader import RecDataset as Base

class RecDataset(Base):
    def gather(self, indices):
        {saying}
        return super().gather(indices)
"""


@NO_DEVICE
@pytest.mark.parametrize("way", WAYS)
def test_a_run_needs_no_standard_stream(way, small, tmp_path):
    if "full" in way and not os.path.exists("/dev/full"):
        pytest.skip("there is no device that is always full")
    saying = "print('a step' * 5000, flush=True), print('a step' * 5000, file=sys.stderr)"
    if "full" not in way:
        saying += ", os.write(1, b'from C++'), os.write(2, b'from C++')"
    (tmp_path / "saying_reader.py").write_text(READER.format(saying=saying))
    overrides = [*small, "runner.train_reader_path=saying_reader", "runner.log_json=log", "runner.progress=true"]
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    words = [sys.executable, ROOT / "tools" / "static_trainer.py", "-m", tmp_path / "config.yaml", "-o", *overrides]
    done = start_shell(" ".join(map(str, words)) + " " + way, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines][-1] == "end"
    save = next(tmp_path.glob("output*"))
    assert b"from C++" not in b"".join(path.read_bytes() for path in save.rglob("*") if path.is_file())


def start_shell(command, cwd):
    return subprocess.run(["sh", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)


@NO_DEVICE
def test_a_closed_pipe_ends_no_run(small, tmp_path):
    words = [sys.executable, ROOT / "tools" / "trainer.py", "-m", ROOT / "config.yaml", "-o", *small]
    done = start_shell(f"({' '.join(map(str, words))} 2>&1; echo $? > code) | head -1", tmp_path)
    assert (tmp_path / "code").read_text() == "0\n", done.stderr
    assert len(list(tmp_path.glob("output*/0/manifest.json"))) == 1


@NO_DEVICE
def test_a_mistake_has_its_exit_code_even_if_the_message_cannot_be_written(tmp_path):
    tool = f"{sys.executable} {ROOT}/tools/trainer.py"
    for arguments in ("-m nothing.yaml", ""):
        assert start_shell(f"{tool} {arguments} 2>&-", tmp_path).returncode == 2
    assert "runner.epochs" in start_shell(f"{tool} -m {ROOT}/config.yaml --print-config 2>&-", tmp_path).stdout
    done = start_shell(f"{tool} -m {ROOT}/config.yaml --print-config > /dev/full", tmp_path)
    assert done.returncode == 2 and "error: standard output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
