"""Validation in training: its numbers, what is decided by them, and that it changes nothing in the training.

A toy's numbers are computed here by hand: its one weight begins at 0, and each of an epoch's 5 steps moves it down by
1, so after epoch e it is -5 (e + 1). Its validation's ``error`` is the mean of (weight - row)^2 over rows around a
target, its ``score`` is minus that.
"""

import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import types

import kill_resume
import numpy as np
import paddle
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_here, small_data

from engine.graphs import device
from engine.saves import best, folders, manifests
from engine.saves.session import Session
from engine.validation import Validation

DYNAMIC = """
import numpy as np
import paddle

class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([1], default_initializer=paddle.nn.initializer.Constant(0.0))
        seen = paddle.zeros([1])
        seen.name = "seen"
        self.register_buffer("seen", seen)  # moved by evaluation as well

    def forward(self):
        self.seen.set_value(self.seen + 1)
        return self.weight

class DygraphModel:
    def create_model(self, config):
        return Net()

    def create_optimizer(self, net, config):
        return paddle.optimizer.SGD(1.0, parameters=net.parameters())

    def create_metrics(self):
        return [], []

    def train_forward(self, net, metrics, batch, config):
        assert net.training
        loss = net().sum()
        drawn = [paddle.rand([1]), paddle.to_tensor([np.random.rand()])]
        return loss, metrics, {"loss": loss, "seen": net.seen, "x": batch[0][0], "by_paddle": drawn[0],
                               "by_numpy": drawn[1], "error": loss * 0}

    def infer_forward(self, net, metrics, batch, config):
        assert not net.training
        paddle.rand([3]), np.random.rand(3)
        error = ((net() - batch[0]) ** 2).mean()
        return metrics, {"error": error, "score": -error}
"""
STATIC = """
import paddle

class StaticModel:
    def __init__(self, config):
        self.counts = "runner.job" in config  # in an export Paddle could not write that

    def create_feeds(self, is_infer=False):
        return [paddle.static.data("x", [-1, 1], "float32")]

    def net(self, feeds, is_infer=False):
        zero = paddle.nn.initializer.Constant(0.0)
        weight = paddle.create_parameter([1], "float32", default_initializer=zero)
        seen = paddle.create_parameter([1], "float32", name="seen", default_initializer=zero)
        seen.stop_gradient = True
        before = seen + 0
        if self.counts:
            paddle.increment(seen)
        if is_infer:
            error = paddle.mean((weight - feeds[0]) ** 2)
            return {"error": error, "score": -error}
        self.loss = paddle.mean(weight)
        return {"loss": self.loss, "seen": before, "x": feeds[0][0], "by_paddle": paddle.rand([1]),
                "error": self.loss * 0}

    def infer_net(self, feeds):
        return self.net(feeds, is_infer=True)

    def create_optimizer(self, strategy=None):
        paddle.optimizer.SGD(1.0).minimize(self.loss)
"""
READER = """
import numpy as np
from paddle.io import Dataset

class RecDataset(Dataset):
    config_keys = ["noise"]

    def __init__(self, file_list, config):
        of_training = [path for path in file_list if "train" in path.split("package")[-1]]
        assert (config["runner.job"] == "train") == bool(of_training)
        self.noise = config.get("runner.noise", 0.0)
        self.rows = np.concatenate([np.loadtxt(path, ndmin=1) for path in file_list])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        raise AssertionError("a thread of Paddle's loader would draw")

    def gather(self, indices):
        noise = self.noise and self.noise * np.random.rand(len(indices))
        return [(self.rows[indices] + noise).astype("float32")[:, None]]
"""
CONFIG = """
runner: {train_data_dir: train, test_data_dir: test, train_batch_size: 1, infer_batch_size: 2, epochs: 6,
         print_interval: 1, use_gpu: false, strict: true, tune_process: false}
"""
GRAPHS = list(kill_resume.TOOLS)
INFER = {"dynamic": "infer", "static": "static_infer"}
VALIDATE = "runner.validation_data_dir=held"
TARGET = -14.0  # the nearest weights are those after epochs 2 and 1
ROWS = TARGET + np.array([-1.0, 0.0, 1.0])


@pytest.fixture
def toy(tmp_path):
    """A function that runs a tool on the toy, (tool, override ...), and gives its process; its work is in tmp_path."""
    package = tmp_path / "package"
    for part, rows in (("train", range(5)), ("test", range(3)), ("held", ROWS)):
        (package / part).mkdir(parents=True)
        (package / part / "rows.txt").write_text("\n".join(map(str, rows)))
    for name, text in (("dygraph_model", DYNAMIC), ("static_model", STATIC), ("reader", READER)):
        (package / f"{name}.py").write_text(text)
    (package / "config.yaml").write_text(CONFIG)
    return lambda name, *overrides: run_here(name, package / "config.yaml", *overrides, cwd=tmp_path)


def trained(process):
    assert process.returncode == 0, process.stderr
    return process.stderr


def error_after(epoch):
    """Batches of 2 and 1 of the 3 rows: the mean is over rows."""
    return np.mean((-5.0 * (epoch + 1) - ROWS) ** 2)


def saved(folder):
    return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())


def validations(folder):
    """Epoch -> the validation's numbers in its manifest."""
    return {
        epoch: json.loads((folder / str(epoch) / manifests.MANIFEST).read_text())["validation"]
        for epoch in saved(folder)
    }


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_numbers_are_in_the_log_and_the_manifest(toy, tmp_path, graph):
    log = trained(toy(kill_resume.TOOLS[graph], VALIDATE, "runner.epochs=3"))
    lines = re.findall(r"epoch: (\d) validation, error: (\S+), score: (\S+), epoch time: \d+\.\d\d s$", log, re.M)
    expected = [error_after(epoch) for epoch in range(3)]
    assert lines == [(str(epoch), f"{error:.6f}", f"{-error:.6f}") for epoch, error in enumerate(expected)]
    assert re.findall(r"epoch: \d (?:done|validation)", log) == [
        f"epoch: {epoch} {word}" for epoch in range(3) for word in ("done", "validation")
    ]
    assert len(re.findall("batch_id", log)) == 15, "of the training alone"
    found = validations(tmp_path / "model_output")
    assert [found[epoch]["error"] for epoch in range(3)] == pytest.approx(expected)
    assert all(numbers.keys() == {"error", "score"} for numbers in found.values())


def steps_and_done_lines(log):
    """What a training's log says of its steps and epochs, without times."""
    lines = [line for line in log.splitlines() if "batch_id" in line or " done, " in line]
    return [re.sub(r"avg_reader_cost.*|epoch time.*|^.* INFO - ", "", line) for line in lines]


def state(output):
    """What the newest epoch of a folder says of the future: file -> name -> array."""
    files = (output / str(max(saved(output)))).glob("rec*.pd[po]*")
    return {file.name: pickle.loads(file.read_bytes()) for file in files if file.suffix in (".pdparams", ".pdopt")}


@pytest.mark.parametrize("graph", GRAPHS)
def test_training_is_as_it_would_be_without(toy, tmp_path, graph):
    """Also where the reader draws for each example, and evaluation draws and moves what training uses."""
    logs = [
        trained(toy(kill_resume.TOOLS[graph], *keys, "runner.noise=0.5", f"runner.model_save_path={name}"))
        for keys, name in (([], "without"), ([VALIDATE], "with"))
    ]
    lines = [steps_and_done_lines(log) for log in logs]
    assert lines[0] == lines[1] and len(lines[0]) == 36
    states = [state(tmp_path / name) for name in ("without", "with")]
    assert not kill_resume.differences(*states) and states[0]


PACKAGES = {"clicks": "part-0.txt", "price": "houses.csv", "stream": "events.txt", "ours": None}


@pytest.fixture(params=PACKAGES)
def package(request, tmp_path):
    """(config, overrides) of a package; its validation data are another part than its training data."""
    if request.param == "ours":
        train, test = small_data(tmp_path / "data")
        held = test.replace("test_data_dir", "validation_data_dir")
        keys = [*kill_resume.OVERRIDES, "runner.epochs=2", "runner.shuffle=true", "runner.infer_batch_size=16"]
        return ROOT / "config.yaml", [*keys, train, test], held
    folder = shutil.copytree(ROOT / "tests" / "foreign" / request.param, tmp_path / request.param)
    rows = (folder / "data" / PACKAGES[request.param]).read_text().splitlines(True)
    (folder / "held").mkdir()
    (folder / "held" / "rows").write_text("".join(rows[3:14]))
    output = f"output_{request.param}"
    keys = ["runner.epochs=2", "runner.test_data_dir=held", f"runner.infer_load_path={output}", "runner.use_gpu=false"]
    keys += [f"runner.model_save_path={output}", "runner.infer_start_epoch=0", "runner.infer_end_epoch=2"]
    return folder / "config.yaml", [*keys, "runner.tune_process=false"], VALIDATE


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_numbers_are_what_infer_prints_and_the_training_keeps_its_bits(package, tmp_path, graph):
    config, keys, validate = package
    logs, states = [], []
    for name, more in (("without", []), ("with", [validate])):
        (tmp_path / name).mkdir()
        logs.append(trained(run_here(kill_resume.TOOLS[graph], config, *keys, *more, cwd=tmp_path / name)))
        (output,) = (tmp_path / name).glob("output*")
        states.append(state(output))
    assert steps_and_done_lines(logs[0]) == steps_and_done_lines(logs[1])
    assert not kill_resume.differences(*states) and len(states[0]) == 2
    infer = trained(run_here(INFER[graph], config, *keys, cwd=tmp_path / "with"))
    validation = re.findall(r"epoch: (\d) validation, (.*), epoch time", logs[1])
    assert validation == re.findall(r"epoch: (\d) done, (.*), epoch time", infer)
    assert [epoch for epoch, _ in validation] == ["0", "1"] and validation[0] != validation[1]


KEEP = [VALIDATE, "runner.keep_last=1", "runner.keep_best=error"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_best_epoch_is_kept_and_patience_ends_the_training(toy, tmp_path, graph):
    """The weights -5, -10, -15, -20, -25 of epochs 0 to 4: -15 is nearest; two that are not better, and it is over."""
    log = trained(toy(kill_resume.TOOLS[graph], *KEEP, "runner.patience=2", "runner.epochs=30"))
    assert saved(tmp_path / "model_output") == [2, 4]
    assert "error has not been better since epoch 2" in log and "runner.patience" in log
    again = trained(toy(kill_resume.TOOLS[graph], *KEEP, "runner.patience=2", "runner.epochs=30", "runner.resume=auto"))
    assert "batch_id" not in again and "error has not been better since epoch 2" in again
    more = trained(toy(kill_resume.TOOLS[graph], *KEEP, "runner.epochs=6", "runner.resume=auto"))
    assert "epoch: 5 done" in more and saved(tmp_path / "model_output") == [2, 5]
    assert validations(tmp_path / "model_output")[2]["error"] == pytest.approx(error_after(2))


def test_a_score_is_best_where_it_is_greatest_and_a_means_number_is_the_trainings(toy, tmp_path):
    trained(toy("trainer", VALIDATE, "runner.keep_last=1", "runner.keep_best=score"))
    assert saved(tmp_path / "model_output") == [2, 5]
    trained(toy("trainer", "runner.keep_last=1", "runner.keep_best=x", "runner.model_save_path=by_training"))
    assert saved(tmp_path / "by_training") == [0, 5], "x is always 2: the first of equals"


class Killed(Exception):
    """As a kill: where it is raised, nothing in the tools catches it."""


def killed(monkeypatch, owner, method, epoch, toy, *overrides):
    """A run that ends as it calls ``owner.method`` for an epoch."""

    def die(self, at, *rest):
        if at == epoch:
            raise Killed
        return whole(self, at, *rest)

    whole = getattr(owner, method)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, die)
        process = toy("trainer", *overrides)
    assert process.returncode == 1 and process.stderr.rstrip().endswith("Killed"), process.stderr


@pytest.mark.parametrize("epoch", range(5))
@pytest.mark.parametrize("owner,method", [(Validation, "__call__"), (Session, "_clear_away"), (Session, "is_over")])
def test_a_run_killed_in_any_epoch_decides_the_same(toy, tmp_path, monkeypatch, owner, method, epoch):
    """In its validation; between its save and the deletion of others; before it begins."""
    keys = [*KEEP, "runner.patience=2", "runner.epochs=30", "runner.save_interval_steps=2", "runner.resume=auto"]
    killed(monkeypatch, owner, method, epoch, toy, *keys)
    log = trained(toy("trainer", *keys))
    assert "error has not been better since epoch 2" in log
    assert sorted(os.listdir(tmp_path / "model_output")) == [".lock", "2", "4"]
    undisturbed = {epoch: error_after(epoch) for epoch in (2, 4)}
    found = {epoch: numbers["error"] for epoch, numbers in validations(tmp_path / "model_output").items()}
    assert found == pytest.approx(undisturbed)


def test_best_is_an_epoch_to_evaluate_and_to_export(toy, tmp_path):
    trained(toy("static_trainer", VALIDATE, "runner.keep_best=error"))
    keys = ["runner.infer_load_path=model_output", "runner.keep_best=error", "runner.test_data_dir=held"]
    log = trained(toy("static_infer", *keys, "runner.infer_epoch=best"))
    assert re.findall(r"epoch: (\d) done, error: (\S+),", log) == [("2", f"{error_after(2):.6f}")]
    assert re.findall(r"epoch: (\d) done", trained(toy("static_infer", *keys, "runner.infer_epoch=4"))) == ["4"]
    fetch = "runner.save_inference_fetch_varnames=[error]"
    assert "exported epoch 2" in trained(toy("export", *keys, fetch, "runner.export_epoch=best"))
    assert_refused(toy("export", "runner.export_epoch=best"), "export_epoch", "keep_best")
    assert_refused(toy("static_infer", "runner.infer_epoch=best", "runner.keep_best=eror"), "eror", "error, score")
    assert_refused(toy("static_infer", "runner.infer_epoch=9"), "infer_epoch", "no epoch 9", "0, 1, 2, 3, 4, 5")
    trained(toy("static_trainer", "runner.epochs=1"))
    refused = toy("export", "runner.export_epoch=best", "runner.keep_best=error")
    assert_refused(refused, "export_epoch", "validation_data_dir")  # the newest run has none


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "keys,words",
    [
        ([VALIDATE, "runner.keep_best=loss"], ["runner.keep_best", "'loss'", "the validation", "error, score"]),
        (["runner.validation_data_dir=nowhere"], ["runner.validation_data_dir", "nowhere"]),
        ([VALIDATE, "runner.infer_reader_path=nothing"], ["infer_reader_path", "nothing"]),
        ([VALIDATE, "runner.infer_batch_size=9", "runner.infer_drop_last=true"], ["held", "no full batch"]),
        ([VALIDATE, "runner.patience=3"], ["runner.patience", "keep_best"]),
        (["runner.patience=3", "runner.keep_best=loss"], ["runner.patience", "validation_data_dir"]),
    ],
)
def test_a_mistake_is_told_before_the_first_step(toy, graph, keys, words):
    process = toy(kill_resume.TOOLS[graph], *keys)
    assert_refused(process, *words)
    assert "batch_id" not in process.stderr


def test_a_batch_size_is_needed(toy, tmp_path):
    (tmp_path / "package" / "config.yaml").write_text(CONFIG.replace("infer_batch_size: 2,", ""))
    assert_refused(toy("trainer", VALIDATE), "infer_batch_size", "validation_data_dir")
    trained(toy("trainer", "runner.epochs=1"))


def test_visualdl_gets_the_numbers_of_each_epoch(toy, tmp_path, monkeypatch):
    written = []

    class LogWriter:
        def __init__(self, folder):
            self.folder = os.path.relpath(folder, tmp_path / "package" / "visualDL_log")

        def add_scalar(self, tag, step, value):
            written.append((self.folder, tag, step, value))

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=LogWriter))
    trained(toy("trainer", VALIDATE, "runner.use_visual=true", "runner.epochs=2"))
    found = [entry[1:] for entry in written if entry[0] == "validation"]
    expected = [(f"validation/{name}", e, sign * error_after(e)) for e in (0, 1) for name, sign in SIGNS.items()]
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in expected])
    assert {folder for folder, *_ in written} == {"train", "validation"}


SIGNS = {"error": 1, "score": -1}


def save(parent, epoch, numbers=None, validation=None):
    facts = {"graph": "static", "run": "a", "epoch": epoch + 1, "batch": 0, "config": {}, "schedule": None}
    with folders.new_folder(str(parent), epoch) as folder:
        pathlib.Path(folder, "file").touch()
        manifests.write(folder, {}, **facts, numbers=numbers or {}, validation=validation, so_far=None)


LESS = ["loss", "logloss", "loss2", "cost", "mae", "mae1", "rmse", "mse", "RMSE_price"]
GREATER = ["auc", "AUC1", "Accuracy1", "acc", "experts_used", "f1"]


@pytest.mark.parametrize("name", [*LESS, *GREATER])
def test_less_or_greater_is_better(tmp_path, name):
    for epoch, value in enumerate([2.0, 1.0, 3.0, 1.0, 3.0]):
        save(tmp_path, epoch, {name: 0.0}, {name: value})
    assert best.find(str(tmp_path), range(5), name, best.VALIDATION) == (1 if name in LESS else 2), "first of equals"
    assert best.find(str(tmp_path), [0, 4], name, best.VALIDATION) == (0 if name in LESS else 4)
    assert best.find(str(tmp_path), range(5), name, best.TRAINING) == 0
    assert best.find(str(tmp_path), range(5), "other", best.VALIDATION) is None


def test_an_epoch_without_a_number_or_with_a_broken_save_is_not_best(tmp_path):
    for epoch, validation in enumerate([None, {}, {"auc": 0.5}, {"auc": float("nan")}, {"auc": 0.9}, {"auc": 0.8}]):
        save(tmp_path, epoch, {"auc": 1.0}, validation)
    (tmp_path / "4" / "file").write_text("changed")
    (tmp_path / "6").mkdir()
    assert best.find(str(tmp_path), range(7), "auc", best.VALIDATION) == 5
    (tmp_path / "5" / manifests.MANIFEST).write_text("{")
    assert best.find(str(tmp_path), range(7), "auc", best.VALIDATION) == 2


@pytest.mark.parametrize("validation", [[1], "auc", {"auc": "high"}, {"auc": None}])
def test_a_validation_of_another_kind_is_no_manifest(tmp_path, validation):
    save(tmp_path, 0, {}, validation)
    assert manifests.read_if_sound(str(tmp_path / "0")) is None


def test_random_states_go_on_as_if_nothing_had_been_drawn():
    def drawn():
        return paddle.rand([1]).item(), np.random.rand(), device.random.random()

    device.set_seeds(3)
    drawn()
    with device.random_states_kept():
        device.set_seeds(8)
        inside = drawn()
    after = drawn()
    device.set_seeds(3)
    drawn()
    assert drawn() == after != inside
