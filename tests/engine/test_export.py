"""Exported models: pruned equals whole, by Paddle Inference and ONNX; the two tools that write and run them."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest

import net
from dselect_k_model.kinds.binary import Binary
from dselect_k_model.kinds.classes import Classes
from dselect_k_model.kinds.multi_label import MultiLabel
from dselect_k_model.kinds.regression import Regression
from engine.checkpoints import folders, manifests
from engine.errors import UserError
from engine.serving import export, predict, signature, to_onnx
from engine.serving import exported as exported_model
from multiMNIST_reader import read_set
from static_model import StaticModel
from support import ROOT
from support.rounding import OUTPUTS_32, assert_near
from support.seeds import random_state
from support.toolbox import TEST_NUM, assert_refused, run_here, small_data
from support.ways import LEGACY_3, StaticRun, code_logits, config, start

CONFIG = ROOT / "config.yaml"
EXPERTS, TASKS = 4, 2
SMALL = {"expert_num": EXPERTS, "expert_size": 8, "tower_size": 8}
ALL = ["logits1", "logits2", "probabilities1", "probabilities2", "gate_weights1", "gate_weights2"]


class Whole(StaticModel):
    """The package without its network for export: the network that branches at run time is exported."""

    export_net = None


class Nameless(Whole):
    """It offers only what it prints."""

    def build(self, feeds, is_infer=False):
        return super().build(feeds, is_infer)._replace(outputs={})


def exported(run, folder, outputs=ALL, model=StaticModel, inputs=()):
    """Export a ``StaticRun``, and give the folder."""
    folder.mkdir(exist_ok=True)
    with run.on():
        source = export.Source(
            model(run.flat), {**run.flat, "yaml_path": "config.yaml"}, run.program, run.feeds, run.executor, run.state()
        )
        export.write(str(folder), source, inputs, outputs)
    return folder


def outputs_of(folder, image):
    """What Paddle Inference computes, as predict does: name -> array."""
    return exported_model.ExportedModel(str(folder), 1).outputs({"image": image})


@contextlib.contextmanager
def opened(folder):
    """(program, fetches, executor) of an exported folder, for Paddle's plain executor, in a scope of its own."""
    paddle.enable_static()
    try:
        with paddle.static.scope_guard(paddle.static.Scope()):
            executor = paddle.static.Executor(paddle.CPUPlace())
            program, _, fetches = paddle.static.load_inference_model(str(folder / signature.PREFIX), executor)
            yield program, fetches, executor
    finally:
        paddle.disable_static()


def whole_outputs(folder, image):
    """The same by Paddle's plain executor, which runs whatever program there is."""
    with opened(folder) as (program, fetches, executor):
        return dict(zip(ALL, executor.run(program, feed={"image": image}, fetch_list=fetches)))


def experts_in(folder, run):
    """Numbers of the experts whose parameters an exported program holds."""
    with opened(folder) as (program, _, _):
        held = program.state_dict("all", paddle.static.global_scope())
    return {int(key.split(".")[1]) for key, name in run.names.items() if key.startswith("experts.") and name in held}


def size(folder):
    return sum(path.stat().st_size for path in folder.glob(f"{signature.PREFIX}.*"))


def set_gates(run, logits_of_tasks):
    """Give each task's static gate its own selector logits [k, m], in either kind of run."""
    run.set({
        name: np.asarray(logits_of_tasks[int(key.split(".")[1])], "float32").reshape(-1)
        for key, name in run.names.items() if key.endswith("selector_logits")
    })  # fmt: skip


# ---------------------------------------------------------------------------- the exported network

GATES = {  # keys, selector logits of each task, experts that a task needs
    "unsettled": ({}, [[[0.1, -0.2], [0.3, 0.0]]] * 2, 4),
    "settled on the same two": ({}, [code_logits([0, 3], 2, 0.7)] * 2, 2),
    "each task on one of its own": ({}, [code_logits([1, 1], 2, 0.5), code_logits([2, 2], 2, 9.0)], 2),
    "one selector undecided": ({}, [[[0.7, -0.7], [0.7, 0.2]], code_logits([2, 3], 2, 0.7)], 2),
    "no power of two, all weight lost": (
        {"expert_num": 5},
        [code_logits([4, 7], 3, 0.6), code_logits([7, 7], 3, 0.6)],
        2,
    ),
    "a single expert": ({"expert_num": 1, "top_k": 1}, [[], []], 1),
}


@pytest.mark.parametrize("keys,logits,needed", GATES.values(), ids=GATES)
def test_pruned_equals_whole_and_both_graphs_and_holds_the_needed_experts_alone(keys, logits, needed, tmp_path, rng):
    flat = config(**{**SMALL, **keys})
    eager, static = start("eager", flat), StaticRun(flat)
    set_gates(eager, logits)
    static.set(eager.state())
    pruned = exported(static, tmp_path / "pruned")
    assert len(experts_in(pruned, static)) == needed
    batch = [rng.rand(7, 1, 36, 36).astype("float32")] + [np.zeros(7, "int64")] * TASKS
    ours, theirs = outputs_of(pruned, batch[0]), exported(static, tmp_path / "whole", model=Whole)
    if needed < flat["hyper_parameters.expert_num"]:
        assert size(pruned) < 0.8 * size(theirs)
    for name, value in whole_outputs(theirs, batch[0]).items():
        assert_near(ours[name], value, OUTPUTS_32, name)
    for task, (dynamic, of_static) in enumerate(zip(eager.evaluate(batch)[2], static.evaluate(batch)[2]), 1):
        assert_near(ours[f"logits{task}"], dynamic, OUTPUTS_32)
        assert_near(ours[f"logits{task}"], of_static, OUTPUTS_32)
        single = outputs_of(pruned, batch[0][:1])[f"logits{task}"]
        assert_near(single, ours[f"logits{task}"][:1], OUTPUTS_32, "the batch size is free")


def test_a_gate_of_ones_own_is_pruned_by_its_weights_in_evaluation(tmp_path, rng):
    """One expert; in training all of them have a weight."""
    static = StaticRun(config(**SMALL, gate="support.users_parts.restless_gate"))
    pruned = exported(static, tmp_path / "pruned")
    assert experts_in(pruned, static) == {1}
    image = rng.rand(7, 1, 36, 36).astype("float32")
    batch, ours = [image] + [np.zeros(7, "int64")] * TASKS, outputs_of(pruned, image)
    for t, logits in enumerate(static.outputs(batch)):
        assert_near(ours[f"logits{t + 1}"], logits, OUTPUTS_32)
    assert ours["gate_weights1"].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("gate", ["sparsemax", "entmax15", "relu_routing"])
def test_a_gate_with_zeros_for_each_example_is_exported(gate, tmp_path, rng):
    static = StaticRun(config(**SMALL, gate=gate))
    of_gates = [name for key, name in static.names.items() if key.startswith("gates") and key.endswith(".weight")]
    static.set({name: static.state()[name] * 5 for name in of_gates})  # so that entmax15 has zeros too
    folder, image = exported(static, tmp_path / "model"), rng.rand(7, 1, 36, 36).astype("float32")
    batch, ours = [image] + [np.zeros(7, "int64")] * TASKS, outputs_of(folder, image)
    for t, logits in enumerate(static.outputs(batch)):
        assert_near(ours[f"logits{t + 1}"], logits, OUTPUTS_32)
    weights = np.stack([ours[f"gate_weights{t + 1}"] for t in range(TASKS)])
    assert (weights == 0).any() and (weights > 0).any() and not np.signbit(weights).any()


@pytest.mark.parametrize("gate,needed", [("random", None), ("shared_bottom", 1), ("single_task", 2)])
def test_a_fixed_gate_is_exported_with_the_experts_it_needs_alone(gate, needed, tmp_path, rng, caplog):
    """On a table, two kinds of task; fixed gates have their zeros from the start."""
    tasks = [{"kind": "binary"}, {"kind": "regression"}]
    keys = {**SMALL, "gate": gate, "top_k": 1, "input__dense_size": 5, "expert_norm": "none", "tasks": tasks}
    run = start("static", config(**keys))
    if gate == "random":
        drawn = [net.FixedGate.of_random_experts(EXPERTS, 1, seed=task).weights for task in range(2)]
        needed = int((np.sum(drawn, axis=0) > 0).sum())
    batch = [rng.randn(7, 5).astype("float32"), np.zeros(7, "float32"), np.zeros(7, "float32")]
    whole = run.outputs(batch)
    folder = exported(run, tmp_path / "model", outputs=["logits1", "value2"])
    served = exported_model.ExportedModel(str(folder), 1).outputs({"dense": batch[0]})
    assert "oneDNN: off, the model has no convolution" in caplog.text
    for mine, name in zip(whole, ("logits1", "value2")):
        assert_near(served[name], mine, OUTPUTS_32)
    assert len(experts_in(folder, run)) == needed


@pytest.mark.parametrize("gate,needed", [("comet", EXPERTS), ("comet_shared", 2)])
def test_settled_trees_are_exported_with_the_experts_they_reach(gate, needed, tmp_path, rng):
    """Per example, any may be reached. With convolutions, so with oneDNN."""
    run = StaticRun(config(**SMALL, gate=gate))
    settled = {
        n: np.array([-9, -9, 9, 9, 9, -9], "float32") for k, n in run.names.items() if k.endswith("split_logits")
    }
    run.set(settled)  # both tasks' trees lead to the experts 0 and 2
    image = rng.rand(7, 1, 36, 36).astype("float32")
    folder = exported(run, tmp_path / "model")
    ours = outputs_of(folder, image)
    for task, logits in enumerate(run.outputs([image] + [np.zeros(7, "int64")] * TASKS), 1):
        assert_near(ours[f"logits{task}"], logits, OUTPUTS_32)
    used = ours["gate_weights1"].reshape([-1, EXPERTS]) > 0
    assert len(experts_in(folder, run)) == needed and (used == [True, False, True, False]).all()


def test_what_is_not_exported_needs_no_expert(tmp_path, rng, caplog):
    """The first task uses expert 1, the second experts 2 and 3; their number may be exported beside an output."""
    static = StaticRun(config(**SMALL))
    set_gates(static, [code_logits([1, 1], 2, 0.7), code_logits([2, 3], 2, 0.7)])
    for needed, outputs in (({1}, ["logits1"]), ({2, 3}, ["logits2"]), ({1}, ["logits1", "experts_used"])):
        folder = exported(static, tmp_path / outputs[-1], outputs)
        assert experts_in(folder, static) == needed
    assert outputs_of(folder, rng.rand(3, 1, 36, 36).astype("float32"))["experts_used"] == 3
    assert "oneDNN: on" in caplog.text and "export_net" not in caplog.text


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """A per-example gate that uses few experts for an example, and its export: (run, folder)."""
    static = StaticRun(config(**SMALL, gate="dselect_k_per_example"))
    rng = random_state(3)
    static.set({
        name: rng.randn(*static.state()[name].shape).astype("float32")
        for key, name in static.names.items() if key.endswith("selector_weight")
    })  # fmt: skip
    return static, exported(static, tmp_path_factory.mktemp("routed"))


def test_rows_of_a_per_example_gate_equal_the_whole_batch_with_onednn(routed, rng, caplog):
    static, folder = routed
    image = rng.rand(40, 1, 36, 36).astype("float32") * (rng.rand(40, 1, 36, 36) < 0.2)
    model = exported_model.ExportedModel(str(folder), 1)
    whole = model.outputs({"image": image})
    assert model.signature["feeds"][0]["shape"] == [-1, 1, 36, 36]
    assert "oneDNN: on" in caplog.text
    weights = whole["gate_weights1"]
    assert ((weights > 0).sum(axis=1) < EXPERTS).mean() > 0.8 and len({tuple(row > 0) for row in weights}) > 3
    logits = static.evaluate([image] + [np.zeros(40, "int64")] * TASKS)[2]
    for task in (1, 2):
        assert_near(whole[f"logits{task}"], logits[task - 1], OUTPUTS_32)
    for i in range(0, 40, 8):
        for name, value in model.outputs({"image": image[i : i + 1]}).items():
            assert_near(value, whole[name][i : i + 1], OUTPUTS_32, name)


@pytest.mark.skipif(LEGACY_3, reason="legacy programs of Paddle 3.x hold no branch: all experts are computed")
def test_an_expert_runs_on_its_own_rows(routed, tmp_path, rng):
    """An expert that gives infinity changes the rows that use it, and no others: no 0 x infinity."""
    static, folder = routed
    image = rng.rand(30, 1, 36, 36).astype("float32") * (rng.rand(30, 1, 36, 36) < 0.2)
    values = outputs_of(folder, image)
    used = (values["gate_weights1"] > 0) | (values["gate_weights2"] > 0)  # [B, n]
    expert = next(i for i in range(EXPERTS) if 0 < used[:, i].sum() < 30)
    bias = static.names[f"experts.{expert}.layers.5.bias"]
    before = static.state()
    static.set({bias: np.full_like(before[bias], np.inf)})
    try:
        spoilt = outputs_of(exported(static, tmp_path / "inf", ["logits1", "logits2"]), image)
    finally:
        static.set(before)
    same = [np.isclose(spoilt[name], values[name], rtol=0, atol=OUTPUTS_32).all(axis=1) for name in spoilt]
    assert ((same[0] & same[1]) == ~used[:, expert]).all()


def onnxruntime_or_skip():
    """The module; `make test-onnx` installs it and what else is needed."""
    for module in ("onnx", "paddle2onnx"):
        pytest.importorskip(module, reason="an extra: make test-onnx")
    return pytest.importorskip("onnxruntime", reason="an extra: make test-onnx")


@pytest.mark.parametrize("gate", ["dselect_k", "dselect_k_per_example"])
def test_onnx_equals_paddle(gate, routed, tmp_path, rng):
    onnxruntime = onnxruntime_or_skip()
    static = routed[0]
    if gate == "dselect_k":
        static = StaticRun(config(**SMALL))
        set_gates(static, [code_logits([0, 3], 2, 0.7)] * 2)
    folder = exported(static, tmp_path / "onnx")
    to_onnx.write(str(folder))
    session = onnxruntime.InferenceSession(str(folder / "rec_inference.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names == ALL and not any(isinstance(output.shape[0], int) for output in session.get_outputs()[:4])
    for number in (7, 1, 20):
        image = rng.rand(number, 1, 36, 36).astype("float32") * (rng.rand(number, 1, 36, 36) < 0.2)
        image = image.astype("float32")
        for name, value in zip(names, session.run(None, {"image": image})):
            assert_near(value, outputs_of(folder, image)[name], OUTPUTS_32, name)


def test_a_loss_which_paddle2onnx_does_not_know_is_refused(routed, tmp_path):
    """It aborts the process that it runs in."""
    onnxruntime_or_skip()
    if paddle.__version__.startswith("2."):
        pytest.skip("paddle2onnx 1.3.1 converts it")
    with pytest.raises(UserError, match="paddle2onnx cannot convert this model.*Set export_format to paddle"):
        to_onnx.write(str(exported(routed[0], tmp_path / "loss", outputs=["loss1"])))


def test_names_that_cannot_be_exported_are_refused(routed, tmp_path):
    for words, keys in (
        (["needs image"], {"outputs": ["logits1"], "inputs": ["label1"]}),
        (["no picture", "image"], {"inputs": ["picture"]}),
        (["no 7", "loss"], {"outputs": [7]}),
        (["no logits", "loss"], {"outputs": [], "model": Nameless}),
    ):
        with pytest.raises(UserError) as caught:
            exported(routed[0], tmp_path / "never", **keys)
        assert all(word in str(caught.value) for word in words), caught.value
    assert not list((tmp_path / "never").iterdir())


def test_an_output_with_one_column_is_no_choice_of_classes():
    """In a package that does not say which tasks it has; its label is the one feed of whole numbers that is left."""
    paddle.enable_static()
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        feeds = [paddle.static.data("x", [-1, 4], "float32"), paddle.static.data("y", [-1, 1], "int64")]
        outputs = {"logits": feeds[0][:, :1], "logits1": paddle.scale(feeds[0], 2.0)}
    built = export.Built(program, feeds, {}, outputs, None)
    assert export._tasks(built, outputs) == [signature.of_classes("1", {"logits": "logits1"}, "y")]


def test_inputs_and_printed_numbers_may_be_named(routed, tmp_path, caplog):
    folder = exported(routed[0], tmp_path / "loss", ["loss"], inputs=["image", "label1", "label2"])
    assert "export_net has no loss" in caplog.text
    assert json.loads((folder / signature.SIGNATURE).read_text())["inputs"] == ["image", "label1", "label2"]


# ---------------------------------------------------------------------------- what predict makes of a batch


@pytest.fixture
def model(routed, tmp_path):
    """A model that writes a CSV."""
    model = exported_model.ExportedModel(str(routed[1]), 1)
    model.begin_evaluation()
    with open(tmp_path / "x.csv", "wb") as file:
        model.table = predict.CsvFile(file, model.signature)
        yield model


def test_labels_may_be_missing(model, tmp_path):
    assert model.infer_step([np.zeros([3, 1, 36, 36], "float32")])[1] == 3
    assert model.metrics() == {}
    model.table.file.flush()
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0].startswith("index,prediction1,probability1,prediction2,probability2,gate_weights1_0,")
    assert len(lines) == 4, "written as it comes, not kept"


@pytest.mark.parametrize("item", [np.zeros([3, 36, 36], "float32"), np.zeros([3, 1, 28, 28], "float32"),
                                  np.zeros([3, 1, 36, 36], "complex64")])  # fmt: skip
def test_a_batch_that_does_not_fit_is_refused(item, model):
    with pytest.raises(UserError, match="image"):
        model.infer_step([item])
    with pytest.raises(UserError, match="item 1"):
        model.infer_step([])


def test_onednn_with_other_numbers_is_not_used(routed, caplog, monkeypatch, rng):
    monkeypatch.setattr(exported_model, "_close", lambda outputs, expected: False)
    outputs_of(routed[1], rng.rand(2, 1, 36, 36).astype("float32"))
    assert "oneDNN: off" in caplog.text and "not those without it" in caplog.text


def test_one_image_at_a_time_is_computed_without_onednn(routed, caplog, rng):
    model, image = exported_model.ExportedModel(str(routed[1]), 1), rng.rand(2, 1, 36, 36).astype("float32")
    model.outputs({"image": image[:1]})
    assert "oneDNN: off, there is one example at a time" in caplog.text and "oneDNN: on" not in caplog.text
    for part in (image, image[:1], image):
        model.outputs({"image": part})
    assert caplog.text.count("oneDNN: on") == 1


@pytest.mark.parametrize("counts,expected", [([2, 2], 2), ([2, 3], [2, 3])])
def test_an_npz_holds_a_batchs_number_once_or_for_each(counts, expected, tmp_path):
    signature = {"outputs": [{"name": "used", "per_example": False}, {"name": "logits", "per_example": True}]}
    with open(tmp_path / "x.npz", "wb") as file:
        table = predict.NpzFile(file, signature)
        for count, size in zip(counts, (4, 1)):
            table.add({}, {"used": np.array(count), "logits": np.zeros([size, 10])})
        table.close()
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["used"].tolist() == expected and arrays["logits"].shape == (5, 10)


def with_column(content, **changes):
    task = content["tasks"][0]
    return {**content, "tasks": [{**task, "columns": [{**task["columns"][0], **changes}]}]}


SIGNATURES = {
    "no JSON": lambda s: "{",
    "a list": lambda s: [],
    "another format": lambda s: {**s, "format": 5},
    "no outputs": lambda s: {key: value for key, value in s.items() if key != "outputs"},
    "an unknown input": lambda s: {**s, "inputs": ["picture"]},
    "no inputs": lambda s: {**s, "inputs": []},
    "a strange type": lambda s: {**s, "feeds": [{**s["feeds"][0], "dtype": "flaot"}]},
    "a task without its output": lambda s: {**s, "tasks": [{**s["tasks"][0], "outputs": {"logits": "nothing"}}]},
    "an unknown way to take a column": lambda s: with_column(s, take="median"),
    "a threshold that is no number": lambda s: with_column(s, take=["above", "x"]),
    "a format 2 with an unknown kind": lambda s: {**s, "format": 2, "tasks": [{**s["tasks"][0], "kind": "ranking"}]},
    "a task without a name": lambda s: {**s, "tasks": [{**s["tasks"][0], "suffix": 1}]},
    "a label of no feed": lambda s: {**s, "tasks": [{**s["tasks"][0], "label": "label9"}]},
    "tasks of another form": lambda s: {**s, "tasks": {"1": {"logits": "logits1"}}},
    "files elsewhere": lambda s: {**s, "files": {"../x": "0"}},
    "another digest": lambda s: {**s, "files": {"rec_inference.pdiparams": "0"}},
}


@pytest.mark.parametrize("change", SIGNATURES.values(), ids=SIGNATURES)
def test_a_hostile_signature_is_refused_by_name(change, routed, tmp_path):
    shutil.copytree(routed[1], tmp_path / "model")
    path = tmp_path / "model" / signature.SIGNATURE
    content = change(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match="model"):
        signature.read(str(tmp_path / "model"))


def test_format_2_is_read_as_what_it_meant(routed, tmp_path):
    shutil.copytree(routed[1], tmp_path / "model")
    path = tmp_path / "model" / signature.SIGNATURE
    today = signature.read(str(tmp_path / "model"))
    old = json.loads(path.read_text())
    known = ("suffix", "outputs", "label")
    old.update(format=2, tasks=[{**{k: task[k] for k in known}, "kind": "classes"} for task in old["tasks"]])
    path.write_text(json.dumps(old))
    columns = [task["columns"] for task in signature.read(str(tmp_path / "model"))["tasks"]]
    assert columns == [task["columns"] for task in today["tasks"]]


@pytest.mark.parametrize(
    "kind,arrays,expected",
    [
        (
            Classes(3),
            {"logits": [[0.0, 2, 1], [3, 0, 0]], "probabilities": [[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]]},
            {"prediction_t": [1, 0], "probability_t": [0.7, 0.8]},
        ),
        (
            Binary(),
            {"logits": [[-1.0], [2]], "probabilities": [[0.2], [0.9]]},
            {"prediction_t": [0, 1], "probability_t": [0.2, 0.9]},
        ),
        (Regression(), {"value": [[1.5], [-2]]}, {"value_t": [1.5, -2]}),
        (
            MultiLabel(("a", "b")),
            {"logits": [[-1.0, 1], [2, -3]], "probabilities": [[0.2, 0.7], [0.9, 0.1]]},
            {
                **{"prediction_t_a": [0, 1], "prediction_t_b": [1, 0]},
                **{"probability_t_a": [0.2, 0.9], "probability_t_b": [0.7, 0.1]},
            },
        ),
    ],
)
def test_each_kind_says_which_columns_are_predicted(kind, arrays, expected):
    outputs = {f"{name}_t": np.array(value) for name, value in arrays.items()}
    described = {"suffix": "_t", "outputs": {name: f"{name}_t" for name in arrays}, "columns": kind.columns}
    described["label_columns"] = kind.label_names("_t")
    columns = signature.columns_of(described, outputs)
    assert list(columns) == list(expected)
    assert all(np.array_equal(columns[name], value) for name, value in expected.items())


def test_a_program_of_a_later_release_is_refused_where_it_would_crash(routed, tmp_path, monkeypatch):
    shutil.copytree(routed[1], tmp_path / "model")
    (tmp_path / "model" / "rec_inference.json").touch()
    monkeypatch.setattr(paddle, "__version__", "2.6.2")
    monkeypatch.setattr(manifests, "check_files", lambda *_: None)
    with pytest.raises(UserError, match="2.6.2 cannot read"):
        exported_model.ExportedModel(str(tmp_path / "model"), 1)


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path):
    (tmp_path / "old.csv").write_text("old")

    def fail(file):
        file.write(b"new")
        raise UserError("the reader failed")

    with pytest.raises(UserError, match="the reader failed"):
        folders.write_file(str(tmp_path / "old.csv"), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"] and (tmp_path / "old.csv").read_text() == "old"


# ---------------------------------------------------------------------------- the tools


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with data, and an epoch trained in each graph: (folder, the overrides)."""
    folder = tmp_path_factory.mktemp("work ü")
    overrides = [
        *(f"hyper_parameters.{name}={value}" for name, value in SMALL.items()), *small_data(folder),
        "runner.train_batch_size=16", "runner.infer_batch_size=32", "runner.epochs=1", "runner.to_static=false",
    ]  # fmt: skip
    run_well("trainer", *overrides, "runner.model_save_path=dynamic", cwd=folder)
    run_well("static_trainer", *overrides, "runner.model_save_path=static", "runner.use_inference=true", cwd=folder)
    return folder, overrides


def run_well(tool, *overrides, cwd, config=CONFIG):
    process = run_here(tool, config, *overrides, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stderr


def accuracies(log):
    return re.findall(r"epoch: 0 done, Accuracy1: (\S+), Accuracy2: (\S+?),", log)[-1]


def columns_of(path):
    return np.genfromtxt(path, delimiter=",", names=True)


def test_predict_agrees_with_infer_and_the_csv_holds_every_example(work):
    folder, overrides = work
    run_well("export", *overrides, "runner.infer_load_path=dynamic", cwd=folder)
    log = run_well("predict", *overrides, cwd=folder)
    infer = run_well("infer", *overrides, "runner.infer_load_path=dynamic", "runner.infer_end_epoch=1", cwd=folder)
    assert accuracies(log) == accuracies(infer)
    assert re.search(rf"{TEST_NUM} examples into predictions.csv, ips: \d+\.\d\d ins/s", log) and "oneDNN: on" in log
    table = columns_of(folder / "predictions.csv")
    assert table.dtype.names == (
        "index", "label1", "prediction1", "probability1", "label2", "prediction2", "probability2"
    )  # fmt: skip
    assert (table["index"] == np.arange(TEST_NUM)).all()
    for task, accuracy in enumerate(accuracies(infer), 1):
        right = table[f"label{task}"] == table[f"prediction{task}"]
        assert right.mean() == pytest.approx(float(accuracy), abs=1e-6)
        assert ((table[f"probability{task}"] >= 0.1) & (table[f"probability{task}"] <= 1)).all()


def test_predict_needs_no_network_and_the_npz_holds_all(work, tmp_path):
    """On what training exported by itself, in a tree without net.py and the wrappers."""
    folder, overrides = work
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("multiMNIST_reader.py", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dselect_k_model").mkdir()
    for name in ("__init__.py", "array_files.py", "config_key.py", "output_files.py", "processes.py"):
        shutil.copy(ROOT / "dselect_k_model" / name, tmp_path / "dselect_k_model")
    command = [sys.executable, tmp_path / "tools" / "predict.py", "-m", tmp_path / "config.yaml", "-o", *overrides]
    command += [f"runner.export_path={folder / 'static' / '0'}", "runner.predict_path=all.npz"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    arrays = np.load(tmp_path / "all.npz")
    part = read_set(str(folder / "test" / "part.pickle"))
    static = StaticRun(config(**SMALL))
    static.set(np.load(folder / "static" / "0" / "rec_static.pdparams", allow_pickle=True))
    batch = [part.images.reshape(-1, 1, 36, 36).astype("float32") / 255, part.labels[:, 0], part.labels[:, 1]]
    expected, _, logits = static.evaluate(batch)
    for task in (1, 2):
        assert_near(arrays[f"logits{task}"], logits[task - 1], OUTPUTS_32)
        assert_near(arrays[f"probabilities{task}"].sum(axis=1), 1, OUTPUTS_32)
        assert (arrays[f"label{task}"] == part.labels[:, task - 1]).all()
        assert (arrays[f"prediction{task}"] == arrays[f"logits{task}"].argmax(axis=1)).all()
    assert accuracies(process.stderr) == tuple(f"{value:.6f}" for value in expected)


def test_the_tool_writes_onnx_beside_paddles_own(work, tmp_path, rng):
    onnxruntime = onnxruntime_or_skip()
    folder, overrides = work
    run_well(
        "export", *overrides, f"runner.infer_load_path={folder / 'static'}", "runner.export_format=onnx", cwd=tmp_path
    )
    image = rng.rand(5, 1, 36, 36).astype("float32")
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / "rec_inference.onnx"))
    expected = outputs_of(tmp_path / "exported", image)
    for output, value in zip(session.get_outputs(), session.run(None, {"image": image})):
        assert_near(value, expected[output.name], OUTPUTS_32, output.name)


def test_a_package_without_the_hook_exports_what_is_named(tmp_path):
    shutil.copytree(ROOT / "tests" / "foreign" / "price", tmp_path / "price")
    yaml = tmp_path / "price" / "config.yaml"
    run_well("static_trainer", cwd=tmp_path, config=yaml)
    run_well("export", "runner.save_inference_fetch_varnames=[guess]", cwd=tmp_path, config=yaml)
    assert signature.read(str(tmp_path / "exported"))["inputs"] == ["x"], "no label"
    run_well("predict", cwd=tmp_path, config=yaml)
    assert columns_of(tmp_path / "predictions.csv").dtype.names == ("index", "guess")


# ---------------------------------------------------------------------------- the user's mistakes


FAILURES = {  # the converter's module, overrides, words of the message
    "an unknown output": ("", ["runner.save_inference_fetch_varnames=[logits1, guess]"], ["guess", "probabilities2"]),
    "no converter": ("raise ImportError('x')", ["runner.export_format=onnx"], ["export_format", "pip install"]),
    "a failure": ("def export(*_): raise KeyError('x')", ["runner.export_format=onnx"], ["export_format", "KeyError"]),
}


@pytest.mark.parametrize("module,overrides,words", FAILURES.values(), ids=FAILURES)
def test_an_export_that_fails_leaves_the_old_one(module, overrides, words, work, tmp_path, monkeypatch):
    for name, text in (("onnx", ""), ("paddle2onnx", module)):
        (tmp_path / f"{name}.py").write_text(text + "\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / signature.SIGNATURE).write_text("old")
    given = [*work[1], f"runner.infer_load_path={work[0] / 'static'}", "runner.export_path=kept", *overrides]
    assert_refused(run_here("export", CONFIG, *given, cwd=tmp_path), *words)
    assert (tmp_path / "kept" / signature.SIGNATURE).read_text() == "old"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [signature.SIGNATURE]
    assert not list(tmp_path.glob(".kept*"))


MISTAKES = {
    "no such epoch": ("export", "runner.export_epoch=3", ["export_epoch", "3", "0"]),
    "nothing saved": ("export", "runner.infer_load_path=nowhere", ["infer_load_path", "nowhere"]),
    "a folder of the user's": ("export", "runner.export_path=test", ["export_path", "part.pickle"]),
    "the working folder": ("export", "runner.export_path=.", ["export_path"]),
    "a file": ("export", "runner.export_path=test/part.pickle", ["export_path", "part.pickle"]),
    "the root": ("export", "runner.export_path=/", ["export_path"]),
    "an ending": ("predict", "runner.predict_path=x.txt", ["predict_path", ".npz"]),
    "a folder that cannot be": ("predict", "runner.predict_path=test/part.pickle/x.csv", ["x.csv"]),
    "a GPU": ("predict", "runner.use_gpu=true", ["CPU", "use_gpu"]),
    "no data": ("predict", "runner.test_data_dir=nowhere", ["test_data_dir", "nowhere"]),
    "no export": ("predict", "runner.export_path=test", ["export_path", "signature.json"]),
    "nothing": ("predict", "runner.export_path=none", ["export_path", "none"]),
}


@pytest.mark.parametrize("tool,override,words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(tool, override, words, work):
    given = {"export": "runner.infer_load_path=static", "predict": "runner.export_path=static/0"}
    assert_refused(run_here(tool, CONFIG, *work[1], given[tool], override, cwd=work[0]), *words)
    assert (work[0] / "test" / "part.pickle").exists()
