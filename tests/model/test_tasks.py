"""The tasks of a config: losses by formula, label masks, metrics over an epoch, and what is refused.

In float64: see support/rounding.py.
"""

import numpy as np
import paddle
import pytest

from dselect_k_model import hyper_parameters, tasks
from dselect_k_model.epoch_metrics import EpochMetrics
from dselect_k_model.kinds.regression import Regression
from engine.meter import Meter
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.oracles import brute_force_auc
from support.rounding import SUMS, assert_close
from support.toolbox import opened
from support.ways import config, start

pytestmark = pytest.mark.usefixtures("float64")
both_graphs = pytest.mark.parametrize("way", ["eager", "static"])  # a compiled network has its loss outside
TAGS, TAGS_WEIGHT = {"name": "tags", "labels": ["a", "b", "c"], "tower_sizes": [16]}, 0.5


def classes_loss(z, y):
    z, y = z[y >= 0], y[y >= 0]
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean()


def yes_or_no_loss(z, y, positive_weight):
    """Of one label or of several: [B, labels], the mean over all that are known."""
    known = y >= 0
    p, y = 1 / (1 + np.exp(-z.reshape(y.shape)[known])), y[known]
    return -(positive_weight * y * np.log(p) + (1 - y) * np.log(1 - p)).mean()


def expected_losses(outputs, labels):
    """Each task's loss, of ``TASKS`` and ``TAGS``, over its labelled examples, in float64."""
    formulas = (
        classes_loss,
        lambda z, y: yes_or_no_loss(z, y, 2.0),
        lambda z, y: ((z[:, 0] - y)[~np.isnan(y)] ** 2).mean(),
        lambda z, y: yes_or_no_loss(z, y, 1.0),
    )
    return [formula(np.asarray(z, float), y) for formula, z, y in zip(formulas, outputs, labels)]


def make_tags(rng, size, missing=True):
    """Labels for ``TAGS``, some of them missing; none of c is positive."""
    tags = rng.randint(0, 2, [size, 3]).astype("float64")
    tags[:, 2] = 0
    if missing:
        tags[: size // 4, 0], tags[size // 8 : size // 2, 1] = -1, np.nan
    return tags


@pytest.fixture(scope="module", params=["eager", "static"])
def built(request):
    """(a network of ``TASKS`` and ``TAGS``, trained by SGD at rate 1, which steps by its gradient; its state)."""
    plain_sgd = {"optimizer__class": "sgd", "optimizer__momentum": 0.0, "optimizer__learning_rate": 1.0}
    paddle.set_default_dtype("float64")
    tasks_of_all_kinds = [*TASKS, {**TAGS, "weight": TAGS_WEIGHT}]
    run = start(request.param, config(**SMALL, **TABLE, **plain_sgd, tasks=tasks_of_all_kinds, entropy_weight=0.0))
    paddle.set_default_dtype("float32")
    return run, run.state()


@pytest.fixture
def run(built):
    run, state = built
    run.set(state)
    return run


@pytest.mark.parametrize("missing", [False, True])
def test_losses_are_the_formulas_over_the_labelled_examples(run, missing, rng):
    batch = [*table_batches(rng, 1, missing=missing)[0], make_tags(rng, 12, missing)]
    _, loss, outputs = run.evaluate(batch)
    assert loss == pytest.approx(np.dot(expected_losses(outputs, batch[2:]), [1, 1, 1, TAGS_WEIGHT]), abs=SUMS)


def test_an_example_without_a_label_does_not_train_its_task(run, rng):
    """Its tower's gradient is that of a batch without the example."""
    whole, before = [*table_batches(rng, 1)[0], make_tags(rng, 12)], run.state()
    tower = [name for key, name in run.names.items() if key.startswith("towers.2.")]

    def tower_after(batch):
        run.set(before)
        assert np.isfinite(run.step(batch)[0])
        return {name: run.state()[name] for name in tower}

    def without_labels_from(first):
        return [*whole[:4], np.where(np.arange(12) < first, whole[4], np.nan), whole[5]]

    assert_close(tower_after(without_labels_from(8)), tower_after([item[:8] for item in whole]), SUMS)
    assert_close(tower_after(without_labels_from(0)), {name: before[name] for name in tower}, 0)


@pytest.mark.parametrize("delta", [0.0, 0.7])
def test_huber_is_squared_near_and_linear_far(delta, rng):
    error = np.linspace(-3, 3, 41)
    kind = Regression(huber_delta=delta)
    ours = kind.losses(paddle.to_tensor(error[:, None]), paddle.zeros([41, 1], "float64")).numpy()[:, 0]
    expected = error**2
    if delta:
        expected = np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@both_graphs
def test_learned_variances_weigh_the_losses_as_kendall_does(way, rng):
    """They are in what a step minimizes; the ``loss`` that is printed is the plain sum, in training and evaluation."""
    keys = {**SMALL, **TABLE, "tasks": TASKS, "task_balance": "uncertainty", "expert_num": 1, "top_k": 1}
    keys.update(optimizer__class="sgd", optimizer__momentum=0.0, optimizer__learning_rate=1.0, entropy_weight=0.0)
    run, batch, s = start(way, config(**keys)), table_batches(rng, 1)[0], np.array([0.3, -0.2, 0.5])
    run.set({run.names["log_variances"]: s})
    parts = np.array(expected_losses(run.outputs(batch), batch[2:]))
    assert run.evaluate(batch)[1] == pytest.approx(parts.sum(), abs=1e-6)
    loss = run.step(batch)[0]  # eagerly what is minimized, in a program what is printed
    minimized = (np.exp(-s) * parts * [1, 1, 0.5] + s / 2).sum()
    # Paddle 2.6.2 has the e of e ** -s in float32: s x 3e-8 off, of losses of order 1
    assert loss == pytest.approx(parts.sum() if way == "static" else minimized, abs=1e-6)
    gradient = -np.exp(-s) * parts * [1, 1, 0.5] + 0.5
    np.testing.assert_allclose(run.state()[run.names["log_variances"]], s - gradient, atol=2e-6)


WEIGHTED = "[{classes: 3}, {name: buys, kind: binary, weight: 2, positive_weight: 2}, {kind: regression, weight: 0.5}]"


def test_an_epochs_metrics_do_not_depend_on_the_batches_or_the_graph_and_are_exact(rng):
    """Formulas of the metrics themselves: test_metrics.py."""
    keys = ("expert_num=1", "top_k=1", "input.dense_size=5", "input.vocabulary_sizes=[4, 7]", f"tasks={WEIGHTED}")
    overrides = [*(f"hyper_parameters.{key}" for key in keys), "runner.to_static=false"]
    whole = table_batches(rng, 1, size=51, missing=True)[0]
    whole[0][12:17], whole[1][12:17] = whole[0][17], whole[1][17]  # equal scores
    found = {}
    for graph_name in ("dynamic", "static"):
        with opened(graph_name, "infer", overrides) as (graph, _, _):
            for size in (10, 51):
                meter = Meter(graph_name, "infer", None)
                meter.begin()
                graph.begin_evaluation()
                for begin in range(0, 51, size):
                    step, examples = graph.infer_step([item[begin : begin + size] for item in whole])
                    meter.add(0, begin, step, examples, 0.0, 0.0)
                closed, found[graph_name, size] = meter.close(0, graph.metrics()), graph.metrics()
                # one order on the line of the epoch, whatever the kinds of the tasks
                names = "Accuracy1 auc_buys logloss_buys mae3 rmse3 loss loss1 loss_buys loss3 experts_used"
                assert " ".join(closed) == names
            if graph_name == "dynamic":
                outputs = [z.numpy() for z in graph.net([*map(paddle.to_tensor, whole[:2])])]
    ours = found["dynamic", 10]
    for others in found.values():
        assert others == pytest.approx(ours, abs=SUMS)
    losses = np.array(expected_losses(outputs, whole[2:]))
    assert [ours["loss1"], ours["loss_buys"], ours["loss3"]] == pytest.approx(losses, abs=SUMS)
    assert ours["loss"] == pytest.approx(losses @ [1, 2, 0.5], abs=SUMS)
    labelled = [whole[2] >= 0, whole[3] >= 0]
    assert ours["Accuracy1"] == np.mean((outputs[0].argmax(axis=1) == whole[2])[labelled[0]])
    # the metric compares scores in float32, which equal rows have in common whatever their place in a batch
    scores = outputs[1][labelled[1], 0].astype("float32")
    assert ours["auc_buys"] == pytest.approx(brute_force_auc(scores, whole[3][labelled[1]]), abs=SUMS)
    assert ours["rmse3"] ** 2 == pytest.approx(losses[2], abs=SUMS)


WRONG = [
    ({"kind": "ranking"}, "ranking"),
    ({"kind": "binary", "metrics": ["mae"]}, "mae, which is not defined"),
    ({"kind": "binary", "metrics": ["auk"]}, "must be one of accuracy"),
    ({"labels": ["a"]}, "labels"),
    ({"kind": "binary", "classes": 3}, "classes"),
    ({"kind": "binary", "wieght": 1}, "wieght"),
    ({"kind": "binary", "name": "a\nb"}, "name"),
    ({"kind": "binary", "name": True}, "name"),
    ({"kind": "regression", "positive_weight": 2}, "positive_weight"),
    ({}, "classes: n"),
]


@pytest.mark.parametrize("entry,word", WRONG)
def test_a_task_described_wrongly_is_named(entry, word):
    with pytest.raises(ValueError, match=f"tasks.0..*{word}"):
        hyper_parameters.HyperParameters(tasks=[entry])


def test_multi_label_metrics_are_those_of_each_label_and_their_mean(rng):
    metrics = EpochMetrics(tasks.parse([{**TAGS, "metrics": ["auc", "logloss", "f1"]}], 8))
    z, y = rng.randn(40, 3), make_tags(rng, 40)
    for rows in (slice(0, 25), slice(25, 40)):
        metrics.update([z[rows]], [y[rows]])
    found = {name: metric.accumulate() for name, metric in metrics.named().items()}
    for column, label in enumerate("abc"):
        kept = y[:, column] >= 0
        scores, labels = z[kept, column], y[kept, column]
        auc = brute_force_auc(scores.astype("float32"), labels) if labels.any() else np.nan
        f1 = 2 * (labels * (scores > 0)).sum() / (labels + (scores > 0)).sum()
        logloss = np.logaddexp(0, np.where(labels > 0, -scores, scores)).mean()
        for name, value in (("auc", auc), ("logloss", logloss), ("f1", f1)):
            assert found[f"{name}_tags_{label}"] == pytest.approx(value, abs=SUMS, nan_ok=True)
    assert np.isnan(found["auc_tags_c"]) and "f1_tags" in found
    assert found["auc_tags"] == pytest.approx((found["auc_tags_a"] + found["auc_tags_b"]) / 2, abs=SUMS)
    assert found["loss_tags"] == pytest.approx(yes_or_no_loss(z, y, 1.0), abs=SUMS)
