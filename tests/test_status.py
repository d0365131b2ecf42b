"""The lines that tell which experts each task uses: the same in both graphs, and computed again in NumPy."""

import logging
import re

import numpy as np
import oracles
import paddle
import pytest
from toolbox import batches_of, opened, saved_after_a_few_steps

from engine import loop
from engine.jobs import GRAPHS
from engine.meter import SHOWN_OF_STATUS, Meter

EXPERTS, EXAMPLES = 4, 50
GATES = ("dselect_k", "dselect_k_per_example")


@pytest.fixture(scope="module", params=GATES)
def saved(request, tmp_path_factory):
    """(gate, overrides) of a network after a few steps, its weights in epoch 0 of infer_load_path."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [f"hyper_parameters.gate={request.param}", f"hyper_parameters.expert_num={EXPERTS}"]
    overrides += ["hyper_parameters.gamma=0.05", "runner.to_static=false", "runner.infer_batch_size=32"]
    return request.param, saved_after_a_few_steps(folder, EXAMPLES, *overrides, "runner.drop_last=false")


def evaluated(graph_name, overrides):
    """(status after an evaluation, gate -> its saved parameters by their last name, images of all examples)."""
    with opened(graph_name, "infer", overrides) as (graph, config, settings):
        graph.read(f"{settings.infer_load_path}/0")
        batches = batches_of(config, settings, "infer")
        loop.evaluate(graph, batches, 0, Meter(graph_name, "infer", 1000, None, graph.values_at_end()))
        images = np.concatenate([batch[0] for batch in batches(0)])
        status, state = graph.status(), paddle.load(f"{settings.infer_load_path}/0/rec.pdparams")
    gates = [
        {name.split(".")[-1]: np.asarray(v, float) for name, v in state.items() if name.startswith(f"gates.{task}.")}
        for task in (0, 1)
    ]
    return status, gates, images.reshape(len(images), -1).astype(float)


def mean_weights(gate, images):
    """[n]: of a gate's saved parameters, over the images where it reads them."""
    if "selector_weight" not in gate:
        return oracles.gate(gate["selector_logits"].reshape(2, -1), gate["mixing_logits"], EXPERTS, 0.05)
    z = images @ gate["selector_weight"] + gate["selector_logits"]
    w = images @ gate["mixing_weight"] + gate["mixing_logits"]
    return np.mean([oracles.gate(a.reshape(2, -1), b, EXPERTS, 0.05) for a, b in zip(z, w)], axis=0)


def as_array(weights):
    """[n] of what a status says of a task."""
    return np.array([weights.get(str(i), 0.0) for i in range(EXPERTS)])


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_evaluations_weights_are_those_of_the_gates(saved, graph):
    gate, overrides = saved
    status, gates, images = evaluated(graph, overrides)
    over = ", mean weights over all examples" if gate == "dselect_k_per_example" else ""
    assert list(status) == [f"task {task} experts{over}" for task in (1, 2)]
    for weights, parameters in zip(status.values(), gates):
        expected = mean_weights(parameters, images)
        np.testing.assert_allclose(as_array(weights), expected, atol=1e-5)
        assert set(weights) == {str(i) for i in np.flatnonzero(expected)}, "no expert without weight is named"


@pytest.mark.parametrize("graph", GRAPHS)
def test_training_tells_of_the_gates_as_they_are_and_draws_nothing(saved, graph):
    """A static gate's weights are those after the last step, of a per-example gate those within it, on its batch."""
    gate, overrides = saved
    with opened(graph, "train", overrides) as (trained, config, settings):
        trained.begin_epoch()
        for batch in batches_of(config, settings, "train")(0):
            before = {name: np.array(value) for name, value in trained.parameters().items()}
            trained.train_step(batch)
        paddle.seed(5)
        status = trained.status()
        state = before if gate == "dselect_k_per_example" else trained.parameters()
        labels = trained.model.parameter_labels
        named = {labels.get(name, name).split(" ")[0]: np.array(value, float) for name, value in state.items()}
    drawn = float(paddle.rand([]))
    paddle.seed(5)
    assert drawn == float(paddle.rand([]))
    images = np.asarray(batch[0], float).reshape(len(batch[0]), -1)
    for task, weights in enumerate(status.values()):
        of_gate = {n.split(".")[-1]: v for n, v in named.items() if n.startswith(f"gates.{task}.")}
        np.testing.assert_allclose(as_array(weights), mean_weights(of_gate, images), atol=1e-5)
    over = ", mean weights over the last batch" if gate == "dselect_k_per_example" else ""
    assert list(status) == [f"task {task} experts{over}" for task in (1, 2)] and len(batch[0]) == 6


def test_a_gate_in_training_stays_in_training(saved):
    with opened("dynamic", "train", saved[1]) as (graph, _, _):
        graph.begin_epoch()
        graph.status()
        assert all(layer.training for layer in graph.net.sublayers(include_self=True))


@pytest.fixture
def lines(caplog, monkeypatch):
    """The log's messages after an epoch's end with a status."""
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    caplog.set_level(logging.INFO, "engine")

    def close(status):
        caplog.clear()
        meter = Meter("static", "train", 1)
        meter.begin()
        meter.close(3, {"auc": 0.5}, status)
        return caplog.messages

    return close


def test_the_lines_name_the_greatest_first_and_have_no_word_that_scripts_look_for(lines):
    found = lines({"task 1 experts": {"2": 0.38, "5": 0.62}, "task auc experts": {"0": 4.7e-6}, "task 3 experts": {}})
    assert found[1:] == [
        "epoch: 3 task 1 experts: 5 (0.62), 2 (0.38)", "epoch: 3 task auc experts: 0 (4.7e-06)",
        "epoch: 3 task 3 experts: none",
    ]  # fmt: skip
    assert not any(re.search(r"\b(auc|ips): ", line) for line in found[1:])


def test_a_long_list_is_cut_on_the_line(lines):
    (_, line) = lines({"task 1 experts": {str(i): 1 / (i + 1) for i in range(SHOWN_OF_STATUS + 3)}})
    assert line.endswith(f"{SHOWN_OF_STATUS - 1} (0.125), and 3 more") and f"{SHOWN_OF_STATUS} (" not in line


def test_a_package_that_says_nothing_has_no_lines(lines):
    assert len(lines({})) == 1
