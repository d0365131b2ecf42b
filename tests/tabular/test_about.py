"""Weights and groups of a table's rows: what the reader makes of the columns, and which rows are bad."""

import hashlib
import json
import re

import numpy as np
import pytest

from engine.errors import UserError
from support.tables import COLUMNS, LABELS, SPARSE, Folder, joined, make_rows, run_make_vocabulary, write
from tabular import files as table_files
from tabular.vocabulary import Vocabulary

NAMES = [*COLUMNS, "weight", "user"]
KEYS = {"hyper_parameters.input.example_weights": True, "hyper_parameters.input.groups": True}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 150)
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 5)


class Weighted(Folder):
    """A Folder whose rows end with a weight and a user."""

    def __init__(self, folder, names, rows, **options):
        self.options = {"weight": "weight", "group": "user", **options}
        self.folder, self.rows = folder, rows
        for name, share in zip(names, np.array_split(np.arange(len(rows)), len(names))):
            write(folder / "train" / name, [rows[i] for i in share], NAMES)
        self.make_vocabulary(**self.options)

    def config(self, **runner):
        return {**super().config(**runner), **KEYS}


def weighted_rows(rng, number):
    rows = make_rows(rng, number)
    return [[*row, f"{rng.choice([0, 1e-12, rng.rand(), 3e8]):.7g}", f"user {rng.randint(6)}"] for row in rows]


def number_of(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


@pytest.mark.parametrize("names", ["a.csv", "a.parquet", "a.csv.gz b.parquet c.tsv"])
def test_weights_and_groups_follow_the_labels(names, tmp_path, rng):
    folder = Weighted(tmp_path, names.split(), weighted_rows(rng, 90))
    *plain, weight, group = joined(folder.batches()(0))
    for ours, theirs in zip(plain, folder.expected([row[:-2] for row in folder.rows])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert weight.dtype == np.float32 and group.dtype == np.int64
    np.testing.assert_array_equal(weight, np.array([row[-2] for row in folder.rows], float).astype("float32"))
    assert group.tolist() == [number_of(row[-1]) for row in folder.rows]
    by_workers = joined(folder.batches(workers=2)(0))
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(by_workers, [*plain, weight, group]))


def test_a_category_may_be_the_group_too(tmp_path, rng):
    rows = [row for row in weighted_rows(rng, 60) if row[2]]
    folder = Weighted(tmp_path, ["a.csv", "b.parquet"], rows, group="shop")
    ids, group = (joined(folder.batches()(0))[i] for i in (1, -1))
    assert group.tolist() == [number_of(row[2]) for row in rows]
    assert len({*zip(ids[:, 0], group)}) == len({*ids[:, 0]}) > 1


BAD = {
    "weight empty": ("", "u", "the weight weight is empty, not 0 or a number from 1e-30 to 1e"),
    "weight below 0": ("-0.5", "u", "the weight weight is -0.5, not 0 or"),
    "weight infinite": ("inf", "u", "weight is infinite"),
    "weight too large": ("1e31", "u", r"the weight weight is 1e\+31, not"),
    "weight a text": ("much", "u", "weight is 'much', not a number"),
    "group empty": ("1", " ", "the group user is empty"),
}


@pytest.mark.parametrize("weight,user,words", BAD.values(), ids=BAD)
def test_a_row_without_a_weight_or_a_group_is_bad(weight, user, words, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 10**6)  # good rows follow in the same block
    rows = weighted_rows(rng, 60)
    folder = Weighted(tmp_path, ["a.csv"], rows)
    spoilt = [*rows[:40], [*rows[40][:-2], weight, user], *rows[41:]]
    write(tmp_path / "train" / "a.csv", spoilt, NAMES)
    with pytest.raises(UserError, match=f"a.csv, line 42: {words}"):
        list(folder.batches()(0))
    found = joined(folder.batches(folder.reader(bad_rows="skip", bad_rows_share=0.02))(0))
    assert found[-1].tolist() == [number_of(row[-1]) for row in rows[:40] + rows[41:]]
    with pytest.raises(ValueError, match=f"line 42: {words}"):
        folder.make_vocabulary(**folder.options)
    folder.make_vocabulary(**folder.options, skip_bad_rows=True)
    assert json.loads((tmp_path / "vocabulary.json").read_text())["rows"] == 59


def test_predictions_need_neither_column(tmp_path, rng):
    folder = Weighted(tmp_path, ["a.csv", "b.csv"], weighted_rows(rng, 20))
    whole = joined(folder.reader(inference=True).blocks(0, None, map))
    assert len(whole) == 7
    for left_out in (["weight"], ["user"], ["weight", "user"]):
        kept = [i for i, name in enumerate(NAMES) if name not in left_out]
        rows = [[row[i] for i in kept] for row in folder.rows[10:]]
        write(tmp_path / "train" / "b.csv", rows, [NAMES[i] for i in kept])
        found = joined(folder.reader(inference=True).blocks(0, None, map))
        assert len(found) == 5 and all(np.array_equal(*pair, equal_nan=True) for pair in zip(found, whole))
        with pytest.raises(ValueError, match=f"b.csv: there is no column '{left_out[0]}'.*Evaluation needs"):
            folder.reader(job="infer")


def test_a_config_and_a_vocabulary_must_agree(tmp_path, rng):
    folder = Weighted(tmp_path, ["a.csv"], weighted_rows(rng, 20))
    vocabulary = Vocabulary(folder.vocabulary_path)
    for key in KEYS:
        with pytest.raises(ValueError, match=f"{key.rpartition('.')[2]} true, but {key} is false. Set it to true"):
            vocabulary.check_config({**folder.config(), key: False})
    folder.make_vocabulary()
    assert "weight" not in folder.vocabulary_path and not Vocabulary(folder.vocabulary_path).about
    with pytest.raises(ValueError, match="example_weights false, but .*example_weights is true"):
        folder.reader()


@pytest.mark.parametrize(
    "about",
    [{"weight": "x"}, {"group": "x"}, {"weight": "c"}, {"weight": "y"}, {"group": "y"}, {"weight": "w", "group": "w"}],
)
def test_a_vocabulary_with_a_column_of_two_meanings_is_refused(about, tmp_path):
    content = {
        "numbers": [{"column": "x", "mean": 0, "deviation": 1}],
        "categories": [{"column": "c", "values": []}],
        "labels": [{"column": "y"}],
    }
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({**content, "weight": "w", "group": "c"}))
    assert Vocabulary(str(path)).about == {"weight": "w", "group": "c"}
    path.write_text(json.dumps({**content, **about}))
    with pytest.raises(ValueError, match="weight is not a column of its own, or its group"):
        Vocabulary(str(path))


def test_make_vocabulary_prints_the_keys_and_writes_the_columns(tmp_path, rng):
    write(tmp_path / "train" / "a.csv", [row for row in weighted_rows(rng, 60) if row[2]], NAMES)
    options = ["--train", "train", "--sparse", *SPARSE, "--labels", *LABELS, "--out", "v.json"]
    done = run_make_vocabulary(tmp_path, *options, "--weight", "weight", "--group", "shop")
    assert done.returncode == 0, done.stderr
    assert "    example_weights: true\n    groups: true\n" in done.stdout
    content = json.loads((tmp_path / "v.json").read_text())
    assert (content["weight"], content["group"]) == ("weight", "shop")
    for wrong, words in {
        ("--weight", "spent"): "the column spent is named twice",
        ("--group", "rating"): "the column rating is named twice",
        ("--weight", "user"): "user has no numbers: .*A weight is 0 or a number",
        ("--group", "nobody"): "there is no column 'nobody'",
    }.items():
        refused = run_make_vocabulary(tmp_path, *options, *wrong)
        assert refused.returncode == 2
        assert re.search(words, refused.stderr), refused.stderr


def test_a_row_to_predict_may_lack_both(tmp_path, rng):
    rows = weighted_rows(rng, 9)
    folder = Weighted(tmp_path, ["a.csv"], rows)
    unknown = [[*row[:-2], "" if i % 3 == 0 else row[-2], "" if i % 3 == 1 else row[-1]] for i, row in enumerate(rows)]
    write(tmp_path / "serve" / "a.csv", unknown, NAMES)
    *_, weight, group = joined(folder.reader("serve", inference=True, job="infer").blocks(0, None, map))
    expected = [0.0 if i % 3 == 0 else float(row[-2]) for i, row in enumerate(rows)]
    np.testing.assert_array_equal(weight, np.array(expected, "float32"))
    assert group.tolist() == [number_of("" if i % 3 == 1 else row[-1]) for i, row in enumerate(rows)]
