"""Saves of several trainings in one folder: the newest run's epochs alone are read, and the others can be asked for."""

import json
import logging
import os
import re

import kill_resume
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_tool, small_data

from engine.errors import UserError
from engine.saves import folders, manifests, runs


def save(parent, name, run, saved_at):
    with folders.new_folder(str(parent), name) as folder:
        manifests.write(
            folder, {}, graph="static", run=run, epoch=0, batch=0, config={}, schedule=None, numbers={}, so_far=None
        )
    path = parent / str(name) / manifests.MANIFEST
    facts = json.loads(path.read_text())
    if run is None:
        del facts["run"]  # as in the first releases
    path.write_text(json.dumps({**facts, "saved_at": float(saved_at)}))


@pytest.fixture
def mixed(tmp_path):
    """Epochs 0 to 3 of run a, of which run b has overwritten the first two."""
    for name, run, saved_at in ((0, "b", 10), (1, "b", 11), (2, "a", 3), (3, "a", 4)):
        save(tmp_path, name, run, saved_at)
    return tmp_path


def test_the_newest_run_is_that_of_the_newest_save_and_one_line_names_the_others(mixed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    assert runs.epochs(str(mixed), "newest") == [0, 1]
    (line,) = caplog.messages
    assert "2 (a), 3 (a)" in line and "runner.infer_run" in line


def test_another_run_and_all_runs_can_be_asked_for(mixed, caplog):
    assert runs.epochs(str(mixed), "a") == [2, 3]
    assert runs.epochs(str(mixed), "all") == [0, 1, 2, 3]
    with pytest.raises(UserError, match="infer_run is c.*: a, b"):
        runs.epochs(str(mixed), "c")


def test_saves_without_a_run_belong_together(tmp_path):
    (tmp_path / "0").mkdir()  # PaddleRec's, and newer than what follows by its folder's time
    save(tmp_path, 1, "a", 5)
    assert runs.epochs(str(tmp_path), "newest") == [0]
    assert runs.epochs(str(tmp_path), "a") == [1]
    save(tmp_path, 2, None, 6)
    assert runs.epochs(str(tmp_path), "unknown") == [0, 2]


def test_a_manifest_that_cannot_be_read_is_neither_newest_nor_left_out(mixed):
    (mixed / "3" / manifests.MANIFEST).write_text("{")
    assert runs.epochs(str(mixed), "newest") == [0, 1, 3]


def test_each_run_has_an_id_of_its_own():
    ids = {runs.new_id() for _ in range(50)}
    assert len(ids) > 45 and all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", one) for one in ids)


def run_of(folder):
    return json.loads((folder / manifests.MANIFEST).read_text())["run"]


def test_the_tools_read_the_run_that_was_trained_last(tmp_path):
    """Two epochs, then one with another seed into the same folder: evaluated, exported, resumed, deleted."""
    fixed = [*kill_resume.OVERRIDES, *small_data(tmp_path / "data"), "hyper_parameters.optimizer.schedule=constant"]

    def tool(name, *overrides):
        return run_tool(name, ROOT / "config.yaml", *fixed, *overrides, cwd=tmp_path)

    assert tool("trainer").returncode == 0
    assert tool("trainer", "runner.epochs=1", "runner.seed=7").returncode == 0
    output = tmp_path / "output"
    new, old = run_of(output / "0"), run_of(output / "1")
    assert new != old

    infer = tool("infer").stderr
    assert re.findall(r"epoch: (\d) done", infer) == ["0"]
    assert infer.count("left out") == 1 + infer.count("epoch 1 ") and old in infer and new in infer
    assert re.findall(r"epoch: (\d) done", tool("infer", f"runner.infer_run={old}").stderr) == ["1"]
    assert "exported epoch 0" in tool("export").stderr
    assert "exported epoch 1" in tool("export", f"runner.infer_run={old}").stderr
    assert_refused(tool("export", "runner.export_epoch=1"), "export_epoch", "0")

    assert tool("trainer", "runner.epochs=1", "runner.seed=7", "runner.keep_last=1").returncode == 0
    assert sorted(os.listdir(output)) == [".lock", "0", "1"], "the older run's epochs are not this run's to delete"
    resumed = tool("trainer", "runner.seed=7", "runner.resume=auto", "runner.keep_last=1")
    assert re.search(r"resumed from output.0: epoch 1, batch 0", resumed.stderr)
    assert sorted(os.listdir(output)) == [".lock", "1"] and run_of(output / "1") not in (new, old)
