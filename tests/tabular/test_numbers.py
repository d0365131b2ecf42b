"""How a column of numbers becomes inputs."""

import json
import math

import numpy as np
import pytest

from support.tables import run_make_vocabulary, write_files
from tabular import numbers, profile
from tabular.numbers import Number, Numbers
from tabular.vocabulary import Vocabulary


def expected(number, x):
    """The inputs of one field, by the formula."""
    is_empty = math.isnan(x)
    x = number.mean if is_empty else x
    if number.edges:
        x = min(max(x, number.edges[0]), number.edges[-1])
    pieces = [
        0.0 if x <= low else 1.0 if x >= high else (x - low) / (high - low)
        for low, high in zip(number.edges, number.edges[1:])
    ]
    return [(x - number.mean) / number.deviation, *pieces, *[float(is_empty)] * number.missing]


NUMBERS = {
    "standardised alone": Number("x", 2.0, 0.5),
    "pieces": Number("x", 2.0, 0.5, (-1.0, 0.5, 3.0, 3.5)),
    "an input for empty fields": Number("x", 2.0, 0.5, (-1.0, 5.0), True),
}


def inputs_of(number, fields):
    return np.asarray(Numbers([number], np.array(fields)[:, None]))


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_inputs_are_those_of_the_formula(number):
    fields = [-1.0, -0.3, 0.5, 2.0, 3.2, 3.5, 1e30, -1e30, math.nan]
    found = inputs_of(number, fields)
    assert found.dtype == np.float32 and found.shape == (len(fields), number.width)
    np.testing.assert_allclose(found, [expected(number, x) for x in fields], rtol=1e-6, atol=1e-7)


def test_no_number_is_further_out_than_those_of_the_training_rows():
    number = Number("x", 100.0, 1.0, (90.0, 100.0, 117.0))
    assert inputs_of(number, [1e300, 117.0]).tolist() == [[17.0, 1.0, 1.0]] * 2
    fields = np.array([1e300, 117.0, np.nan])
    assert not number.does_not_fit(fields).any()
    assert Number("x", 100.0, 1.0).does_not_fit(fields).tolist() == [True, False, False]  # without bounds


def test_rows_of_numbers_are_taken_and_joined_like_an_array(rng, monkeypatch):
    """Encoded first or last, the bits are the same, also if few rows are encoded together."""
    values = rng.randn(50, 3)
    values[rng.rand(50, 3) < 0.2] = np.nan
    late = Numbers(list(NUMBERS.values()), values)
    array = np.asarray(late)
    assert array.shape == (len(late), 1 + 4 + 3)
    order = rng.permutation(50)
    for rows in (order, slice(7, 30), order < 25, 4):
        np.testing.assert_array_equal(late[rows], array[rows])
    np.testing.assert_array_equal(np.concatenate([late[order], late[:1]]), array[[*order, 0]])
    assert late.smaller() is late  # 8 inputs of 4 bytes a row, 3 numbers of 8
    np.testing.assert_array_equal(Numbers([NUMBERS["standardised alone"]], values[:, :1]).smaller(), array[:, :1])
    monkeypatch.setattr(numbers, "ENCODED_TOGETHER", 8)
    np.testing.assert_array_equal(late, array)


@pytest.mark.parametrize(
    "entry,words",
    [
        ({"edges": [1.0]}, "edges of x do not rise"),
        ({"edges": [1.0, 1.0]}, "edges of x do not rise"),
        ({"edges": [2.0, 1.0]}, "edges of x do not rise"),
        ({"edges": [1.0, math.inf]}, "not finite"),
        ({"missing": 1}, "missing of x is neither"),
    ],
)
def test_a_vocabulary_with_wrong_edges_is_refused(entry, words, tmp_path):
    entry = {"column": "x", "mean": 0, "deviation": 1, **entry}
    (tmp_path / "v.json").write_text(json.dumps({"numbers": [entry], "categories": []}))
    with pytest.raises(ValueError, match=words):
        Vocabulary(str(tmp_path / "v.json"))


def test_edges_are_quantiles_of_the_training_rows(tmp_path):
    rng = np.random.RandomState(1)
    x = rng.gamma(2.0, size=3000).round(3)
    lines = [f"{value},{i % 3},5,{'' if i % 10 == 0 else value}" for i, value in enumerate(x)]
    write_files(tmp_path, {"train/a.csv": "\n".join(["x,few,one,gaps", *lines]) + "\n"})
    columns = ["--dense", "x", "few", "one", "gaps", "--pieces", "8", "--out", "v.json"]
    assert run_make_vocabulary(tmp_path, "--train", "train", *columns).returncode == 0
    x_, few, one, gaps = json.loads((tmp_path / "v.json").read_text())["numbers"]
    np.testing.assert_allclose(x_["edges"], np.quantile(x, np.linspace(0, 1, 9)), rtol=1e-12)
    assert few["edges"] == [0, 1, 2] and one["edges"] == []  # fewer pieces where numbers repeat; a constant has none
    assert [entry["missing"] for entry in (x_, few, one, gaps)] == [False, False, False, True]


def test_edges_are_taken_from_a_sample_of_many_rows(monkeypatch):
    monkeypatch.setattr(profile, "SAMPLED", 2000)
    sample, rng = profile.Sample(), np.random.RandomState(2)
    for _ in range(50):
        sample.add(rng.rand(1000))
    # a quantile of 2000 numbers is off by 0.011 (one deviation) at most; five of them
    np.testing.assert_allclose(sample.edges(4)[1:-1], [0.25, 0.5, 0.75], atol=0.056)
    assert len(sample.numbers) == 2000


def test_how_a_column_is_encoded_can_be_chosen(tmp_path, rng):
    x = np.exp(3 * rng.randn(500)).round(3)
    x[::3] *= -1
    write_files(tmp_path, {"train/a.csv": "x,y,z\n" + "".join(f"{value},{value},{value}\n" for value in x)})
    columns = ["--dense", "x", "y", "z", "--encode", "x=log", "y=plain", "--pieces", "4", "--out", "v.json"]
    process = run_make_vocabulary(tmp_path, "--train", "train", *columns)
    assert process.returncode == 0, process.stderr
    assert f"x: {x.min():g} to {x.max():g}, 4 pieces, on a log scale" in process.stdout
    assert "y: " in process.stdout and ", standardised" in process.stdout
    on_scale = np.sign(x) * np.log1p(np.abs(x))
    vocabulary = Vocabulary(str(tmp_path / "v.json"))
    made = vocabulary.dense({"x": x, "y": x, "z": x})
    assert made.shape == (500, 5 + 1 + 5)
    np.testing.assert_allclose(made[:, 0], (on_scale - on_scale.mean()) / on_scale.std(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(made[:, 5], (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-6)
    edges = np.quantile(on_scale, np.linspace(0, 1, 5))
    np.testing.assert_allclose(made[:, 2], np.clip((on_scale - edges[1]) / (edges[2] - edges[1]), 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "choice,words",
    [("x=cube", "x is 'cube', but must be one of pieces, plain"), ("shop=log", "shop is not among --dense")],
)
def test_a_wrong_encoding_is_refused(choice, words, tmp_path):
    write_files(tmp_path, {"train/a.csv": "x,shop\n1,a\n2,b\n"})
    columns = ["--dense", "x", "--sparse", "shop", "--encode", choice, "--out", "v.json"]
    process = run_make_vocabulary(tmp_path, "--train", "train", *columns)
    assert process.returncode == 2 and f"--encode: {words}" in process.stderr


def test_the_outer_edges_are_those_of_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "SAMPLED", 20)
    columns = profile.Columns(["x"], [], [])
    x = np.random.RandomState(0).randn(2000)
    for part in np.split(x, 20):
        columns.dense["x"].add(part)
    columns.rows = 2000
    (number,) = columns.vocabulary()["numbers"]
    assert (number["edges"][0], number["edges"][-1]) == (x.min(), x.max())


def test_a_number_that_most_rows_have_takes_no_pieces_from_the_others(rng):
    x = np.where(rng.rand(4000) < 0.9, 0.0, 1 + rng.gamma(2.0, size=4000))
    sample = profile.Sample()
    sample.add(x)
    edges = sample.edges(8)
    assert len(edges) == 9 and edges[0] == 0 and edges[-1] == x.max()
    np.testing.assert_allclose(edges[1:], np.quantile(x[x > 0], np.linspace(0, 1, 8)), rtol=1e-12)


@pytest.mark.parametrize(
    "rows,columns,expected", [(19_999, 1, 16), (20_000, 1, 64), (20_000, 16, 64), (20_000, 17, 16)]
)
def test_many_rows_and_few_columns_have_many_pieces_by_default(rows, columns, expected):
    names = [f"x{i}" for i in range(columns)]
    found = profile.Columns(names, [], [])
    for name in names:
        found.dense[name].add(np.arange(100.0))
    found.rows = rows
    assert {len(number["edges"]) - 1 for number in found.vocabulary()["numbers"]} == {expected}
    assert {len(number["edges"]) - 1 for number in found.vocabulary(pieces=8)["numbers"]} == {8}


@pytest.mark.parametrize(
    "x,expected",
    [
        ([5] * 10, []),
        ([0, 1, 2] * 100, [0, 1, 2]),
        ([0] * 90 + [7] * 9 + [3], [0, 3, 7]),
        (np.arange(17).repeat(9), list(np.arange(17))),
    ],
)
def test_few_different_numbers_are_edges_each(x, expected):
    sample = profile.Sample()
    sample.add(np.array(x, float))
    assert sample.edges(16) == expected
