"""What each runner key means: a toy package, whose log tells every number, run by the tools within this process.

Keys whose meaning another file pins: resume, keep_best, skip_not_finite (test_resume, test_not_finite), drop_last
(test_batches), use_auc, reader_type (test_foreign), tune_process (test_process, test_executor), strict (test_config),
predict_path, export_format, save_inference_… (test_export), data_part, image_scale (test_reader),
validation_data_dir, patience, infer_epoch (test_validation).
"""

import logging
import os
import re
import shutil
import sys
import types

import numpy as np
import paddle
import pytest
from toolbox import apart

from engine import jobs
from engine.config import load_config
from engine.errors import UserError
from engine.graphs import device
from engine.keys import read_settings
from engine.meter import Meter, Step
from engine.saves.session import Session
from engine.serving import predict

# One weight, which begins at 0; its loss is its value, so a step of SGD moves it down by the rate, which halves.
DYNAMIC = """
import random
import numpy as np
import paddle

class DygraphModel:
    def create_model(self, config):
        zero = paddle.nn.initializer.Constant(0.0)
        return paddle.nn.Linear(1, 1, weight_attr=paddle.ParamAttr(initializer=zero), bias_attr=False)

    def create_optimizer(self, net, config):
        rate = paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)
        return paddle.optimizer.SGD(rate, parameters=net.parameters())

    def create_metrics(self):
        return [], []

    def train_forward(self, net, metrics, batch, config):
        steps = paddle.to_tensor(config["runner.steps_per_epoch"] or -1)
        drawn = {"by_paddle": paddle.rand([]), "by_numpy": np.random.rand(), "by_random": random.random()}
        drawn = {name: paddle.to_tensor(float(value)) for name, value in drawn.items()}
        loss = net.weight.sum()
        return loss, metrics, {"loss": loss, "first": batch[0][0, 0], "steps": steps, **drawn}

    def infer_forward(self, net, metrics, batch, config):
        return metrics, {"loss": net.weight.sum(), "first": batch[0][0, 0]}
"""
STATIC = """
import paddle

class StaticModel:
    def __init__(self, config):
        pass

    def create_feeds(self, is_infer=False):
        return [paddle.static.data("x", [-1, 1], "float32")]

    def net(self, feeds, is_infer=False):
        zero = paddle.nn.initializer.Constant(0.0)
        weight = paddle.create_parameter([1, 1], "float32", name="toy", default_initializer=zero)
        self.loss = paddle.mean(weight)
        return {"loss": self.loss, "first": feeds[0][0], "sum": feeds[0] + weight}

    def infer_net(self, feeds):
        return self.net(feeds)

    def create_optimizer(self, strategy=None):
        paddle.optimizer.SGD(paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)).minimize(self.loss)
"""
READER = """
import numpy as np
from paddle.io import Dataset

class RecDataset(Dataset):
    def __init__(self, file_list, config):
        self.rows = np.concatenate([np.loadtxt(path, ndmin=1) for path in file_list]) + {offset}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return [self.rows[i : i + 1].astype("float32")]
"""
OTHERS = {
    "other_reader": READER.replace("{offset}", "1000"),
    "job_reader": READER.replace("{offset}", "{'train': 1000, 'infer': 2000}[config['runner.job']]"),
}
BASE = """
runner: {train_data_dir: train, test_data_dir: test, train_batch_size: 1, infer_batch_size: 1, epochs: 1,
         print_interval: 1, use_gpu: false}
"""
GRAPHS = ["dynamic", "static"]


@pytest.fixture
def toy(tmp_path, monkeypatch, caplog):
    """A function that runs a tool on the package, (graph, job, key=value ...), and gives the messages of its log."""
    package, work = tmp_path / "package", tmp_path / "work"
    for folder in (work, package / "train", package / "test"):
        folder.mkdir(parents=True)
    for part, rows in (("train", range(5)), ("test", range(100, 107))):
        (package / part / "rows.txt").write_text("\n".join(map(str, rows)))
    files = {"dygraph_model": DYNAMIC, "static_model": STATIC, "reader": READER.replace("{offset}", "0")}
    for name, text in {**files, **OTHERS}.items():
        (package / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (package / "config.yaml").write_text(BASE)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Session, "listen", lambda self: None)
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    caplog.set_level(logging.INFO, "engine")

    def tool(graph, job, **keys):
        caplog.clear()
        overrides = [f"runner.{key}={value}" for key, value in {"tune_process": False, **keys}.items()]
        config = load_config(str(package / "config.yaml"), overrides)
        settings = read_settings(config, job)
        with apart(graph):
            jobs.run(graph, job, config, settings)
        return [record.getMessage() for record in caplog.records]

    yield tool
    for name in [*files, *OTHERS]:
        sys.modules.pop(name, None)


def printed(name, log):
    """(epoch, batch) -> the number under a name, in the order of the lines."""
    form = re.compile(rf"epoch: (\d+), batch_id: (\d+), .*?\b{name}: ?\[*([-\d.e]+)", re.DOTALL)
    return {(int(m[1]), int(m[2])): float(m[3]) for m in map(form.match, log) if m}


@pytest.mark.parametrize("graph", GRAPHS)
def test_epochs_batch_sizes_print_interval_and_data_dirs(toy, graph):
    """Lines 0, 2, 4, each of the batches since the one before: 5 examples of the one folder, 7 of the other."""
    log = toy(graph, "train", epochs=2, print_interval=2)
    assert printed("first", log) == {(epoch, batch): batch for epoch in (0, 1) for batch in (0, 2, 4)}
    assert set(printed("avg_samples", log).values()) == {1.0}
    log = toy(graph, "train", train_batch_size=2, drop_last=False, print_interval=2)
    assert printed("first", log) == {(0, 0): 0, (0, 2): 4}
    assert printed("avg_samples", log) == {(0, 0): 2.0, (0, 2): 1.5}
    log = toy(graph, "infer", infer_batch_size=3, train_batch_size=5, infer_end_epoch=1, print_interval=1)
    assert printed("first", log) == {(0, 0): 100, (0, 1): 103, (0, 2): 106}
    log = toy(graph, "infer", infer_batch_size=3, infer_drop_last=True, infer_end_epoch=1)
    assert list(printed("first", log)) == [(0, 0), (0, 1)]


def test_the_times_of_a_line_are_those_of_its_own_steps(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    caplog.set_level(logging.INFO, "engine")
    meter = Meter("dynamic", "train", 2)
    meter.begin()
    for batch, (examples, reader_s, step_s) in enumerate([(4, 1.0, 3.0), (4, 0.5, 1.5), (2, 0.25, 0.75)]):
        meter.add(0, batch, Step({}, dict), examples, reader_s, step_s)
    log = [record.getMessage() for record in caplog.records]
    for name, of_lines in (("avg_reader_cost", (1, 0.375)), ("avg_batch_cost", (4, 1.5)), ("ips", (1, 2))):
        assert printed(name, log) == dict(zip([(0, 0), (0, 2)], of_lines)), name


def test_the_reader_gets_sorted_files_and_no_hidden_ones(toy, tmp_path):
    for name, row in (("b.txt", 11), ("a.txt", 10), (".hidden", 666), ("d.txt", 13), ("c.txt", 12)):
        (tmp_path / "package" / "train" / name).write_text(str(row))
    log = toy("dynamic", "train")
    assert list(printed("first", log).values()) == [10, 11, 12, 13, 0, 1, 2, 3, 4]


def test_the_packages_modules_win_over_others_of_their_name(toy, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)  # which the standard library has too
    shutil.copy(tmp_path / "package" / "reader.py", tmp_path / "package" / "this.py")
    assert printed("first", toy("dynamic", "train", train_reader_path="this"))
    monkeypatch.delitem(sys.modules, "this")


@pytest.mark.parametrize("graph", GRAPHS)
def test_resume_auto_takes_the_newest_save_and_not_the_furthest(toy, graph):
    """Over a longer run's saves a second one begins anew; what goes on is the second."""
    toy(graph, "train", epochs=3)
    toy(graph, "train", epochs=1, lr_step="batch")
    log = toy(graph, "train", epochs=2, lr_step="batch", resume="auto")
    assert f"resumed from {os.path.join('model_output', '0')}: epoch 1, batch 0" in log
    assert printed("loss", log)[1, 0] == -1.9375, "the second run's weight"
    assert any("runner.epochs was 1, now it is 2" in line for line in log)
    assert not any(
        "runner.epochs was" in line for line in toy(graph, "train", epochs=2, lr_step="batch", resume="auto")
    )


def test_resume_auto_takes_nothing_of_an_older_run(toy):
    """Though the newest run's only save is broken: going on from another run would mix the two."""
    toy("dynamic", "train", epochs=2)
    toy("dynamic", "train", epochs=1)
    with open(os.path.join("model_output", "0", "rec.pdparams"), "ab") as file:
        file.write(b"damage")
    log = toy("dynamic", "train", epochs=2, resume="auto")
    assert any("nothing to resume from" in line for line in log) and not any("resumed from" in line for line in log)


@pytest.mark.parametrize("graph", GRAPHS)
def test_shuffle_is_a_permutation_of_seed_and_epoch_alone(toy, graph):
    """That of NumPy's generator seeded with both: a resumed run, or another graph, has the same order."""
    log = toy(graph, "train", epochs=2, shuffle=True, seed=9)
    orders = [[int(x) for (e, _), x in printed("first", log).items() if e == epoch] for epoch in (0, 1)]
    assert orders == [np.random.default_rng([9, epoch]).permutation(5).tolist() for epoch in (0, 1)]


def test_seed_is_of_all_three_and_each_step_draws_anew(toy):
    draws = {}
    for run_name, seed in (("first", 5), ("again", 5), ("other", 6)):
        log = toy("dynamic", "train", seed=seed, epochs=2)
        draws[run_name] = [printed(f"by_{kind}", log) for kind in ("paddle", "numpy", "random")]
    assert draws["first"] == draws["again"]
    for ours, theirs in zip(draws["first"], draws["other"]):
        assert len(ours) == 10 and len({*ours.values(), *theirs.values()}) == 20


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "lr_step,weights",
    [
        ("none", [0, -1, -2, -3, -4, -5]),
        ("batch", [0, -1, -1.5, -1.75, -1.875, -1.9375]),
        ("epoch", [0, -1, -2, -2.5, -3, -3.25]),
    ],
)
def test_lr_step_moves_the_schedule_after_each_batch_or_epoch_or_never(toy, graph, lr_step, weights):
    log = toy(graph, "train", lr_step=lr_step, epochs=3, train_batch_size=2)
    assert list(printed("loss", log).values()) == weights


def test_steps_per_epoch_is_counted_unless_it_is_given(toy):
    assert set(printed("steps", toy("dynamic", "train", train_batch_size=2)).values()) == {2}
    assert set(printed("steps", toy("dynamic", "train", train_batch_size=2, drop_last=False)).values()) == {3}
    log = toy("dynamic", "train", steps_per_epoch=77)
    assert set(printed("steps", log).values()) == {77}
    assert len([line for line in log if "runner.steps_per_epoch is 77, but an epoch" in line]) == 1


@pytest.mark.parametrize("graph", GRAPHS)
def test_save_interval_steps_saves_after_just_those_steps(toy, graph):
    log = toy(graph, "train", epochs=2, save_interval_steps=2)
    told = [re.sub(r"epoch: (\d), batch_id: (\d).*", r"\1.\2", line) for line in log]
    events = [line for line in told if re.fullmatch(r"\d.\d|Already save.*", line)]
    saved = "Already save model in " + os.path.join("model_output", "")
    assert events == [
        *("0.0", "0.1", saved + "last_step", "0.2", "0.3", saved + "last_step", "0.4", saved + "0"),
        *("1.0", "1.1", saved + "last_step", "1.2", "1.3", saved + "last_step", "1.4", saved + "1"),
    ]
    assert sorted(os.listdir("model_output")) == [".lock", "0", "1"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_keep_last_keeps_the_newest_and_paths_are_those_given(toy, graph):
    toy(graph, "train", epochs=4, keep_last=2, model_save_path="saves/of this")
    assert sorted(os.listdir("saves/of this")) == [".lock", "2", "3"]
    log = toy(graph, "infer", infer_load_path="saves/of this", infer_end_epoch=9)
    assert printed("loss", log)[3, 0] == -20, "the weights after 4 epochs of 5 steps"
    log = toy(graph, "train", model_init_path="saves/of this/2", model_save_path="warm")
    assert list(printed("loss", log).values()) == [-15, -16, -17, -18, -19]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_epochs_to_evaluate_begin_with_the_first_and_end_before_the_last(toy, graph):
    toy(graph, "train", epochs=5)
    losses = printed("loss", toy(graph, "infer", infer_start_epoch=1, infer_end_epoch=3, infer_batch_size=7))
    assert losses == {(1, 0): -10, (2, 0): -15}
    assert [epoch for epoch, _ in printed("loss", toy(graph, "infer", infer_batch_size=7))] == [0, 1, 2, 3, 4]


def test_each_job_has_a_reader_of_its_own(toy):
    assert printed("first", toy("dynamic", "train", train_reader_path="other_reader"))[0, 0] == 1000
    assert printed("first", toy("dynamic", "infer", train_reader_path="other_reader", infer_end_epoch=1))[0, 0] == 100
    assert printed("first", toy("dynamic", "infer", infer_reader_path="other_reader", infer_end_epoch=1))[0, 0] == 1100


def test_a_reader_is_told_its_job(toy):
    keys = {"train_reader_path": "job_reader", "infer_reader_path": "job_reader"}
    assert printed("first", toy("static", "train", **keys))[0, 0] == 1000
    assert printed("first", toy("static", "infer", **keys))[0, 0] == 2100
    toy("static", "export", save_inference_fetch_varnames="[sum]")
    toy("exported", "infer", predict_path="all.npz", **keys)
    assert np.load("all.npz")["sum"][0] == 2100 - 5


def test_export_takes_the_newest_epoch_or_the_one_asked_for(toy):
    """Of eleven: 10 is newer than 9, whose name comes later."""
    toy("static", "train", epochs=11, train_batch_size=5)
    for keys, epoch in (({}, 10), ({"export_epoch": 3}, 3), ({"export_epoch": 0}, 0)):
        log = toy("static", "export", save_inference_fetch_varnames="[sum]", **keys)
        assert f"exported epoch {epoch}" in log
        for threads in (3, 0):
            log = toy("exported", "infer", predict_path="all.npz", predict_threads=threads)
            assert np.load("all.npz")["sum"].ravel().tolist() == [row - (epoch + 1) for row in range(100, 107)]
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            assert any(f"threads: {threads or cores}" in line for line in log)
    with pytest.raises(UserError, match="export_epoch"):
        toy("static", "export", export_epoch=11)


def test_predict_threads_are_those_of_the_mathematics(toy, monkeypatch):
    toy("static", "train")
    toy("static", "export", save_inference_fetch_varnames="[sum]")
    opened = []
    monkeypatch.setattr(predict.inference, "create_predictor", opened.append)
    predict.predictor("exported", 3, onednn=False)
    assert opened[0].cpu_math_library_num_threads() == 3


def test_use_inference_exports_after_every_epoch(toy):
    toy("static", "train", epochs=2, use_inference=True, save_inference_fetch_varnames="[sum]")
    for epoch in ("0", "1"):
        model = predict.ExportedModel(os.path.join("model_output", epoch), 1)
        assert model.outputs({"x": np.zeros([1, 1], "float32")})["sum"].item() == -5 * (int(epoch) + 1)


def test_saved_data_are_the_fetches_of_every_batch_of_the_last_epoch_in_order(toy):
    def rows():
        return np.load(os.path.join("model_output", "result.npy"), allow_pickle=True)  # of loss, first, sum

    toy("static", "train", epochs=2, use_save_data=True)
    assert [row[0].item() for row in rows()] == [-5, -6, -7, -8, -9]
    toy("static", "infer", infer_batch_size=3, infer_end_epoch=2, use_save_data=True)
    assert [row[0].item() for row in rows()] == [-10] * 3
    assert [row[1].item() for row in rows()] == [100, 103, 106]
    assert np.concatenate([row[2] for row in rows()]).ravel().tolist() == [row - 10 for row in range(100, 107)]


def test_a_parameter_may_start_from_a_file(toy):
    np.save("vectors.npy", np.full([1, 1], 7.0))
    keys = {"use_out_vec": True, "emb_weight_name": "toy", "out_vec_path": "vectors.npy"}
    assert list(printed("loss", toy("static", "train", **keys)).values()) == [7, 6, 5, 4, 3]
    assert printed("loss", toy("static", "train", **{**keys, "use_out_vec": False}))[0, 0] == 0


def test_thread_num_is_paddles_cpu_num(toy, monkeypatch):
    monkeypatch.setenv("CPU_NUM", "1")
    log = toy("static", "train", thread_num=3)
    assert os.environ["CPU_NUM"] == "3" and "cpu_num: 3" in log


@pytest.mark.parametrize("graph", GRAPHS)
def test_visualdl_gets_the_numbers_of_the_lines(toy, graph, monkeypatch, tmp_path):
    scalars, folders = [], []

    class LogWriter:
        def __init__(self, folder):
            folders.append(folder)

        def add_scalar(self, tag, step, value):
            scalars.append((tag, step, value))

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=LogWriter))
    toy(graph, "train", use_visual=True, epochs=2, print_interval=3)
    assert folders == [str(tmp_path / "package" / "visualDL_log" / "train")]
    losses = [(step, value) for tag, step, value in scalars if tag == "train/loss"]
    assert losses == [(0, 0.0), (3, -3.0), (5, -5.0), (8, -8.0)], "steps are counted through the epochs"
    assert [value for tag, _, value in scalars if tag == "train/first"] == [0, 3, 0, 3]


@pytest.mark.parametrize("given,name", [
    ({"use_xpu": True, "use_gpu": True}, "xpu:0"), ({"use_npu": True, "use_gpu": "auto"}, "npu:0"),
    ({"use_gpu": True}, "gpu"), ({"use_gpu": "auto"}, "gpu"), ({"use_gpu": False}, "cpu"),
])  # fmt: skip
def test_which_device_wins_where_there_is_a_gpu(given, name, monkeypatch):
    asked = []
    monkeypatch.setattr(paddle, "set_device", lambda name: asked.append(name))
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    settings = types.SimpleNamespace(**{"use_xpu": False, "use_npu": False, "use_gpu": False, **given})
    device.set_device(settings)
    assert asked == [name]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    for kind in ("xpu", "npu"):
        settings = types.SimpleNamespace(use_xpu=False, use_npu=False, use_gpu=False)
        setattr(settings, f"use_{kind}", True)
        with pytest.raises(UserError, match=f"use_{kind} to false"):
            device.set_device(settings)


@pytest.mark.parametrize("to_static", ["true", "false", "auto"])
def test_to_static_compiles_the_network_where_it_says(toy, to_static):
    """auto: in a release whose dynamic graph compiles into its new programs, and on a CPU, as here."""
    log = toy("dynamic", "train", to_static=to_static)
    faster = not paddle.__version__.startswith("2.") and os.environ.get("FLAGS_enable_pir_api") != "0"
    compiled = any("compiled into a program" in line for line in log)
    assert compiled is {"true": True, "false": False, "auto": faster}[to_static]
    assert list(printed("loss", log).values()) == [0, -1, -2, -3, -4]
