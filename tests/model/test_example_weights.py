"""Weights and groups of examples, from the reader's batch to losses, steps and metrics, in both graphs.

In float64: see support/rounding.py. Formulas of the metrics themselves: test_metrics.py.
"""

import numpy as np
import paddle
import pytest

from dselect_k_model import hyper_parameters, kinds, metrics, tasks
from dselect_k_model.epoch_metrics import EpochMetrics
from engine.errors import UserError
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import SUMS, assert_close
from support.toolbox import opened
from support.ways import config, start

TAGS = {"name": "tags", "labels": ["a", "b"], "tower_sizes": [16]}
SGD = {"optimizer__class": "sgd", "optimizer__momentum": 0.0, "optimizer__learning_rate": 0.5, "entropy_weight": 0.0}
KEYS = {**SMALL, **TABLE, **SGD, "tasks": [*TASKS, TAGS]}
float64 = pytest.mark.usefixtures("float64")
every_way = pytest.mark.parametrize("way", ["eager", "to_static", "static"])


def batch_of_all_kinds(rng, size=12):
    """Inputs and labels for ``KEYS``, of which some are missing."""
    tags = rng.randint(0, 2, [size, 2]).astype("float64")
    tags[:3, 0], tags[2:6, 1] = -1, np.nan
    return [*table_batches(rng, 1, size=size, missing=True)[0], tags]


def stepped(run, state, batch):
    """(loss, state) after a step from ``state``."""
    run.set(state)
    return run.step(batch)[0], run.state()


@float64
@every_way
def test_a_weight_of_two_is_the_row_twice(way, rng):
    """For the loss, a step and an evaluation; a weight of 0 is no row at all. The scale of all weights is nothing."""
    weighted, plain = (start(way, config(**KEYS, input__example_weights=on)) for on in (True, False))
    batch, times = batch_of_all_kinds(rng), rng.permutation([0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 1])
    before, repeated = plain.state(), [np.repeat(item, times, axis=0) for item in batch]
    loss, state = stepped(plain, before, repeated)
    for scale in (1e-30, 1e-12, 1.0, 1e12, 1e28):
        found, after = stepped(weighted, before, [*batch, times * scale])
        assert found == pytest.approx(loss, abs=SUMS)
        assert_close(after, state, SUMS)
    weighted.set(before), plain.set(before)
    assert weighted.evaluate([*batch, times * 1.0])[1] == pytest.approx(plain.evaluate(repeated)[1], abs=SUMS)


@float64
@every_way
def test_equal_weights_are_none_and_zeros_train_nothing(way, rng):
    weighted, plain = (start(way, config(**KEYS, input__example_weights=on)) for on in (True, False))
    batch, before = batch_of_all_kinds(rng), plain.state()
    loss, state = stepped(plain, before, batch)
    found, after = stepped(weighted, before, [*batch, np.full(12, 0.3)])
    assert found == pytest.approx(loss, abs=SUMS)
    assert_close(after, state, SUMS)
    loss, after = stepped(weighted, before, [*batch, np.zeros(12)])
    assert loss == 0
    assert_close(after, before, 0, [name for name, value in before.items() if value.dtype.kind == "f"])  # no counter


@pytest.mark.parametrize("least,greatest", [(1e-30, 1e-28), (1e-12, 1e12), (1e28, 1e30)])
def test_weights_of_any_scale_are_right_in_float32(least, greatest, rng):
    weight = np.exp(rng.uniform(np.log(least), np.log(greatest), 12)).astype("float32")
    parsed, batch = tasks.parse(TASKS, 8), table_batches(rng, 1, missing=True)[0]
    outputs = [paddle.to_tensor(rng.randn(12, task.kind.out_size).astype("float32")) for task in parsed]
    for output in outputs:
        output.stop_gradient = False
    masked = tasks.mask_missing(parsed, map(paddle.to_tensor, batch[2:]), "float32", weight=paddle.to_tensor(weight))
    losses = tasks.losses(parsed, outputs, masked)
    losses.minimized.backward()
    for task, output, labels, values in zip(parsed, outputs, batch[2:], losses.by_label):
        there = task.kind.is_labelled(labels)
        share = np.where(there, weight.astype("float64"), 0) / weight[there].astype("float64").sum()
        expected = (values.numpy()[there, 0] * share[there]).sum()
        assert float(losses.named[f"loss{task.suffix}"]) == pytest.approx(expected, rel=1e-5)
        # the gradient for an example is in proportion to its share
        (by_itself,) = paddle.grad(task.kind.losses(output, paddle.to_tensor(masked_label(task, labels))).sum(), output)
        np.testing.assert_allclose(output.grad.numpy(), by_itself.numpy() * share[:, None], rtol=1e-4, atol=1e-7)


def masked_label(task, label):
    return np.where(task.kind.is_labelled(label), label, 0).astype(task.kind.label_dtype or "float32")[:, None]


GROUPED = "[{classes: 3}, {name: buys, kind: binary, metrics: [auc, gauc, ndcg_2, hit_rate_1]}, {kind: regression}]"


@float64
def test_an_epochs_weighted_metrics_are_those_of_the_repeated_rows_in_both_graphs(rng):
    keys = ["expert_num=1", "top_k=1", "input.dense_size=5", "input.vocabulary_sizes=[4, 7]", f"tasks={GROUPED}"]
    keys += ["input.groups=true"]
    whole, times = table_batches(rng, 1, size=51, missing=True)[0], rng.randint(0, 4, 51)
    group = rng.randint(0, 12, 51) * 2**59
    repeated = [np.repeat(item, times, axis=0) for item in [*whole, group]]
    found = {}
    for graph_name in ("dynamic", "static"):
        for batch, size, on in (
            ([*whole, times.astype("float64"), group], 51, "true"),
            ([*whole, times.astype("float64"), group], 10, "true"),
            (repeated, len(repeated[0]), "false"),
        ):
            given = [f"hyper_parameters.{key}" for key in [*keys, f"input.example_weights={on}"]]
            with opened(graph_name, "infer", [*given, "runner.to_static=false"]) as (graph, _, _):
                graph.begin_evaluation()
                for begin in range(0, len(batch[0]), size):
                    step, _ = graph.infer_step([item[begin : begin + size] for item in batch])
                found[graph_name, size, on] = graph.metrics()
                if len(batch[0]) == size and graph_name == "static":
                    assert float(step.tensors["Accuracy1"]) == pytest.approx(graph.metrics()["Accuracy1"], abs=1e-6)
    at_k = ["ndcg_2_buys", "hit_rate_1_buys"]  # in which a row has a rank, whatever its weight
    ours = found["dynamic", 51, "true"]
    assert all(0 < ours[name] < 1 for name in ["gauc_buys", *at_k])
    for (_, _, on), others in found.items():
        assert others.keys() == ours.keys()
        compared = [name for name in ours if on == "true" or name not in at_k]
        assert [others[n] for n in compared] == pytest.approx([ours[n] for n in compared], abs=SUMS), on


def test_multi_label_metrics_are_weighted(rng):
    z, y, times = rng.randn(40, 2), rng.randint(-1, 2, [40, 2]).astype("float64"), rng.randint(0, 4, 40)
    group = rng.randint(0, 4, 40)
    counted = []
    for of_epoch, item in (((z, y, {"weight": times, "group": group}), slice(None)), ((z, y, {"group": group}), times)):
        z_, y_, about = of_epoch
        rows = np.arange(40)[item] if isinstance(item, slice) else np.repeat(np.arange(40), item)
        epoch = EpochMetrics(tasks.parse([{**TAGS, "metrics": ["auc", "gauc", "f1"]}], 8))
        epoch.update([z_[rows]], [y_[rows]], about={name: value[rows] for name, value in about.items()})
        counted.append({name: metric.accumulate() for name, metric in epoch.named().items()})
    assert counted[0] == pytest.approx(counted[1], abs=SUMS) and "gauc_tags_b" in counted[0]


def test_an_example_of_weight_0_is_as_if_it_were_not_there(rng):
    """It takes no rank among the first K, and its class is not one that occurs."""
    entries = [{"kind": "binary", "metrics": ["auc", "pr_auc", "gauc", "ndcg_2", "hit_rate_2", "f1"]}, {"classes": 3}]
    entries[1]["metrics"] = ["f1", "accuracy"]
    size, counts = 60, rng.permutation([True] * 40 + [False] * 20)
    yes_or_no, classes = rng.randint(0, 2, size), np.where(counts, rng.randint(0, 2, size), 2)
    batch = [[rng.randn(size, 1), np.eye(3)[classes] + rng.randn(size, 3) * [1, 1, 0]], [yes_or_no, classes]]
    group, found = rng.randint(0, 12, size), []
    for rows, weight in ((slice(None), counts), (counts, np.ones(40))):
        epoch = EpochMetrics(tasks.parse(entries, 8))
        about = {"weight": weight, "group": group[rows]}
        epoch.update(*[[item[rows] for item in items] for items in batch], about=about)
        found.append({name: metric.accumulate() for name, metric in epoch.named().items()})
    assert found[0] == pytest.approx(found[1], abs=SUMS)


# ---- what is refused


class NeedsNoWeights(metrics.Metric):
    """A user's, of before there were weights."""

    name, reads = "plain", "scores"

    def empty(self):
        return {"count": 0}

    def update(self, prediction, label):
        self.kept["count"] += len(label)

    def accumulate(self):
        return self.kept["count"]


class OldKind(kinds.Kind):
    """Likewise."""

    metrics = ()

    def update_metrics(self, metrics, output, label):
        """Nothing."""


@pytest.mark.parametrize(
    "entry,keys,words",
    [
        ({"kind": "binary", "metrics": ["gauc"]}, {}, "input.groups is false"),
        ({"kind": "binary", "metrics": ["ndcg_5"]}, {"input_example_weights": True}, "input.groups is false"),
        (
            {"kind": "binary", "metrics": [f"{__name__}.NeedsNoWeights"]},
            {"input_example_weights": True},
            "metric plain that cannot use weights .NeedsNoWeights.update has no",
        ),
        ({"kind": f"{__name__}.OldKind"}, {"input_example_weights": True}, "kind that cannot use weights"),
        ({"classes": 3, "metrics": ["gauc"]}, {"input_groups": True}, "gauc, which is not defined"),
    ],
)
def test_metrics_that_cannot_be_counted_are_refused(entry, keys, words):
    with pytest.raises(ValueError, match=words):
        hyper_parameters.HyperParameters(tasks=[entry], **keys)


def test_a_metric_without_weights_counts_as_before_where_there_are_none(rng):
    entry = {"kind": "binary", "metrics": [f"{__name__}.NeedsNoWeights", "gauc"]}
    hyper = hyper_parameters.HyperParameters(tasks=[entry], input_groups=True)
    epoch = EpochMetrics(hyper.task_list)
    epoch.update([rng.randn(5, 1)], [np.array([0, 1, 1, -1, 0])], about={"group": np.arange(5)})
    assert epoch.named()["plain1"].accumulate() == 4


@pytest.mark.parametrize("graph_name", ["dynamic", "static"])
@pytest.mark.parametrize(
    "weight,group,words",
    [
        (np.full(12, -1.0), np.arange(12), "weight of an example is -1.0, but must be 0 or a number from 1e-30"),
        (np.full(12, np.nan), np.arange(12), "weight of an example is nan"),
        (np.full(12, 1e31), np.arange(12), "weight of an example is 1e.31"),
        (np.ones([12, 2]), np.arange(12), "the item weight of a batch is .12, 2. float"),
        (np.ones(12), np.ones(12), "the item group of a batch is .12. float"),
        (np.ones(12), None, "group"),
    ],
)
def test_a_batch_with_wrong_weights_or_groups_is_refused(graph_name, weight, group, words, rng):
    keys = ["input.dense_size=5", "input.vocabulary_sizes=[4, 7]", f"tasks={GROUPED}", "input.groups=true"]
    given = [f"hyper_parameters.{key}" for key in [*keys, "input.example_weights=true"]]
    batch = [*table_batches(rng, 1)[0], weight, *([] if group is None else [group])]
    with opened(graph_name, "infer", given) as (graph, _, _):
        graph.begin_evaluation()
        with pytest.raises(UserError, match=words):
            graph.infer_step(batch)


def test_a_kind_that_knows_no_groups_works_beside_them(rng):
    class Own(kinds.KINDS["binary"]):
        def update_metrics(self, metrics, output, label):
            super().update_metrics(metrics, output, label)

    task = tasks.Task(Own(), "1", metrics=(metrics.METRICS["auc"],))
    found = EpochMetrics([task])
    found.update([rng.randn(20, 1)], [rng.randint(0, 2, 20)], about={"group": rng.randint(0, 3, 20)})
    assert 0 <= found.named()["auc1"].accumulate() <= 1
