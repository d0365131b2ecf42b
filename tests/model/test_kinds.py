"""The kinds of task: labels from the columns of a table, which values are wrong, and what is suggested for a column."""

import types

import numpy as np
import paddle
import pytest
import yaml

from dselect_k_model import tasks
from dselect_k_model.kinds import KINDS
from dselect_k_model.kinds.binary import Binary
from dselect_k_model.kinds.classes import Classes
from dselect_k_model.kinds.multi_label import MultiLabel
from dselect_k_model.kinds.regression import Regression

NAN = np.nan
CASES = {  # kind -> columns; the labels that they become; values that are wrong in a column
    Classes(3): ([[0.0, 2.0, NAN]], [0, 2, -1], [3.0, -1.0, 0.5, np.inf]),
    Binary(): ([[0.0, 1.0, NAN]], [0, 1, NAN], [2.0, -1.0, 0.5, np.inf]),
    Regression(): ([[-7.5, 1e30, NAN]], [-7.5, 1e30, NAN], [1e39, -np.inf]),
    MultiLabel(["a", "b"]): ([[0.0, 1.0, NAN], [1.0, NAN, 0.0]], [[0, 1], [1, NAN], [NAN, 0]], [2.0, 0.5]),
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: type(kind).__name__)
def test_columns_of_a_table_become_labels_and_wrong_values_are_found(kind):
    columns, expected, wrong = CASES[kind]
    columns = [np.array(column) for column in columns]
    labels = kind.from_columns(columns)
    assert labels.dtype == (kind.label_dtype or "float32")
    np.testing.assert_array_equal(labels, np.array(expected, labels.dtype))
    missing = np.isnan(np.stack(columns, axis=1)).reshape(labels.shape)
    assert (kind.is_labelled(labels) == ~missing).all() and not kind.out_of_range(labels).any()
    for column in columns:
        assert not kind.is_wrong(column[~np.isnan(column)]).any()
    assert kind.is_wrong(np.array(wrong)).all()


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_label_between_no_and_yes_counts_as_both_in_its_share(weight):
    output, label = paddle.to_tensor([[-2.0], [0.5], [30.0]]), paddle.to_tensor([[0.25], [0.5], [1.0]])
    losses = Binary(positive_weight=weight).losses(output, label).numpy()
    z, y = output.numpy().astype(float), label.numpy().astype(float)
    expected = weight * y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


def summary_of(column):
    """What make_vocabulary.py knows of a column."""
    column = np.array(column, float)
    whole = bool((column == np.floor(column)).all())
    facts = {"least": column.min(), "greatest": column.max(), "mean": column.mean(), "deviation": column.std}
    log = (
        types.SimpleNamespace(mean=np.log1p(column).mean(), deviation=np.log1p(column).std)
        if column.min() >= 0
        else None
    )
    return types.SimpleNamespace(**facts, whole=whole, log=log)


COLUMNS = {  # a column's values; kinds that are suggested for it; words of their remarks
    "0 and 1": ([0, 1, 1], {"binary": "0 to 1", "regression": "0 to 1"}),
    "ratings": ([1, 5, 3], {"classes": "class 0 is empty; subtract 1", "regression": "1 to 5"}),
    "from 3": ([3, 5], {"classes": "classes 0 to 2 are empty; subtract 3", "regression": "3 to 5"}),
    "many": ([0, 0, 0, 1000], {"regression": "on a log scale"}),
    "near": ([500.5, 501, 502], {"regression": "500.5 to 502"}),
    "fractions": ([0.0, 0.5], {"regression": "0 to 0.5"}),
    "tiny": ([0.0, 0.0, 0.0, 1e-3], {"regression": "on a log scale"}),
    "as wide as their mean": ([0, 1000], {"regression": "0 to 1000"}),
    "negative": ([-1, 0, 1], {"regression": "-1 to 1"}),
}


@pytest.mark.parametrize("column,expected", COLUMNS.values(), ids=COLUMNS)
def test_a_suggested_task_can_be_read_and_takes_the_columns_labels(column, expected):
    suggested = {name: kind.suggest(summary_of(column)) for name, kind in KINDS.items()}
    assert [name for name, found in suggested.items() if found] == [name for name in KINDS if name in expected]
    for name, words in expected.items():
        entry, remark = suggested[name]
        assert words in remark
        written = "{" + ", ".join(f"{key}: {value}" for key, value in entry.items()) + "}"  # as make_vocabulary.py does
        (task,) = tasks.parse([yaml.safe_load(written)], 8)
        assert type(task.kind) is KINDS[name] and not task.kind.is_wrong(np.array(column, float)).any()
        if name == "regression":
            labels = paddle.to_tensor(np.array(column)[:, None].astype("float32"))
            of_mean = task.kind.losses(paddle.zeros_like(labels), labels).numpy()
            assert of_mean.mean() == pytest.approx(1, rel=0.01)  # the mean's own loss, in standard units


@pytest.mark.parametrize("log", [False, True])
def test_a_regression_is_in_standard_units_inside_and_in_the_labels_units_outside(log):
    kind = Regression(mean=7.5, deviation=0.25, log=log)
    output, label = np.array([[-2.0], [0.5], [3.0]]), np.array([[1000.0], [2000.0], [5000.0]])
    scaled = np.log1p(label) if log else label
    tensors = [paddle.to_tensor(array.astype("float32")) for array in (output, label)]
    expected = (output - (scaled - 7.5) / 0.25) ** 2
    np.testing.assert_allclose(kind.losses(*tensors).numpy(), expected, rtol=1e-5)
    value = output * 0.25 + 7.5
    value = np.exp(value) - 1 if log else value
    np.testing.assert_allclose(kind.numbers(output), value[:, 0], rtol=1e-12)
    np.testing.assert_allclose(kind.export(tensors[0])["value"].numpy(), value, rtol=1e-5)


def test_no_output_makes_an_infinite_or_negative_amount():
    kind = Regression(mean=5.0, deviation=2.0, log=True)
    far_out = np.array([[1e6], [-1e6], [-2.6]], "float32")  # -2.6: 5.0 - 2 x 2.6 is below 0
    for numbers in (kind.numbers(far_out.astype(float)), kind.export(paddle.to_tensor(far_out))["value"].numpy()[:, 0]):
        assert np.isfinite(numbers).all() and numbers[1:].tolist() == [0, 0]
    assert kind.is_wrong(np.array([-0.5, 0.0])).tolist() == [True, False]
    assert kind.out_of_range(np.array([-0.5, 0.0])).tolist() == [True, False]


NAMED = {
    "classes": ({"classes": ["low", "mid", "high"]}, 3),
    "binary": ({"kind": "binary", "classes": ["no", "yes"]}, 1),
}


@pytest.mark.parametrize("entry,width", NAMED.values(), ids=NAMED)
def test_classes_may_have_names(entry, width):
    (task,) = tasks.parse([entry], 8)
    assert task.kind.out_size == width and list(task.kind.class_names) == entry["classes"]
    written = {column["name"]: column.get("names") for column in task.kind.columns}
    assert written == {"prediction": entry["classes"], "probability": None}


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], ["a", True], ["a", " "], [], 1, 2.5, "ab"])
def test_classes_are_a_number_or_different_names(classes):
    with pytest.raises(ValueError, match="whole number >= 2, or a list of at least two different texts"):
        tasks.parse([{"classes": classes}], 8)
    with pytest.raises(ValueError, match="classes is"):
        tasks.parse([{"kind": "binary", "classes": classes or ["a", "b", "c"]}], 8)
