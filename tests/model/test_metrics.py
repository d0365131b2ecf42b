"""Metrics: equal to scikit-learn's, the same whatever the batches, mergeable, and undefined where there is nothing."""

import itertools
import math

import numpy as np
import pytest

from dselect_k_model import kinds
from dselect_k_model.kinds.binary import Binary
from dselect_k_model.kinds.classes import Classes
from dselect_k_model.kinds.regression import Regression
from dselect_k_model.metrics import AT_K, METRICS, _Ties, find_metric
from support.rounding import SUMS

OF_KIND = {
    Binary(): (
        "accuracy",
        "auc",
        "f1",
        "logloss",
        "pr_auc",
        "gauc",
        "ndcg_1",
        "ndcg_3",
        "hit_rate_1",
        "hit_rate_2",
        "hit_rate_9",
    ),
    Classes(4): ("accuracy", "f1", "logloss"),
    Regression(): ("mae", "mse", "rmse"),
}
CASES = [(kind, name) for kind, names in OF_KIND.items() for name in names]
IDS = [f"{type(kind).__name__}-{name}" for kind, name in CASES]
every_metric = pytest.mark.parametrize("kind,name", CASES, ids=IDS)
weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def example(kind, rng, size=60, weighted=False):
    """(outputs with equal scores among them, labels, {group and perhaps weight: [size]}) of a task."""
    output = (2 * rng.randn(size, kind.out_size)).round() / 2
    label = rng.randn(size) if isinstance(kind, Regression) else rng.randint(0, kind.class_num, size)
    groups = np.repeat(rng.randint(-(2**62), 2**62, size), np.arange(size) % 6 + 1)[:size]  # of 1 to 6 examples
    about = {"group": rng.permutation(groups)}
    if weighted:
        about["weight"] = rng.uniform(0.1, 3, size).astype("float32").astype("float64")  # rankings keep float32
    return output, label.astype("float64")[:, None], about


def of_rows(rows, *arrays):
    return [{name: item[rows] for name, item in a.items()} if isinstance(a, dict) else a[rows] for a in arrays]


def counted(kind, name, output, label, about, size=60):
    metrics = kind.create_metrics([find_metric(name, "metrics")], "")
    for begin in range(0, len(output), size):
        z, y, of_examples = of_rows(slice(begin, begin + size), output, label, about)
        kind.update_metrics(metrics, z, y, **of_examples)
    (metric,) = metrics.values()
    return metric


def within_groups(name, scores, label, weight, group):
    """A metric within groups, group by group; of equal scores, the mean over all their orders."""
    values, weights = [], []
    for one in np.unique(group):
        y, s, w = label[group == one], scores[group == one], weight[group == one]
        if y.any() and (name != "gauc" or not y.all()):
            values.append(weighted_auc(s, y, w) if name == "gauc" else over_all_orders(name, s, y))
            weights.append(w.sum() if name == "gauc" else w.mean())
    return np.average(values, weights=weights)


def weighted_auc(scores, label, weight):
    up, pairs = label == 1, scores[label == 1][:, None] - scores[label == 0][None, :]
    shares = weight[up][:, None] * weight[~up][None, :]
    return (shares * ((pairs > 0) + 0.5 * (pairs == 0))).sum() / shares.sum()


def over_all_orders(name, scores, label):
    family, _, k = name.rpartition("_")
    gains = 1 / np.log2(np.arange(len(label)) + 2) * (np.arange(len(label)) < int(k))
    found = []
    for order in map(list, itertools.permutations(range(len(label)))):
        if (np.diff(scores[order]) <= 0).all():
            dcg = gains @ label[order]
            found.append(dcg > 0 if family == "hit_rate" else dcg / (gains @ np.sort(label)[::-1]))
    return np.mean(found)


def by_scikit_learn(kind, name, output, label, about):
    weight = about.get("weight", np.ones(len(label)))
    skl = pytest.importorskip("sklearn.metrics")
    if isinstance(kind, Regression):
        mean = skl.mean_absolute_error if name == "mae" else skl.mean_squared_error
        found = mean(label, output, sample_weight=weight)
        return math.sqrt(found) if name == "rmse" else found
    if name == "gauc" or name.rpartition("_")[0] in AT_K:
        return within_groups(name, output[:, 0], label, weight, about["group"])
    scores = output[:, 0] if isinstance(kind, Binary) else output
    decided = (scores > 0).astype(int) if isinstance(kind, Binary) else scores.argmax(axis=1)
    if name == "logloss":
        p = 1 / (1 + np.exp(-scores)) if isinstance(kind, Binary) else np.exp(scores)
        p = p if p.ndim == 1 else p / p.sum(axis=1, keepdims=True)
        return skl.log_loss(label, p, sample_weight=weight)
    if name == "f1":
        average = "binary" if isinstance(kind, Binary) else "macro"
        return skl.f1_score(label, decided, average=average, sample_weight=weight)
    if name == "accuracy":
        return skl.accuracy_score(label, decided, sample_weight=weight)
    found = {"auc": skl.roc_auc_score, "pr_auc": skl.average_precision_score}[name]
    return found(label, scores, sample_weight=weight)


def test_every_registered_metric_is_tested():
    names = {f"{name.rpartition('_')[0]}_K" if name[-1].isdigit() and name != "f1" else name for _, name in CASES}
    assert names == {*METRICS}


@weighted_or_not
@every_metric
def test_a_metric_equals_that_of_scikit_learn(kind, name, weighted, rng):
    output, label, about = example(kind, rng, weighted=weighted)
    assert counted(kind, name, output, label, about, 7).accumulate() == pytest.approx(
        by_scikit_learn(kind, name, output, label[:, 0], about), abs=SUMS
    )


@weighted_or_not
@every_metric
def test_merged_parts_equal_the_whole(kind, name, weighted, rng):
    data = example(kind, rng, weighted=weighted)
    first, second = (counted(kind, name, *of_rows(rows, *data)) for rows in (slice(21), slice(21, None)))
    again = counted(kind, name, *of_rows(slice(0), *data))
    again.set_state_dict(first.state_dict())
    again.merge(second.state_dict())
    assert again.accumulate() == pytest.approx(counted(kind, name, *data).accumulate(), abs=SUMS)
    first.reset()
    assert math.isnan(first.accumulate())


@every_metric
def test_missing_labels_are_skipped_and_a_metric_without_labels_is_undefined(kind, name, rng):
    output, label, about = example(kind, rng)
    missing = np.nan if isinstance(kind, Regression) else -1
    partly = np.where(np.arange(60)[:, None] % 3 == 0, missing, label)
    known = of_rows(np.arange(60) % 3 != 0, output, label, about)
    assert counted(kind, name, output, partly, about).accumulate() == counted(kind, name, *known).accumulate()
    assert math.isnan(counted(kind, name, output, np.full_like(label, missing), about).accumulate())


@every_metric
def test_equal_weights_change_nothing_whatever_their_size(kind, name, rng):
    output, label, about = example(kind, rng)
    plain = counted(kind, name, output, label, about).accumulate()
    for size in (1e-30, 1e-12, 1.0, 1e12, 1e30):
        weighted = counted(kind, name, output, label, {**about, "weight": np.full(60, size)})
        assert weighted.accumulate() == pytest.approx(plain, abs=SUMS)


@every_metric
def test_a_weight_of_two_is_the_example_twice(kind, name, rng):
    """But for the metrics at K, in which a row takes a rank whatever its weight."""
    output, label, about = example(kind, rng)
    times = rng.randint(1, 4, 60)
    twice = counted(kind, name, *of_rows(np.repeat(np.arange(60), times), output, label, about))
    weighted = counted(kind, name, output, label, {**about, "weight": times.astype("float64")})
    if name.rpartition("_")[0] not in AT_K:
        assert weighted.accumulate() == pytest.approx(twice.accumulate(), abs=SUMS)


@pytest.mark.parametrize("name", ["auc", "pr_auc", "gauc", "ndcg_3", "hit_rate_3"])
def test_a_ranking_is_undefined_without_positives(name, rng):
    output, label, about = example(Binary(), rng)
    assert math.isnan(counted(Binary(), name, output, np.zeros_like(label), about).accumulate())


def test_a_groups_weights_do_not_blur_those_of_another():
    """AUC 1/3 and 2/3 within two groups, the second with weights of 1e-12 behind the first's of 1e12."""
    scores, labels = np.array([2.0, 3, 1, 4] * 2)[:, None], np.array([1.0, 0, 0, 0, 0, 1, 1, 1])[:, None]
    about = {"group": np.repeat([5, 7], 4), "weight": np.repeat([1e12, 1e-12], 4)}
    metric = counted(Binary(), "gauc", scores, labels, about)
    scores, positive, weights = metric._whole()
    values, weights = metric.of_groups(_Ties(scores, positive, weights, about["group"]))
    np.testing.assert_allclose(values, [1 / 3, 2 / 3], atol=1e-12)


@pytest.mark.parametrize("name", ["ndcg_0", "ndcg_K", "hit_rate_-1", "hit_rate_1.5", "ndcg_05", "ndcg"])
def test_a_metric_at_k_needs_a_k(name):
    with pytest.raises(ValueError, match="ndcg_K|whole number K"):
        find_metric(name, "metrics")


def test_the_number_of_a_task_is_no_digit_of_k():
    classes = [find_metric("ndcg_1", "metrics"), find_metric("ndcg_11", "metrics"), METRICS["auc"]]
    assert [*Binary().create_metrics(classes, "1")] == ["ndcg_1_1", "ndcg_11_1", "auc1"]
    assert [*Binary().create_metrics(classes, "_buys")] == ["ndcg_1_buys", "ndcg_11_buys", "auc_buys"]


@every_metric
def test_a_better_output_has_a_better_metric(kind, name, rng):
    """Checks ``higher_is_better``: outputs made of the labels beat random ones."""
    output, label, about = example(kind, rng)
    good = label if isinstance(kind, Regression) else 8 * (label - 0.5)
    good = 8 * np.eye(kind.class_num)[label[:, 0].astype(int)] if isinstance(kind, Classes) else good
    better, worse = counted(kind, name, good, label, about), counted(kind, name, output, label, about)
    assert (
        better.accumulate() == worse.accumulate() == 1
        if name == "hit_rate_9"
        else ((better.accumulate() > worse.accumulate()) == better.higher_is_better)
    )


def test_every_kind_has_metrics_it_can_compute():
    for kind in kinds.KINDS.values():
        assert all(hasattr(kind, METRICS[name].reads) for name in kind.metrics) and kind.metrics
