"""tools/engine/jobs.py: what each runner key decides, shown by a toy package whose log has every number.

Keys of other modules are tested with them: see tests/engine/test_*.py.
"""

import os
import random
import re
import types

import numpy as np
import paddle
import pytest

from engine.checkpoints.session import Session
from engine.errors import UserError
from engine.graphs import device
from engine.serving import predict
from support import ROOT, resuming
from support.toolbox import assert_refused, run_here


@pytest.fixture
def run(toy, tmp_path, monkeypatch):
    """A function that runs a tool on the toy, (name, key=value ...), and gives its log."""
    monkeypatch.chdir(tmp_path)

    def tool(name, **keys):
        done = toy(name, *(f"runner.{key}={value}" for key, value in keys.items()))
        assert done.returncode == 0, done.stderr
        return done.stderr

    return tool


@pytest.fixture(params=[("trainer", "infer"), ("static_trainer", "static_infer")], ids=["dynamic", "static"])
def tools(request):
    """Names of the tools that train and evaluate on a graph."""
    return request.param


def printed(name, log):
    """(epoch, batch) -> the number of a name on the interval lines."""
    found = re.findall(rf"epoch: (\d+), batch_id: (\d+), .*?\b{name}: ?\[*([-\d.e]+)", log, re.DOTALL)
    return {(int(epoch), int(batch)): float(number) for epoch, batch, number in found}


def test_epochs_batch_sizes_print_interval_and_data_dirs(run, tools):
    """Lines 0, 2, 4, each about the batches since the one before: 5 examples of one folder, 7 of the other."""
    train, infer = tools
    log = run(train, epochs=2, print_interval=2)
    assert printed("first", log) == {(epoch, batch): batch for epoch in (0, 1) for batch in (0, 2, 4)}
    assert set(printed("avg_samples", log).values()) == {1.0}
    log = run(train, train_batch_size=2, drop_last=False, print_interval=2)
    assert printed("first", log) == {(0, 0): 0, (0, 2): 4}
    assert printed("avg_samples", log) == {(0, 0): 2.0, (0, 2): 1.5}
    log = run(infer, infer_batch_size=3, train_batch_size=5, infer_end_epoch=1, print_interval=1)
    assert printed("first", log) == {(0, 0): 100, (0, 1): 103, (0, 2): 106}
    log = run(infer, infer_batch_size=3, infer_drop_last=True, infer_end_epoch=1)
    assert list(printed("first", log)) == [(0, 0), (0, 1)]


def test_the_reader_gets_sorted_files_and_no_hidden_ones(run, tmp_path):
    for name, row in (("b.txt", 11), ("a.txt", 10), (".hidden", 666), ("d.txt", 13), ("c.txt", 12)):
        (tmp_path / "toy" / "train" / name).write_text(str(row))
    assert list(printed("first", run("trainer")).values()) == [10, 11, 12, 13, 0, 1, 2, 3, 4]


def test_each_job_has_its_own_reader_and_tells_the_reader_its_job(run):
    assert printed("first", run("static_trainer", train_reader_path="job_reader"))[0, 0] == 1000
    other = {"train_reader_path": "job_reader", "infer_end_epoch": 1}
    assert printed("first", run("static_infer", **other))[0, 0] == 100
    other["infer_reader_path"] = "job_reader"
    assert printed("first", run("static_infer", **other))[0, 0] == 2100
    run("export", save_inference_fetch_varnames="[sum]")
    run("predict", predict_path="all.npz", **other)
    assert np.load("all.npz")["sum"][0] == 2100 - 5


def test_a_resumed_run_continues_the_newest_run_and_not_the_longest(run, tools):
    train, _ = tools
    run(train, epochs=3)
    run(train, epochs=1, lr_step="batch")
    log = run(train, epochs=2, lr_step="batch", resume="auto")
    assert f"resumed from {os.path.join('model_output', '0')}: epoch 1, batch 0" in log
    assert printed("loss", log)[1, 0] == -1.9375, "the second run's weight"
    assert "runner.epochs was 1 and is 2 now" in log
    assert "runner.epochs was" not in run(train, epochs=2, lr_step="batch", resume="auto")


def test_a_resumed_run_takes_nothing_from_an_older_run(run):
    """Not even if the newest run's only checkpoint is damaged: it would mix the two."""
    run("trainer", epochs=2)
    run("trainer", epochs=1)
    with open(os.path.join("model_output", "0", "rec.pdparams"), "ab") as file:
        file.write(b"damage")
    log = run("trainer", epochs=2, resume="auto")
    assert "nothing to resume from" in log and "resumed from" not in log


def test_the_seed_decides_the_order_and_all_three_generators(run):
    """The order is that of NumPy's generator seeded with seed and epoch, so that any graph and any resume has it."""
    logs = [run("trainer", seed=seed, epochs=2, shuffle=True) for seed in (5, 5, 6)]
    orders = [[int(x) for (e, _), x in printed("first", logs[0]).items() if e == epoch] for epoch in (0, 1)]
    assert orders == [np.random.default_rng([5, epoch]).permutation(5).tolist() for epoch in (0, 1)]
    draws = [[printed(f"by_{kind}", log) for kind in ("paddle", "numpy", "random")] for log in logs]
    assert draws[0] == draws[1]
    for ours, theirs in zip(draws[0], draws[2]):
        assert len(ours) == 10 and len({*ours.values(), *theirs.values()}) == 20


@pytest.mark.parametrize(
    "lr_step,weights",
    [
        ("none", [0, -1, -2, -3, -4, -5]),
        ("batch", [0, -1, -1.5, -1.75, -1.875, -1.9375]),
        ("epoch", [0, -1, -2, -2.5, -3, -3.25]),
    ],
)
def test_lr_step_moves_the_schedule_after_each_batch_or_epoch_or_never(run, tools, lr_step, weights):
    log = run(tools[0], lr_step=lr_step, epochs=3, train_batch_size=2)
    assert list(printed("loss", log).values()) == weights


def test_steps_per_epoch_is_counted_unless_it_is_given(run):
    for keys, steps in (({}, 2), ({"drop_last": False}, 3), ({"steps_per_epoch": 77}, 77)):
        log = run("trainer", train_batch_size=2, **keys)
        assert set(printed("steps", log).values()) == {steps}
        assert log.count("runner.steps_per_epoch is 77, but an epoch") == (steps == 77)


def test_save_interval_steps_saves_after_just_those_steps(run, tools):
    log = run(tools[0], epochs=2, save_interval_steps=2)
    events = re.findall(r"epoch: (\d), batch_id: (\d)|Already save model in \S*?(last_step|\d+)$", log, re.MULTILINE)
    assert ["".join(event) for event in events] == [
        *("00", "01", "last_step", "02", "03", "last_step", "04", "0"),
        *("10", "11", "last_step", "12", "13", "last_step", "14", "1"),
    ]
    assert {"0", "1"} == {name for name in os.listdir("model_output") if not name.startswith(".")}


def test_keep_last_keeps_the_newest_and_paths_are_those_given(run, tools):
    train, infer = tools
    run(train, epochs=4, keep_last=2, model_save_path="saves/of this")
    assert {name for name in os.listdir("saves/of this") if not name.startswith(".")} == {"2", "3"}
    log = run(infer, infer_load_path="saves/of this", infer_end_epoch=9)
    assert printed("loss", log)[3, 0] == -20, "the weights after 4 epochs of 5 steps"
    log = run(train, model_init_path="saves/of this/2", model_save_path="warm")
    assert list(printed("loss", log).values()) == [-15, -16, -17, -18, -19]


def test_every_epoch_is_evaluated_unless_keys_limit_them(run, tools):
    train, infer = tools
    run(train, epochs=12)
    assert [epoch for epoch, _ in printed("loss", run(infer, infer_batch_size=7))] == [*range(12)]
    log = run(infer, infer_batch_size=7, infer_start_epoch=1, infer_end_epoch=10)
    assert printed("loss", log) == {(epoch, 0): -5 * (epoch + 1) for epoch in range(1, 10)}
    assert re.search(r"not evaluated \(infer_start_epoch, infer_end_epoch\): epoch 0, 10, 11$", log, re.MULTILINE)
    assert "last evaluated epoch: 9 (of the test data)" in log
    os.rename("model_output/3", "model_output/.3")
    assert "model_output: skipped missing epochs: 3" in run(infer, infer_batch_size=7)


def test_export_takes_the_newest_epoch_or_the_one_asked_for(run, toy):
    """Of eleven: 10 is newer than 9, whose name comes later."""
    run("static_trainer", epochs=11, train_batch_size=5)
    for keys, epoch in (({}, 10), ({"export_epoch": 0}, 0)):
        assert f"exported epoch {epoch}" in run("export", save_inference_fetch_varnames="[sum]", **keys)
        for threads in (3, 0):
            log = run("predict", predict_path="all.npz", predict_threads=threads)
            assert np.load("all.npz")["sum"].ravel().tolist() == [row - (epoch + 1) for row in range(100, 107)]
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            assert f"threads: {threads or cores}" in log
    assert_refused(toy("export", "runner.export_epoch=11"), "export_epoch")


def test_use_inference_exports_after_every_epoch(run):
    run("static_trainer", epochs=2, use_inference=True, save_inference_fetch_varnames="[sum]")
    for epoch in ("0", "1"):
        model = predict.ExportedModel(os.path.join("model_output", epoch), 1)
        assert model.outputs({"x": np.zeros([1, 1], "float32")})["sum"].item() == -5 * (int(epoch) + 1)


def test_use_save_data_writes_the_fetches_of_the_last_epoch(run):
    def rows():
        return np.load(os.path.join("model_output", "result.npy"), allow_pickle=True)  # of loss, first, sum

    run("static_trainer", epochs=2, use_save_data=True)
    assert [row[0].item() for row in rows()] == [-5, -6, -7, -8, -9]
    run("static_infer", infer_batch_size=3, infer_end_epoch=2, use_save_data=True)
    assert [(row[0].item(), row[1].item()) for row in rows()] == [(-10, 100), (-10, 103), (-10, 106)]
    assert np.concatenate([row[2] for row in rows()]).ravel().tolist() == [row - 10 for row in range(100, 107)]


def test_a_parameter_may_start_from_a_file(run):
    np.save("vectors.npy", np.full([1, 1], 7.0))
    keys = {"use_out_vec": True, "emb_weight_name": "toy", "out_vec_path": "vectors.npy"}
    assert list(printed("loss", run("static_trainer", **keys)).values()) == [7, 6, 5, 4, 3]
    assert printed("loss", run("static_trainer", **{**keys, "use_out_vec": False}))[0, 0] == 0


def test_thread_num_is_cpu_num_during_the_run(run):
    before = os.environ.get("CPU_NUM")
    assert "cpu_num: 3" in run("static_trainer", thread_num=3) and os.environ.get("CPU_NUM") == before


@pytest.mark.parametrize("kind", ["xpu", "npu"])
def test_an_accelerator_that_is_missing_is_refused_even_if_there_is_a_gpu(kind):
    settings = types.SimpleNamespace(**{"use_xpu": False, "use_npu": False, "use_gpu": "auto", f"use_{kind}": True})
    with pytest.raises(UserError, match=f"the device {kind}:0 .*use_{kind} to false"):
        device.set_device(settings)


def test_to_static_compiles_the_network_as_the_key_says(run):
    """auto: on a CPU, with a release whose dynamic graph compiles into the new kind of program."""
    faster = not paddle.__version__.startswith("2.") and os.environ.get("FLAGS_enable_pir_api") != "0"
    for to_static, compiled in (("true", True), ("false", False), ("auto", faster)):
        log = run("trainer", to_static=to_static)
        assert ("compiled into a program" in log) is compiled
        assert list(printed("loss", log).values()) == [0, -1, -2, -3, -4]


# ---------------------------------------------------------- random numbers drawn within a step


class DrawingExpert(paddle.nn.Layer):
    """A user's expert that draws in training from all three generators."""

    def __init__(self, width, out_size):
        super().__init__()
        self.linear = paddle.nn.Linear(width, out_size)

    def forward(self, x):
        x = self.linear(paddle.flatten(x, start_axis=1))
        if self.training:
            x = x * (1 + 0.1 * paddle.rand([x.shape[1]]) + 0.1 * np.random.rand() + 0.1 * random.random())
        return x


def drawing_expert(shape, expert_size):
    return DrawingExpert(int(np.prod(shape)), expert_size)


READERS = {
    "drawing_reader": """
import random
import numpy as np
import paddle
import multiMNIST_reader

class RecDataset(multiMNIST_reader.RecDataset):
    def gather(self, indices):  # draws in evaluation too
        image, *labels = super().gather(indices)
        noise = 0.1 * np.random.rand(*image.shape) + 0.1 * random.random()
        if paddle.in_dynamic_mode():
            noise += 0.1 * paddle.rand([1]).item()
        return [(image + noise).astype("float32"), *labels]
""",
    # a resumed epoch reads its blocks again, and so has drawn more before its first step
    "blocks_reader": """
import random
import numpy as np
import paddle
from paddle.io import IterableDataset
import multiMNIST_reader

class RecDataset(IterableDataset):
    def __init__(self, file_list, config):
        self.whole = multiMNIST_reader.RecDataset(file_list, config)

    def __iter__(self):
        raise AssertionError("it gives blocks")

    def blocks(self, epoch, seed, in_order):
        return in_order(self.block, range(0, len(self.whole) - 15, 16))

    def block(self, begin):
        np.random.rand(), random.random(), paddle.in_dynamic_mode() and paddle.rand([1])
        return self.whole.gather(np.arange(begin, begin + 16))
""",
}
PREFIX = "hyper_parameters."
MLP = [f"{PREFIX}expert=mlp", f"{PREFIX}expert_norm=none", f"{PREFIX}expert_hidden_sizes=[8]"]
NOISY, RESTLESS = [f"{PREFIX}gate=noisy_top_k", f"{PREFIX}top_k=1"], f"{PREFIX}gate=support.users_parts.restless_gate"
DROPOUT = f"{PREFIX}expert_dropout=0.5"
DRAWING = [f"runner.{job}_reader_path=drawing_reader" for job in ("train", "infer")]
RUNS = {
    # in a program numpy and random draw once, as it is built
    "eager, a user's expert": ("trainer", [f"{PREFIX}expert=test_jobs.drawing_expert", *DRAWING]),
    "eager, a reader of blocks": ("trainer", [*MLP, *NOISY, DROPOUT, "runner.train_reader_path=blocks_reader"]),
    # without dropout: threads run the experts of a program, and their dropout, in any order (the same seed gives other
    # weights twice, unless FLAGS_new_executor_serial_run is on, which costs half the speed: benchmarks/LOG.md)
    "compiled": ("trainer", [*MLP, RESTLESS, *DRAWING, "runner.to_static=true"]),
    "static": ("static_trainer", [*MLP, *NOISY, *DRAWING]),
    # of 8 steps; the run dies in the sixth
    "static, a local search": ("static_trainer", [*MLP, f"{PREFIX}gate_search_steps=7"]),
}


@pytest.mark.parametrize("tool,keys", RUNS.values(), ids=RUNS)
def test_a_run_that_draws_resumes_within_an_epoch_to_the_same_bits(tool, keys, tmp_path, monkeypatch):
    """With a validation in between, which draws too if the reader does."""
    (tmp_path / "modules").mkdir()
    for name, text in READERS.items():
        (tmp_path / "modules" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    data = resuming.make_data(str(tmp_path / "data"), 70)
    held = resuming.make_data(str(tmp_path / "held"), 20, "test").replace("test_data_dir", "validation_data_dir")
    keys = [*resuming.OVERRIDES, data, held, "runner.infer_batch_size=16", "runner.to_static=false", *keys]

    def run(name, *more):
        (tmp_path / name).mkdir(exist_ok=True)
        return run_here(tool, ROOT / "config.yaml", *keys, *more, cwd=tmp_path / name)

    after_step = Session.after_step

    def die_in_the_second_epoch(session, epoch, batch_id, not_finite):
        after_step(session, epoch, batch_id, not_finite)
        if (epoch, batch_id) == (1, 2):  # of 4 steps; 2 are saved
            raise KeyError("as a kill: nothing in the tools catches it")

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    with monkeypatch.context() as patch:
        patch.setattr(Session, "after_step", die_in_the_second_epoch)
        assert run("killed").returncode == 1
    resumed = run("killed", "runner.resume=auto")
    assert resumed.returncode == 0 and "epoch 1, batch 2" in resumed.stderr, resumed.stderr
    theirs = resuming.state(tmp_path / "whole")
    assert not resuming.differences(resuming.state(tmp_path / "killed"), theirs) and theirs
