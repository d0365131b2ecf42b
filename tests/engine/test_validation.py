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
    higher_is_better = {"error_type": True}

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
        return metrics, {"error": error, "error_type": -error}
"""
STATIC = """
import paddle

class StaticModel:
    higher_is_better = {"error_type": True}

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
            return {"error": error, "error_type": -error}
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
GRAPHS = list(TOOLS)
INFER = {"dynamic": "infer", "static": "static_infer"}
VALIDATE = "runner.validation_data_dir=held"
TARGET = -14.0  # the nearest weights are those after epochs 2 and 1
ROWS = TARGET + np.array([-1.0, 0.0, 1.0])


@pytest.fixture
def toy(tmp_path):
    """A function that runs a tool on the toy, (tool, override ...), and returns its process; it works in tmp_path."""
    package = tmp_path / "package"
    for part, rows in (("train", range(5)), ("test", range(3)), ("held", ROWS)):
        (package / part).mkdir(parents=True)
        (package / part / "rows.txt").write_text("\n".join(map(str, rows)))
    for name, text in (("dygraph_model", DYNAMIC), ("static_model", STATIC), ("reader", READER)):
        (package / f"{name}.py").write_text(text)
    (package / "config.yaml").write_text(CONFIG)
    return lambda name, *overrides: run_here(name, package / "config.yaml", *overrides, cwd=tmp_path)


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
def test_the_metrics_are_in_the_log_and_the_manifest(toy, tmp_path, graph):
    log = log_of(toy(TOOLS[graph], VALIDATE, "runner.epochs=3"))
    lines = re.findall(r"epoch: (\d) validation, error: (\S+), error_type: (\S+), epoch time: \d+\.\d\d s$", log, re.M)
    expected = [error_after(epoch) for epoch in range(3)]
    assert lines == [(str(epoch), f"{error:.6f}", f"{-error:.6f}") for epoch, error in enumerate(expected)]
    words = re.findall(r"epoch: \d (?:done|validation)", log)
    assert words == [f"epoch: {epoch} {word}" for epoch in range(3) for word in ("done", "validation")]
    assert len(re.findall("batch_id", log)) == 15, "of the training alone"
    found = validations(tmp_path / "model_output")
    assert [found[epoch]["error"] for epoch in range(3)] == pytest.approx(expected)
    assert all(metrics.keys() == {"error", "error_type"} for metrics in found.values())


def steps_and_done_lines(log):
    """What the log says of training steps and epochs, without times."""
    lines = [line for line in log.splitlines() if "batch_id" in line or " done, " in line]
    return [re.sub(r"avg_reader_cost.*|epoch time.*|^.* INFO - ", "", line) for line in lines]


PACKAGES = {"clicks": "part-0.txt", "price": "houses.csv", "stream": "events.txt", "ours": None, "toy": None}


@pytest.fixture(params=PACKAGES)
def package(request, tmp_path, toy):
    """(config, overrides, override of the validation data) of a package.

    The toy draws for each example, and its evaluation draws, and moves a buffer that training uses.
    """
    if request.param == "ours":
        train, test = small_data(tmp_path / "data")
        held = test.replace("test_data_dir", "validation_data_dir")
        keys = [*OVERRIDES, "runner.epochs=2", "runner.shuffle=true", "runner.infer_batch_size=16"]
        return ROOT / "config.yaml", [*keys, train, test], held
    common = ["runner.epochs=2", "runner.test_data_dir=held", "runner.use_gpu=false", "runner.tune_process=false"]
    common += ["runner.model_save_path=output", "runner.infer_load_path=output"]
    if request.param == "toy":
        return tmp_path / "package" / "config.yaml", [*common, "runner.noise=0.5"], VALIDATE
    folder = shutil.copytree(ROOT / "tests" / "foreign" / request.param, tmp_path / request.param)
    rows = (folder / "data" / PACKAGES[request.param]).read_text().splitlines(True)
    (folder / "held").mkdir()
    (folder / "held" / "rows").write_text("".join(rows[3:14]))
    return folder / "config.yaml", [*common, "runner.infer_start_epoch=0", "runner.infer_end_epoch=2"], VALIDATE


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_metrics_are_what_infer_prints_and_training_keeps_its_bits(package, request, tmp_path, graph):
    config, keys, validate = package
    logs, states = [], []
    for name, more in (("without", []), ("with", [validate])):
        (tmp_path / name).mkdir()
        logs.append(log_of(run_here(TOOLS[graph], config, *keys, *more, cwd=tmp_path / name)))
        states.append(state(tmp_path / name))
    assert steps_and_done_lines(logs[0]) == steps_and_done_lines(logs[1])
    assert not differences(*states) and states[0]
    if "runner.noise=0.5" in keys:
        return  # what evaluation reads is drawn anew
    infer = log_of(run_here(INFER[graph], config, *keys, cwd=tmp_path / "with"))
    validation = re.findall(r"epoch: (\d) validation, (.*), epoch time", logs[1])
    assert validation == re.findall(r"epoch: (\d) done, (.*), epoch time", infer)
    assert [epoch for epoch, _ in validation] == ["0", "1"] and validation[0] != validation[1]


KEEP = [VALIDATE, "runner.keep_last=1", "runner.keep_best=error_type"]


@pytest.mark.parametrize("graph,name", [("dynamic", "error_type"), ("static", "error_type"), ("dynamic", "error")])
def test_the_best_epoch_is_kept_and_patience_ends_the_run(toy, tmp_path, graph, name):
    """The weights after epochs 0 to 4 are -5, -10, -15, -20, -25: -15 is best; after two that are not, the run ends."""
    tool, keep = TOOLS[graph], [VALIDATE, "runner.keep_last=1", f"runner.keep_best={name}"]
    patient = [*keep, "runner.patience=2", "runner.epochs=30"]
    log = log_of(toy(tool, *patient))
    assert saved(tmp_path / "model_output") == [2, 4]
    assert f"{name} has not been better since epoch 2" in log and "runner.patience" in log
    assert log.count("states no direction") == 0 and log.count("does not state a direction of error") == (
        name == "error"
    )
    again = log_of(toy(tool, *patient, "runner.resume=auto"))
    assert "batch_id" not in again and f"{name} has not been better since epoch 2" in again
    more = log_of(toy(tool, *keep, "runner.epochs=6", "runner.resume=auto"))
    assert "epoch: 5 done" in more and saved(tmp_path / "model_output") == [2, 5]
    assert validations(tmp_path / "model_output")[2]["error"] == pytest.approx(error_after(2))


def test_without_a_validation_keep_best_uses_the_training(toy, tmp_path):
    log_of(toy("trainer", "runner.keep_last=1", "runner.keep_best=x"))
    assert saved(tmp_path / "model_output") == [0, 5], "x is always 2: the first of equals"


class Killed(Exception):
    """Like a kill: nothing in the tools catches it."""


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("owner,method", [(Validation, "__call__"), (Session, "_clear_away"), (Session, "is_over")])
def test_a_run_killed_in_any_epoch_makes_the_same_decisions(toy, tmp_path, monkeypatch, owner, method, epoch):
    """In its validation; between its checkpoint and the deletion of others; before it begins."""
    whole = getattr(owner, method)

    def die(self, at, *rest):
        if at == epoch:
            raise Killed
        return whole(self, at, *rest)

    keys = [*KEEP, "runner.patience=2", "runner.epochs=30", "runner.save_interval_steps=2", "runner.resume=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, die)
        assert toy("trainer", *keys).stderr.rstrip().endswith("Killed")
    assert "error_type has not been better since epoch 2" in log_of(toy("trainer", *keys))
    assert sorted(os.listdir(tmp_path / "model_output")) == [".lock", "2", "4"]
    found = {epoch: metrics["error"] for epoch, metrics in validations(tmp_path / "model_output").items()}
    assert found == pytest.approx({epoch: error_after(epoch) for epoch in (2, 4)})


@pytest.mark.parametrize("name", ["error", "error_type"])
def test_the_best_epoch_can_be_evaluated_and_exported(toy, tmp_path, name):
    log_of(toy("static_trainer", VALIDATE, f"runner.keep_best={name}"))
    keys = ["runner.infer_load_path=model_output", f"runner.keep_best={name}", "runner.test_data_dir=held"]
    log = log_of(toy("static_infer", *keys, "runner.infer_epoch=best"))
    assert re.findall(r"epoch: (\d) done, error: (\S+),", log) == [("2", f"{error_after(2):.6f}")]
    fetch = "runner.save_inference_fetch_varnames=[error]"
    assert "exported epoch 2" in log_of(toy("export", *keys, fetch, "runner.export_epoch=best"))


def test_an_epoch_to_evaluate_or_export_that_cannot_be_found_is_refused(toy):
    log_of(toy("static_trainer", VALIDATE))
    assert re.findall(r"epoch: (\d) done", log_of(toy("static_infer", "runner.infer_epoch=4"))) == ["4"]
    assert_refused(toy("export", "runner.export_epoch=best"), "export_epoch", "keep_best")
    refused = toy("static_infer", "runner.infer_epoch=best", "runner.keep_best=eror")
    assert_refused(refused, "eror", "error, error_type")
    assert_refused(toy("static_infer", "runner.infer_epoch=9"), "infer_epoch", "no epoch 9", "0, 1, 2, 3, 4, 5")
    log_of(toy("static_trainer", "runner.epochs=1"))
    refused = toy("export", "runner.export_epoch=best", "runner.keep_best=error")
    assert_refused(refused, "export_epoch", "validation_data_dir")  # the newest run has no validation


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "keys,words",
    [
        ([VALIDATE, "runner.keep_best=loss"], ["runner.keep_best", "'loss'", "the validation", "error, error_type"]),
        (["runner.validation_data_dir=nowhere"], ["runner.validation_data_dir", "nowhere"]),
        ([VALIDATE, "runner.infer_reader_path=nothing"], ["infer_reader_path", "nothing"]),
        ([VALIDATE, "runner.infer_batch_size=9", "runner.infer_drop_last=true"], ["held", "no full batch"]),
        ([VALIDATE, "runner.patience=3"], ["runner.patience", "keep_best"]),
        (["runner.patience=3", "runner.keep_best=loss"], ["runner.patience", "validation_data_dir"]),
        ([VALIDATE, "runner.infer_batch_size=null"], ["infer_batch_size", "validation_data_dir"]),
    ],
)
def test_a_mistake_is_refused_before_the_first_step(toy, graph, keys, words):
    process = toy(TOOLS[graph], *keys)
    assert_refused(process, *words)
    assert "batch_id" not in process.stderr


def test_visualdl_gets_the_metrics_of_each_epoch(toy, tmp_path, monkeypatch):
    written = []

    class LogWriter:
        def __init__(self, folder):
            self.folder = os.path.relpath(folder, tmp_path / "package" / "visualDL_log")

        def add_scalar(self, tag, step, value):
            written.append((self.folder, tag, step, value))

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=LogWriter))
    log_of(toy("trainer", VALIDATE, "runner.use_visual=true", "runner.epochs=2"))
    found = {(tag, step): value for folder, tag, step, value in written if folder == "validation"}
    signs = {"error": 1, "error_type": -1}
    assert found == pytest.approx(
        {(f"validation/{name}", e): sign * error_after(e) for e in (0, 1) for name, sign in signs.items()}
    )
    assert {folder for folder, *_ in written} == {"train", "validation"}
