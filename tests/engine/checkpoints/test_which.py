"""tools/engine/checkpoints/which.py: the run, the best epoch, the epochs to evaluate or export."""

import logging
import os
import re

import pytest

from engine.checkpoints import manifests, which
from engine.errors import UserError
from support import ROOT, resuming
from support.checkpoints import write_checkpoint
from support.toolbox import assert_refused, run_tool, small_data


@pytest.fixture(autouse=True)
def messages(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    return caplog


@pytest.fixture
def mixed(tmp_path):
    """Epochs 0 to 3 of run a, of which run b has overwritten the first two."""
    for name, run, saved_at in ((0, "b", 10.0), (1, "b", 11.0), (2, "a", 3.0), (3, "a", 4.0)):
        write_checkpoint(tmp_path, name, run=run, saved_at=saved_at)
    return tmp_path


def test_the_newest_run_is_that_of_the_newest_checkpoint(mixed, messages):
    messages.clear()
    assert which.epochs_of_run(str(mixed), "newest") == [0, 1]
    (line,) = messages.messages
    assert "2 (a), 3 (a)" in line and "runner.infer_run" in line


def test_another_run_and_all_runs_can_be_chosen(mixed):
    assert which.epochs_of_run(str(mixed), "a") == [2, 3]
    assert which.epochs_of_run(str(mixed), "all") == [0, 1, 2, 3]
    with pytest.raises(UserError, match="infer_run is c.*: a, b"):
        which.epochs_of_run(str(mixed), "c")


def test_checkpoints_without_a_manifest_are_one_run(tmp_path):
    for name in ("0", "2"):
        (tmp_path / name).mkdir()  # PaddleRec's, and newer than what follows by its folder's time
    write_checkpoint(tmp_path, 1, saved_at=5.0)
    assert which.epochs_of_run(str(tmp_path), "newest") == which.epochs_of_run(str(tmp_path), "unknown") == [0, 2]
    assert which.epochs_of_run(str(tmp_path), "a") == [1]


def test_a_checkpoint_with_a_broken_manifest_belongs_to_every_run(mixed):
    """So that it is refused by name when it is loaded, rather than skipped."""
    (mixed / "3" / manifests.MANIFEST).write_text("{")
    assert which.epochs_of_run(str(mixed), "newest") == [0, 1, 3]


def test_each_run_has_its_own_id():
    ids = {which.new_run_id() for _ in range(50)}
    assert len(ids) > 45 and all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", one) for one in ids)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("stated_by", ["caller", "manifest"])
def test_the_best_epoch_is_that_of_the_stated_direction_whatever_the_name(tmp_path, messages, higher, stated_by):
    """Of equal epochs it is the first. Of each name the guess would be the other direction."""
    name = "Accuracy_error_type" if higher else "distance"
    of_manifest = {"higher_is_better": {name: higher}} if stated_by == "manifest" else {}
    for epoch, value in enumerate([2.0, 1.0, 3.0, 1.0, 3.0]):
        write_checkpoint(tmp_path, epoch, numbers={name: 0.0}, validation={name: value}, **of_manifest)

    def best(epochs, source):
        given = {name: higher} if stated_by == "caller" else None
        return which.best(str(tmp_path), epochs, name, source, given)

    assert best(range(5), which.VALIDATION) == (2 if higher else 1)
    assert best([0, 4], which.VALIDATION) == (4 if higher else 0)
    assert best(range(5), which.TRAINING) == 0
    assert which.best(str(tmp_path), range(5), "other", which.VALIDATION) is None
    assert "direction" not in messages.text


@pytest.mark.parametrize("name,higher", [("RMSE_price", False), ("AUC1", True)])
def test_an_unstated_direction_is_guessed_with_a_warning(tmp_path, messages, name, higher):
    for epoch, value in enumerate([1.0, 3.0, 2.0]):
        write_checkpoint(tmp_path, epoch, validation={name: value})
    epoch = which.best(str(tmp_path), range(3), name, which.VALIDATION)
    assert epoch == (1 if higher else 0)
    assert f"epoch {epoch} is the best by {name}" in messages.text
    assert f"assumed: {'higher' if higher else 'lower'} is better" in messages.text


def test_an_epoch_without_a_finite_metric_or_with_a_broken_file_is_not_best(tmp_path):
    for epoch, validation in enumerate([None, {}, {"auc": 0.5}, {"auc": float("nan")}, {"auc": 0.9}, {"auc": 0.8}]):
        write_checkpoint(tmp_path, epoch, numbers={"auc": 1.0}, validation=validation)
    (tmp_path / "4" / "file").write_text("changed")
    (tmp_path / "6").mkdir()
    assert which.best(str(tmp_path), range(7), "auc", which.VALIDATION) == 5
    (tmp_path / "5" / manifests.MANIFEST).write_text("{")
    assert which.best(str(tmp_path), range(7), "auc", which.VALIDATION) == 2


def test_the_tools_use_the_newest_run(tmp_path):
    """Two epochs, then one with another seed into the same folder: evaluated, exported, resumed, deleted."""
    fixed = [*resuming.OVERRIDES, *small_data(tmp_path / "data"), resuming.CONSTANT]
    output = tmp_path / "output"

    def tool(name, *overrides):
        return run_tool(name, ROOT / "config.yaml", *fixed, *overrides, cwd=tmp_path)

    def run_of(epoch):
        return manifests.read_facts(str(output / str(epoch)))["run"]

    assert tool("trainer").returncode == 0
    assert tool("trainer", "runner.epochs=1", "runner.seed=7").returncode == 0
    new, old = run_of(0), run_of(1)
    infer = tool("infer").stderr
    assert re.findall(r"epoch: (\d) done", infer) == ["0"] and f"not of run {new}: 1 ({old})" in infer
    assert re.findall(r"epoch: (\d) done", tool("infer", f"runner.infer_run={old}").stderr) == ["1"]
    assert "exported epoch 0" in tool("export").stderr
    assert "exported epoch 1" in tool("export", f"runner.infer_run={old}").stderr
    assert_refused(tool("export", "runner.export_epoch=1"), "export_epoch", "0")
    assert tool("trainer", "runner.epochs=1", "runner.seed=7", "runner.keep_last=1").returncode == 0
    assert sorted(os.listdir(output)) == [".lock", "0", "1"], "epochs of the older run are not this run's to delete"
    resumed = tool("trainer", "runner.seed=7", "runner.resume=auto", "runner.keep_last=1")
    assert re.search(r"resumed from output.0: epoch 1, batch 0", resumed.stderr)
    assert sorted(os.listdir(output)) == [".lock", "1"] and run_of(1) not in (new, old)
