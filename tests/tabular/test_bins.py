"""Numbers in bins: each bin has an id, and so an embedding of its own."""

import json

import numpy as np
import pytest

from engine import blocks as engine_blocks
from support.tables import run_make_vocabulary, write_files
from tabular import reader as table_reader
from tabular.vocabulary import Vocabulary


def make(folder, x, bins):
    """The Vocabulary of a column of numbers, nan where a field is empty, in so many bins; and what was printed."""
    lines = [f"{'' if np.isnan(value) else value},{'ab'[i % 2]},1\n" for i, value in enumerate(x)]
    write_files(folder, {"train/a.csv": "x,shop,label\n" + "".join(lines)})
    columns = ["--dense", "x", "--sparse", "shop", "--labels", "label", "--encode", "x=bins", "--pieces", str(bins)]
    process = run_make_vocabulary(folder, "--train", "train", *columns, "--out", "v.json")
    assert process.returncode == 0, process.stderr
    return Vocabulary(str(folder / "v.json")), process.stdout


def bin_of(edges, value):
    """The id of a number, edge by edge."""
    return 0 if np.isnan(value) else 1 + sum(value > edge for edge in edges)


def test_bins_have_equally_many_rows_and_the_reader_gives_their_ids(tmp_path, rng):
    x = np.exp(rng.randn(400)).round(4)
    x[::10] = np.nan
    vocabulary, printed = make(tmp_path, x, 6)
    edges = json.loads((tmp_path / "v.json").read_text())["categories"][1]["edges"]
    values = np.unique(x[~np.isnan(x)])
    for edge, quantile in zip(edges, np.nanquantile(x, np.arange(1, 6) / 6)):
        below, above = (values[values <= quantile].max(), values[values > quantile].min())
        assert edge == pytest.approx((below + above) / 2, rel=1e-12)
    assert f"x: {np.nanmin(x):g} to {np.nanmax(x):g}, missing in 10 %, 6 bins, an id each" in printed
    assert vocabulary.config() == {"vocabulary_sizes": [3, 7]}
    expected = [bin_of(edges, value) for value in x]
    assert np.bincount(expected).tolist() == [40] + [60] * 6
    config = {"config_abs_dir": str(tmp_path), "runner.vocabulary": "v.json", "runner.job": "train"}
    config["hyper_parameters.input.vocabulary_sizes"] = [3, 7]
    config["hyper_parameters.tasks"] = [{"name": "label", "kind": "binary"}]
    dataset = table_reader.RecDataset([str(tmp_path / "train" / "a.csv")], config)
    (block,) = dataset.blocks(0, None, engine_blocks.in_order(0, "x"))
    assert np.asarray(block[0]).tolist() == [[1 + i % 2, expected[i]] for i in range(len(x))]
    rows = {"x": [None if np.isnan(value) else value for value in x], "shop": ["ab"[i % 2] for i in range(len(x))]}
    (ids,), unknown = vocabulary.inputs_of(rows)
    assert ids.tolist() == vocabulary.encode(rows).tolist() == np.asarray(block[0]).tolist()
    assert unknown == {"shop": (0, 400, []), "x": (0, 0, [])}


def test_numbers_out_of_the_training_rows_range_are_in_the_outer_bins(tmp_path):
    vocabulary, _ = make(tmp_path, np.arange(90.0), 3)
    ids = vocabulary.encode({"x": [-1e300, -1, 0, 89, 90, 1e300, "nan"], "shop": ["a"] * 7})
    assert ids[:, 1].tolist() == [1, 1, 1, 3, 3, 3, 0]


@pytest.mark.parametrize("frequent,own_bin", [(0.0, 1), (2.0, 4)])
def test_a_number_that_many_rows_have_takes_no_bins_from_the_others(frequent, own_bin, tmp_path, rng):
    x = np.where(rng.rand(300) < 0.7, frequent, rng.rand(300) + 0.5)
    vocabulary, _ = make(tmp_path, x, 4)
    ids = vocabulary.encode({"x": x, "shop": ["a"] * 300})[:, 1]
    assert (ids == own_bin).tolist() == (x == frequent).tolist()
    others = [np.sum(ids == i) for i in {1, 2, 3, 4} - {own_bin}]
    assert sum(others) == np.sum(x != frequent) and max(others) - min(others) <= 1  # equally many


@pytest.mark.parametrize(
    "values,bins",
    [
        ([0, 1], 5),
        ([0, 1, 2], 3),
        (range(1, 13), 16),
        ([0.1, 0.2, 0.3, 0.7], 16),
        ([-1e150, 1e150], 4),
        ([5e-324, 1e-323], 4),
    ],
    ids=str,
)
def test_a_column_of_few_numbers_has_a_bin_for_each_rounded_or_not(values, bins, tmp_path, rng):
    x = rng.choice(np.array(values, float), 300)
    vocabulary, printed = make(tmp_path, x, bins)
    expected = (1 + np.searchsorted(values, x)).tolist()
    rows = {"x": x, "shop": ["a"] * 300}
    assert vocabulary.encode(rows)[:, 1].tolist() == expected
    assert f"{len(values)} bins, an id each" in printed
    if 1e-30 < np.abs(values).max() < 1e30:  # they fit float32
        assert vocabulary.encode({**rows, "x": x.astype("float32")})[:, 1].tolist() == expected


def test_bins_must_be_two_or_more(tmp_path):
    write_files(tmp_path, {"train/a.csv": "x,label\n1,0\n2,1\n"})
    made = ["--dense", "x", "--labels", "label", "--encode", "x=bins", "--pieces", "1", "--out", "v.json"]
    process = run_make_vocabulary(tmp_path, "--train", "train", *made)
    assert (process.returncode, process.stderr) == (
        2,
        "error: --encode: x=bins needs 2 bins or more, but --pieces is 1.\n",
    )


def test_a_constant_has_one_bin(tmp_path):
    vocabulary, printed = make(tmp_path, np.full(20, 7.0), 4)
    assert "7 to 7, 1 bin, WARNING: a constant" in printed
    assert vocabulary.config() == {"vocabulary_sizes": [3, 2]}


@pytest.mark.parametrize(
    "entries,words",
    [
        ([{"column": "x", "edges": [2.0, 1.0]}], "edges of x do not rise"),
        ([{"column": "x", "edges": [1.0, 1.0]}], "edges of x do not rise"),
        ([{"column": "x", "edges": [float("inf")]}], "edges of x do not rise"),
        ([{"column": "x", "edges": ["a"]}], "could not convert"),
        ([{"column": "x", "edges": [1.0], "pooling": "mean"}], "x has bins, which no list"),
        ([{"column": "x", "edges": [1.0]}, {"column": "y", "like": "x"}], "y has bins, which no list"),
    ],
)
def test_wrong_bins_are_refused(entries, words, tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"numbers": [], "categories": entries}))
    with pytest.raises(ValueError, match=f"v.json: this is not a vocabulary.*{words}"):
        Vocabulary(str(tmp_path / "v.json"))
