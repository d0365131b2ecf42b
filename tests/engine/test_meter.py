"""Each number of the line ``epoch: N done`` is the epoch's, and the same in both graphs, character for character."""

import re

import numpy as np
import paddle
import pytest

from engine import loop
from engine.errors import UserError
from engine.graphs import metric_state
from engine.graphs.graph import Step
from engine.jobs import GRAPHS
from engine.meter import Meter
from support import oracles
from support.rounding import OUTPUTS_32, assert_near
from support.seeds import random_state
from support.toolbox import batches_of, opened, saved_after_a_few_steps

EXAMPLES = 100
BATCHES = (7, 512)
GATES = ("dselect_k", "dselect_k_per_example")


@pytest.fixture(scope="module", params=GATES)
def saved(request, tmp_path_factory):
    """(gate, overrides) of a network after a few steps, its weights in epoch 0 of infer_load_path."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [f"hyper_parameters.gate={request.param}", "hyper_parameters.expert_num=4", "runner.to_static=false"]
    return request.param, saved_after_a_few_steps(folder, EXAMPLES, *overrides)


def evaluate(graph_name, overrides, caplog):
    """The done line of an evaluation, without the time."""
    caplog.clear()
    with opened(graph_name, "infer", overrides) as (graph, config, settings):
        meter = Meter(graph_name, "infer", 1000, None, graph.values_at_end())
        load = lambda epoch: graph.read(f"{settings.infer_load_path}/{epoch}")  # noqa: E731 (a callback)
        loop.infer(graph, batches_of(config, settings, "infer"), [0], meter, load, lambda epoch: None)
    (line,) = [message for message in caplog.messages if " done, " in message]
    return line[: line.index(", epoch time: ")]


def test_done_lines_of_both_graphs_are_equal_and_do_not_depend_on_the_batch(saved, caplog):
    gate, overrides = saved
    lines = {
        (graph, size): evaluate(graph, [*overrides, f"runner.infer_batch_size={size}"], caplog)
        for graph in GRAPHS
        for size in BATCHES
    }
    for size in BATCHES:
        assert lines["dynamic", size] == lines["static", size]
    number = r"\d+\.\d{6}"
    used = r"\d" if gate == "dselect_k" else number
    names = f"Accuracy1: ({number}), Accuracy2: ({number}), loss: ({number}), loss1: ({number}), loss2: ({number})"
    found = [re.fullmatch(f"epoch: 0 done, {names}, experts_used: ({used})", line) for line in lines.values()]
    assert all(found), lines
    numbers = np.array([[float(x) for x in match.groups()] for match in found])
    # losses of other batches are of sums in another order; of accuracies no score is as near to another as rounding
    assert_near(numbers, np.tile(numbers[0], [len(numbers), 1]), OUTPUTS_32)
    assert_near(numbers[:, :2] * EXAMPLES, np.rint(numbers[:, :2] * EXAMPLES), 5e-7 * EXAMPLES)  # six decimals


def closed(meter, steps, metrics=None):
    """(the done line's numbers as text, what ``close`` returns) after steps of (tensors, examples)."""
    meter.begin()
    for batch_id, (tensors, examples) in enumerate(steps):
        meter.add(0, batch_id, Step(tensors, dict), examples, 0.0, 0.0)
    return meter.close(0, metrics or {})


@pytest.fixture
def done(caplog):
    """The words of the newest done line: name -> text."""

    def words():
        line = [message for message in caplog.messages if " done, " in message][-1]
        return dict(re.findall(r"(\w+): (.*?), ", line.split(" done, ")[1]))

    return words


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("job", ["train", "infer"])
def test_a_scalars_mean_is_weighted_by_examples_and_a_state_is_the_last(graph, job, done):
    meter = Meter(graph, job, 1, None, ["used"])
    steps = [({"loss": np.float32(1), "used": np.int64(5)}, 10), ({"loss": np.array([4.0]), "used": np.int64(3)}, 5)]
    assert closed(meter, steps, {"acc": 0.25}) == {"acc": 0.25, "loss": 2.0, "used": 3}
    assert done() == {"acc": "0.250000", "loss": "2.000000", "used": "3"}


def test_what_has_more_than_one_element_is_the_last_batchs(done):
    """Also where the last batch happens to have one example alone."""
    steps = [({"guess": np.array([1.0, 2.0]), "loss": np.float32(1)}, 2), ({"guess": np.array([3.0])}, 1)]
    assert closed(Meter("static", "infer", 1), steps) == {"loss": 1.0}
    assert done() == {"guess": "3.0", "loss": "1.000000"}


def test_a_scalar_that_some_steps_lack_is_averaged_over_those_that_have_it(done):
    steps = [({"loss": np.float32(1), "norm": np.float32(6)}, 2), ({"loss": np.float32(3)}, 2)]
    assert closed(Meter("dynamic", "train", 1), steps) == {"loss": 2.0, "norm": 6.0}


def test_rounding_does_not_depend_on_the_order_of_a_sum(done):
    """5 / 640 = 0.0078125 is half way between two numbers of six decimals; a sum in another order may miss it."""
    half = 5 / 640
    for number in (np.nextafter(half, 0), half, np.nextafter(half, 1)):
        closed(Meter("static", "infer", 1), [({"loss": np.float32(1)}, 1)], {"acc": float(number)})
        assert done()["acc"] == "0.007812"


def test_an_epoch_resumed_after_its_last_step_has_all_its_numbers(done):
    first, second = (Meter("static", "train", 1, None, ["used"]) for _ in range(2))
    numbers = closed(first, [({"loss": np.float32(2), "used": np.int64(5)}, 10)])
    second.begin(first.state())
    assert second.close(0, {}) == numbers and done() == {"loss": "2.000000", "used": "5"}


def test_metrics_go_on_from_what_they_had_counted():
    def fed(metrics, batches):
        for probability, label in batches:
            metrics[0].update((probability[:, 1:] > 0.5) == (label > 0))
            metrics[1].update(probability, label)
        return [metric.accumulate() for metric in metrics]

    rng = random_state(3)
    positive = rng.rand(4, 50, 1)
    batches = [(np.hstack([1 - p, p]), (rng.rand(50, 1) < p).astype("int64")) for p in positive]
    whole, first, second = ([paddle.metric.Accuracy(), paddle.metric.Auc()] for _ in range(3))
    expected = fed(whole, batches)
    fed(first, batches[:2])
    metric_state.write(second, metric_state.read(first), "manifest.json")
    assert fed(second, batches[2:]) == expected
    scores, labels = (np.concatenate(parts)[:, 0] for parts in (positive, [label for _, label in batches]))
    # Paddle sorts the scores into 4096 steps: of the 10,000 pairs, 1 in 2000 share one, and count half
    assert expected[1] == pytest.approx(oracles.brute_force_auc(scores, labels), abs=1e-3)


WRONG = [None, [], [{}, {}], [{"total": [1], "count": [1]}, {}], "text"]
_STATE = metric_state.read([paddle.metric.Accuracy(), paddle.metric.Auc()])
WRONG += [[{**_STATE[0], name: value}, _STATE[1]] for name in _STATE[0] for value in ("x", ["x"], {"a": 1}, None)]
WRONG += [[_STATE[0], {**_STATE[1], "_stat_pos": value}] for value in ([1, 2], 3, [[1], [2, 3]])]


@pytest.mark.parametrize("states", WRONG, ids=lambda states: str(states)[:60])
def test_what_another_metric_has_counted_is_refused(states):
    with pytest.raises(UserError, match="manifest.json"):
        metric_state.write([paddle.metric.Accuracy(), paddle.metric.Auc()], states, "manifest.json")


@pytest.mark.parametrize(
    "status,lines",
    [
        ({"task 1 experts": {"2": 0.38, "5": 0.62}, "task auc experts": {"0": 4.7e-6}, "task 3 experts": {}},
         ["task 1 experts: 5 (0.62), 2 (0.38)", "task auc experts: 0 (4.7e-06)", "task 3 experts: none"]),
        ({"task 1 experts": {str(i): 1 / (i + 1) for i in range(11)}}, [r"\b7 \(0.125\), and 3 more$"]),
        ({}, []),
    ],
    ids=["greatest first", "a long list is cut", "a package without a status"],
)  # fmt: skip
def test_lines_of_a_status_have_the_greatest_weight_first_and_no_word_that_scripts_look_for(
    status, lines, done, caplog
):
    meter = Meter("static", "train", 1)
    meter.begin()
    meter.close(3, {"auc": 0.5}, status)
    found = caplog.messages[1:]
    assert len(found) == len(lines) and not any(re.search(r"\b(auc|ips): ", line) for line in found)
    for line, expected in zip(found, lines):
        assert line == f"epoch: 3 {expected}" or re.search(expected, line)
