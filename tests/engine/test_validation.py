"""tools/engine/validation.py: metrics of the validation, what they decide, and that validation changes no training.

The toy's numbers are computed by hand. Its one weight begins at 0, and each of an epoch's 5 steps moves it down by 1:
after epoch e it is -5 (e + 1). Its validation ``error`` is the mean of (weight - row)^2 over rows around a target;
``error_type`` is minus that, and the toy states that higher is better.
"""

import os
import re
import shutil
import sys
import types

import numpy as np
import pytest

from engine.checkpoints import manifests
from engine.checkpoints.session import Session
from engine.validation import Validation
from support import ROOT
from support.resuming import OVERRIDES, TOOLS, differences, state
from support.toolbox import assert_refused, run_here, small_data

GRAPHS = list(TOOLS)
INFER = {"dynamic": "infer", "static": "static_infer"}
VALIDATE = "runner.validation_data_dir=held"
ROWS = np.array([-15.0, -14.0, -13.0])  # of the folder held; the nearest weights are those after epochs 2 and 1


@pytest.fixture
def run(toy):
    """``toy`` for six epochs, evaluated in batches of two."""
    return lambda name, *overrides: toy(name, "runner.epochs=6", "runner.infer_batch_size=2", *overrides)


def log_of(process):
    assert process.returncode == 0, process.stderr
    return process.stderr


def error_after(epoch):
    """Batches of 2 and 1 of the 3 rows: the mean is over rows."""
    return np.mean((-5.0 * (epoch + 1) - ROWS) ** 2)


def saved(folder):
    return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())


def validations(folder):
    """Epoch -> the validation's metrics in its manifest."""
    return {epoch: manifests.read(str(folder / str(epoch)))["validation"] for epoch in saved(folder)}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_metrics_are_in_the_log_and_the_manifest(run, tmp_path, graph):
    log = log_of(run(TOOLS[graph], VALIDATE, "runner.epochs=3"))
    pattern = r"epoch: (\d) validation,.* error: (\S+), error_type: (\S+), epoch time: \d+\.\d\d s$"
    lines = re.findall(pattern, log, re.MULTILINE)
    expected = [error_after(epoch) for epoch in range(3)]
    assert lines == [(str(epoch), f"{error:.6f}", f"{-error:.6f}") for epoch, error in enumerate(expected)]
    words = re.findall(r"epoch: \d (?:done|validation)", log)
    assert words == [f"epoch: {epoch} {word}" for epoch in range(3) for word in ("done", "validation")]
    assert len(re.findall("batch_id", log)) == 15, "of the training alone"
    found = validations(tmp_path / "model_output")
    assert [found[epoch]["error"] for epoch in range(3)] == pytest.approx(expected)
    assert all(metrics.keys() == {"loss", "first", "error", "error_type"} for metrics in found.values())


def steps_and_done_lines(log):
    """What the log says of training steps and epochs, without times."""
    lines = [line for line in log.splitlines() if "batch_id" in line or " done, " in line]
    return [re.sub(r"avg_reader_cost.*|epoch time.*|^.* INFO - ", "", line) for line in lines]


def package(name, folder):
    """(config, overrides, override of the validation data) of a package; a foreign one is copied to ``folder``."""
    if name == "ours":
        train, test = small_data(folder / "data")
        keys = [*OVERRIDES, "runner.shuffle=true", "runner.infer_batch_size=16", train, test]
        return ROOT / "config.yaml", keys, test.replace("test_data_dir", "validation_data_dir")
    common = ["runner.epochs=2", "runner.test_data_dir=held", "runner.use_gpu=false"]
    common += ["runner.model_save_path=output", "runner.infer_load_path=output"]
    if name == "toy":
        return folder / "toy" / "config.yaml", [*common, "runner.noise=0.5"], VALIDATE
    package = shutil.copytree(ROOT / "tests" / "foreign" / name, folder / name)
    (file,) = (package / "data").iterdir()
    (package / "held").mkdir()
    (package / "held" / "rows").write_text("".join(file.read_text().splitlines(True)[3:14]))
    return package / "config.yaml", [*common, "runner.infer_start_epoch=0", "runner.infer_end_epoch=2"], VALIDATE


@pytest.mark.parametrize(
    "name,graph",
    [
        *[("ours", "dynamic"), ("ours", "static")],
        *[("toy", "dynamic"), ("toy", "static")],  # its evaluation draws, and moves a buffer that training uses
        *[("clicks", "dynamic"), ("clicks", "static")],  # a metric that counts over the epoch
        ("stream", "static"),  # batches of its own
    ],
)
def test_the_metrics_are_what_infer_prints_and_training_keeps_its_bits(name, graph, toy, tmp_path):
    config, keys, validate = package(name, tmp_path)
    logs, states = [], []
    for cwd, more in ((tmp_path / "without", []), (tmp_path / "with", [validate])):
        cwd.mkdir()
        logs.append(log_of(run_here(TOOLS[graph], config, *keys, *more, cwd=cwd)))
        states.append(state(cwd))
    assert steps_and_done_lines(logs[0]) == steps_and_done_lines(logs[1])
    assert not differences(*states) and states[0]
    if name == "toy":
        return  # what its evaluation reads is drawn anew
    infer = log_of(run_here(INFER[graph], config, *keys, cwd=cwd))
    validation = re.findall(r"epoch: (\d) validation, (.*), epoch time", logs[1])
    assert validation == re.findall(r"epoch: (\d) done, (.*), epoch time", infer)
    assert [epoch for epoch, _ in validation] == ["0", "1"] and validation[0] != validation[1]


KEEP = [VALIDATE, "runner.keep_last=1", "runner.keep_best=error_type"]


@pytest.mark.parametrize("graph,name", [("dynamic", "error_type"), ("static", "error")])
def test_the_best_epoch_is_kept_and_patience_ends_the_run(run, tmp_path, graph, name):
    """The weights after epochs 0 to 4 are -5, -10, -15, -20, -25: -15 is best; after two that are not, the run ends."""
    tool, keep = TOOLS[graph], [*KEEP, f"runner.keep_best={name}"]
    patient = [*keep, "runner.patience=2", "runner.epochs=30"]
    log = log_of(run(tool, *patient))
    assert saved(tmp_path / "model_output") == [2, 4]
    assert f"{name} has not been better since epoch 2" in log and "runner.patience" in log
    assert log.count("states no direction") == 0
    assert log.count("does not state a direction of error (higher_is_better)") == (name == "error")
    again = log_of(run(tool, *patient, "runner.resume=auto"))
    assert "batch_id" not in again and f"{name} has not been better since epoch 2" in again
    more = log_of(run(tool, *keep, "runner.resume=auto"))
    assert "epoch: 5 done" in more and saved(tmp_path / "model_output") == [2, 5]
    assert validations(tmp_path / "model_output")[2]["error"] == pytest.approx(error_after(2))


def test_without_a_validation_keep_best_uses_the_training(run, tmp_path):
    log_of(run("trainer", "runner.keep_last=1", "runner.keep_best=first"))
    assert saved(tmp_path / "model_output") == [0, 5], "its mean is always 2: the first of equals"


class Killed(Exception):
    """Like a kill: nothing in the tools catches it."""


@pytest.mark.parametrize("owner,method", [(Validation, "__call__"), (Session, "_clear_away"), (Session, "is_over")])
def test_a_run_killed_in_one_epoch_after_the_other_makes_the_same_decisions(run, tmp_path, monkeypatch, owner, method):
    """In its validation; between its checkpoint and the deletion of others; before it begins."""
    whole = getattr(owner, method)
    keys = [*KEEP, "runner.patience=2", "runner.epochs=30", "runner.save_interval_steps=2", "runner.resume=auto"]
    for epoch in (1, 2, 4):

        def die(self, at, *rest, epoch=epoch):
            if at == epoch:
                raise Killed
            return whole(self, at, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, die)
            assert run("trainer", *keys).stderr.rstrip().endswith("Killed")
    assert "error_type has not been better since epoch 2" in log_of(run("trainer", *keys))
    assert sorted(os.listdir(tmp_path / "model_output")) == [".lock", "2", "4"]
    found = {epoch: metrics["error"] for epoch, metrics in validations(tmp_path / "model_output").items()}
    assert found == pytest.approx({epoch: error_after(epoch) for epoch in (2, 4)})


def test_epochs_to_evaluate_and_export_are_found_or_refused(run):
    log_of(run("static_trainer", VALIDATE))
    fetch = "runner.save_inference_fetch_varnames=[error]"
    for name in ("error", "error_type"):
        keys = [f"runner.keep_best={name}", "runner.test_data_dir=held"]
        log = log_of(run("static_infer", *keys, "runner.infer_epoch=best"))
        assert re.findall(r"epoch: (\d) done,.* error: (\S+),", log) == [("2", f"{error_after(2):.6f}")]
        assert "exported epoch 2" in log_of(run("export", *keys, fetch, "runner.export_epoch=best"))
    assert re.findall(r"epoch: (\d) done", log_of(run("static_infer", "runner.infer_epoch=4"))) == ["4"]
    assert_refused(run("export", "runner.export_epoch=best"), "export_epoch", "keep_best")
    refused = run("static_infer", "runner.infer_epoch=best", "runner.keep_best=eror")
    assert_refused(refused, "eror", "error, error_type")
    assert_refused(run("static_infer", "runner.infer_epoch=9"), "infer_epoch", "no epoch 9", "0, 1, 2, 3, 4, 5")
    log_of(run("static_trainer", "runner.epochs=1"))
    refused = run("export", "runner.export_epoch=best", "runner.keep_best=error")
    assert_refused(refused, "export_epoch", "validation_data_dir")  # the newest run has no validation


@pytest.mark.parametrize(
    "keys,words",
    [
        ([VALIDATE, "runner.keep_best=steps"], ["runner.keep_best", "'steps'", "the validation", "error, error_type"]),
        (["runner.validation_data_dir=nowhere"], ["runner.validation_data_dir", "nowhere"]),
        ([VALIDATE, "runner.infer_reader_path=nothing"], ["infer_reader_path", "nothing"]),
        ([VALIDATE, "runner.infer_batch_size=9", "runner.infer_drop_last=true"], ["held", "no full batch"]),
        ([VALIDATE, "runner.patience=3"], ["runner.patience", "keep_best"]),
        (["runner.patience=3", "runner.keep_best=loss"], ["runner.patience", "validation_data_dir"]),
        ([VALIDATE, "runner.infer_batch_size=null"], ["infer_batch_size", "validation_data_dir"]),
    ],
)
def test_a_mistake_is_refused_before_the_first_step(run, keys, words):
    process = run("trainer", *keys)
    assert_refused(process, *words)
    assert "batch_id" not in process.stderr


def test_visualdl_gets_the_numbers_of_the_interval_lines_and_of_each_validation(run, tmp_path, monkeypatch):
    """visualdl itself has no release for every Python that we support."""
    written = {"train": [], "validation": []}

    def open_writer(folder):
        found = written[os.path.relpath(folder, tmp_path / "toy" / "visualDL_log")]
        return types.SimpleNamespace(add_scalar=lambda tag, step, value: found.append((tag, step, value)))

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=open_writer))
    log_of(run("trainer", VALIDATE, "runner.use_visual=true", "runner.epochs=2", "runner.print_interval=3"))
    losses = [(step, value) for tag, step, value in written["train"] if tag == "train/loss"]
    assert losses == [(0, 0.0), (3, -3.0), (5, -5.0), (8, -8.0)], "steps are counted through the epochs"
    errors = [(step, value) for tag, step, value in written["validation"] if tag == "validation/error"]
    assert errors == [(epoch, pytest.approx(error_after(epoch))) for epoch in (0, 1)]
