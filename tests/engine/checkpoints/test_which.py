"""tools/engine/checkpoints/which.py: the run, the best epoch, the epochs to evaluate or export."""

import os
import re
import types

import pytest

from engine.checkpoints import manifests, which
from engine.errors import UserError
from support.checkpoints import change_manifest, write_checkpoint
from support.toolbox import assert_refused


@pytest.fixture
def mixed(tmp_path):
    """Epochs 0 to 3 of run a, of which run b has overwritten the first two."""
    for name, run, saved_at in ((0, "b", 10.0), (1, "b", 11.0), (2, "a", 3.0), (3, "a", 4.0)):
        write_checkpoint(tmp_path, name, run=run, saved_at=saved_at)
    return tmp_path


def test_the_newest_run_is_that_of_the_newest_checkpoint(mixed, caplog):
    caplog.clear()
    assert which.epochs_of_run(str(mixed), "newest") == [0, 1]
    (line,) = caplog.messages
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
def test_the_best_epoch_is_that_of_the_stated_direction_whatever_the_name(tmp_path, caplog, higher, stated_by):
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
    assert "direction" not in caplog.text


@pytest.mark.parametrize("name,higher", [("RMSE_price", False), ("AUC1", True)])
def test_an_unstated_direction_is_guessed_with_a_warning(tmp_path, caplog, name, higher):
    for epoch, value in enumerate([1.0, 3.0, 2.0]):
        write_checkpoint(tmp_path, epoch, validation={name: value})
    epoch = which.best(str(tmp_path), range(3), name, which.VALIDATION)
    assert epoch == (1 if higher else 0)
    assert f"epoch {epoch} is the best by {name}" in caplog.text
    assert f"assumed: {'higher' if higher else 'lower'} is better" in caplog.text


def test_an_epoch_without_a_finite_metric_or_with_a_broken_file_is_not_best(tmp_path):
    for epoch, validation in enumerate([None, {}, {"auc": 0.5}, {"auc": float("nan")}, {"auc": 0.9}, {"auc": 0.8}]):
        write_checkpoint(tmp_path, epoch, numbers={"auc": 1.0}, validation=validation)
    (tmp_path / "4" / "file").write_text("changed")
    (tmp_path / "6").mkdir()
    assert which.best(str(tmp_path), range(7), "auc", which.VALIDATION) == 5
    (tmp_path / "5" / manifests.MANIFEST).write_text("{")
    assert which.best(str(tmp_path), range(7), "auc", which.VALIDATION) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest cut", "manifest of other facts"])
def test_a_damaged_checkpoint_is_named_and_resume_takes_an_older_one(tmp_path, caplog, damage):
    write_checkpoint(tmp_path, 0, saved_at=1.0)
    newest = write_checkpoint(tmp_path, 1, saved_at=2.0)
    broken = newest / (manifests.MANIFEST if "manifest" in damage else "file")
    content = broken.read_bytes()
    if damage == "missing":
        broken.unlink()
    elif damage == "manifest of other facts":
        change_manifest(newest, batch="7")
    else:
        broken.write_bytes(content[: len(content) // 2] if "cut" in damage else b"x" + content[1:])
    with pytest.raises(UserError, match=str(broken)):
        manifests.read(str(newest))
    folder, manifest = which.to_resume(types.SimpleNamespace(resume="auto", model_save_path=str(tmp_path)))
    assert folder == str(tmp_path / "0") and manifest["epoch"] == 1 and f"skipped: {broken}" in caplog.text


def test_the_tools_use_the_newest_run(toy, tmp_path):
    """Two epochs, then one with another seed into the same folder: evaluated, exported, resumed, deleted."""
    output, export = tmp_path / "model_output", ["export", "runner.save_inference_fetch_varnames=[loss]"]

    def train(*overrides):
        process = toy("static_trainer", *overrides)
        assert process.returncode == 0, process.stderr
        return process.stderr

    def run_of(epoch):
        return manifests.read_facts(str(output / str(epoch)))["run"]

    train("runner.epochs=2")
    train("runner.seed=7")
    new, old = run_of(0), run_of(1)
    infer = toy("static_infer").stderr
    assert re.findall(r"epoch: (\d) done", infer) == ["0"] and f"not of run {new}: 1 ({old})" in infer
    assert re.findall(r"epoch: (\d) done", toy("static_infer", f"runner.infer_run={old}").stderr) == ["1"]
    assert "exported epoch 0" in toy(*export).stderr
    assert "exported epoch 1" in toy(*export, f"runner.infer_run={old}").stderr
    assert_refused(toy(*export, "runner.export_epoch=1"), "export_epoch", "0")
    train("runner.seed=7", "runner.keep_last=1")
    assert sorted(os.listdir(output)) == [".lock", "0", "1"], "epochs of the older run are not this run's to delete"
    resumed = train("runner.epochs=2", "runner.seed=7", "runner.resume=auto", "runner.keep_last=1")
    assert re.search(r"resumed from model_output.0: epoch 1, batch 0", resumed)
    assert sorted(os.listdir(output)) == [".lock", "1"] and run_of(1) not in (new, old)
