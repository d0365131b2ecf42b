"""Metrics: equal to scikit-learn's, the same whatever the batches, mergeable, and undefined where there is nothing."""

import math

import numpy as np
import pytest

from dselect_k_model import kinds
from dselect_k_model.kinds.binary import Binary
from dselect_k_model.kinds.classes import Classes
from dselect_k_model.kinds.regression import Regression
from dselect_k_model.metrics import METRICS
from support.rounding import SUMS

OF_KIND = {
    Binary(): ("accuracy", "auc", "f1", "logloss", "pr_auc"),
    Classes(4): ("accuracy", "f1", "logloss"),
    Regression(): ("mae", "mse", "rmse"),
}
CASES = [(kind, name) for kind, names in OF_KIND.items() for name in names]
IDS = [f"{type(kind).__name__}-{name}" for kind, name in CASES]
every_metric = pytest.mark.parametrize("kind,name", CASES, ids=IDS)


def example(kind, rng, size=60):
    """(outputs with equal scores among them, labels) of a task."""
    output = rng.randn(size, kind.out_size).round(1).astype("float32").astype("float64")
    label = rng.randn(size) if isinstance(kind, Regression) else rng.randint(0, kind.class_num, size)
    return output, label.astype("float64")[:, None]


def counted(kind, name, output, label, size=60):
    metrics = kind.create_metrics([METRICS[name]], "")
    for begin in range(0, len(output), size):
        kind.update_metrics(metrics, output[begin : begin + size], label[begin : begin + size])
    (metric,) = metrics.values()
    return metric


def by_scikit_learn(kind, name, output, label):
    skl = pytest.importorskip("sklearn.metrics")
    if isinstance(kind, Regression):
        mean = skl.mean_absolute_error if name == "mae" else skl.mean_squared_error
        return math.sqrt(mean(label, output)) if name == "rmse" else mean(label, output)
    scores = output[:, 0] if isinstance(kind, Binary) else output
    decided = (scores > 0).astype(int) if isinstance(kind, Binary) else scores.argmax(axis=1)
    if name == "logloss":
        p = 1 / (1 + np.exp(-scores)) if isinstance(kind, Binary) else np.exp(scores)
        return skl.log_loss(label, p if p.ndim == 1 else p / p.sum(axis=1, keepdims=True))
    if name == "f1":
        return skl.f1_score(label, decided, average="binary" if isinstance(kind, Binary) else "macro")
    if name == "accuracy":
        return skl.accuracy_score(label, decided)
    return {"auc": skl.roc_auc_score, "pr_auc": skl.average_precision_score}[name](label, scores)


def test_every_registered_metric_is_tested():
    assert {name for _, name in CASES} == {*METRICS}


@every_metric
def test_a_metric_equals_that_of_scikit_learn(kind, name, rng):
    output, label = example(kind, rng)
    assert counted(kind, name, output, label, 7).accumulate() == pytest.approx(
        by_scikit_learn(kind, name, output, label[:, 0]), abs=SUMS
    )


@every_metric
def test_merged_parts_equal_the_whole(kind, name, rng):
    output, label = example(kind, rng)
    first, second = counted(kind, name, output[:21], label[:21]), counted(kind, name, output[21:], label[21:])
    again = counted(kind, name, output[:0], label[:0])
    again.set_state_dict(first.state_dict())
    again.merge(second.state_dict())
    assert again.accumulate() == pytest.approx(counted(kind, name, output, label).accumulate(), abs=SUMS)
    first.reset()
    assert math.isnan(first.accumulate())


@every_metric
def test_missing_labels_are_skipped_and_a_metric_without_labels_is_undefined(kind, name, rng):
    output, label = example(kind, rng)
    missing = np.nan if isinstance(kind, Regression) else -1
    partly = np.where(np.arange(60)[:, None] % 3 == 0, missing, label)
    kept = np.arange(60) % 3 != 0
    assert (
        counted(kind, name, output, partly).accumulate() == counted(kind, name, output[kept], label[kept]).accumulate()
    )
    assert math.isnan(counted(kind, name, output, np.full_like(label, missing)).accumulate())


@pytest.mark.parametrize("name", ["auc", "pr_auc"])
def test_auc_and_pr_auc_are_undefined_without_positives(name, rng):
    output, label = example(Binary(), rng)
    assert math.isnan(counted(Binary(), name, output, np.zeros_like(label)).accumulate())


@every_metric
def test_a_better_output_has_a_better_metric(kind, name, rng):
    """Checks ``higher_is_better``: outputs made of the labels beat random ones."""
    output, label = example(kind, rng)
    good = label if isinstance(kind, Regression) else 8 * (label - 0.5)
    good = 8 * np.eye(kind.class_num)[label[:, 0].astype(int)] if isinstance(kind, Classes) else good
    better, worse = counted(kind, name, good, label), counted(kind, name, output, label)
    assert (better.accumulate() > worse.accumulate()) == better.higher_is_better


def test_every_kind_has_metrics_it_can_compute():
    for kind in kinds.KINDS.values():
        assert all(hasattr(kind, METRICS[name].reads) for name in kind.metrics) and kind.metrics
