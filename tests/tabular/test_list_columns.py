"""Columns of lists, hashed ids and shared ids: from files to batches, against Python a row at a time."""

import json
import pickle
import types
import zlib

import numpy as np
import pyarrow as pa
import pytest

import make_vocabulary
from engine import blocks as engine_blocks
from support.tables import blocks, run_make_vocabulary, write_files
from tabular import categories
from tabular import reader as table_reader
from tabular.lists import Lists
from tabular.vocabulary import Vocabulary

GENRES = ["drama", "comedy", "war", "sci-fi"]
BIG = 2**62 + 1  # which float64 does not have


def make_rows(rng, number):
    """Rows (user, genres, history): lists of any length, empty ones too; ids of 64 bits."""
    return [
        (
            int(rng.randint(1, 9)),
            [GENRES[i] for i in rng.permutation(4)[: rng.randint(4)]],
            [BIG + int(i) for i in rng.randint(0, 7, rng.randint(6))],
        )
        for _ in range(number)
    ]


def csv_of(rows, separator="|"):
    lines = [f"{user},{separator.join(genres)},{separator.join(map(str, ids))},1" for user, genres, ids in rows]
    return "user,genres,history,label\n" + "".join(line + "\n" for line in lines)


def parquet_of(rows, kind=pa.list_):
    users, genres, history = zip(*rows)
    arrays = {"user": pa.array(users, pa.int32()), "genres": pa.array(genres, kind(pa.string()))}
    return pa.table({**arrays, "history": pa.array(history, kind(pa.int64())), "label": [1] * len(rows)})


FILES = {
    "CSV": csv_of,
    "Parquet": parquet_of,
    "Parquet, large lists": lambda rows: parquet_of(rows, pa.large_list),
    "Parquet, texts": lambda rows: parquet_of(rows).set_column(
        1, "genres", [["|".join(g) or None for _, g, _ in rows]]
    ),
}


def make(folder, **options):
    """The Vocabulary of the files in ``folder``/train."""
    arguments = {"train": str(folder / "train"), "out": str(folder / "v.json"), "min_count": 1, "max_size": None}
    arguments |= {"pieces": 0, "config": None, "validation": None, "test": None, "skip_bad_rows": False, "dense": []}
    arguments |= {"weight": None, "group": None}
    arguments |= {"sparse": ["user"], "lists": ["genres", "history"], "labels": ["label"], "separator": "|"}
    make_vocabulary.make(
        types.SimpleNamespace(**{**arguments, "sum": [], "hash": [], "like": [], "encode": [], **options})
    )
    return Vocabulary(arguments["out"])


def reader(folder, vocabulary, **runner):
    flat = {"config_abs_dir": str(folder), "runner.vocabulary": "v.json", "runner.job": "train"}
    flat.update({f"hyper_parameters.input.{name}": value for name, value in vocabulary.config().items()})
    flat["hyper_parameters.tasks"] = [{"name": "label", "kind": "binary"}]
    paths = [str(path) for path in (folder / "train").iterdir()]
    return table_reader.RecDataset(paths, {**flat, **{f"runner.{name}": value for name, value in runner.items()}})


def lists_of(padded):
    """The lists in an array as the network reads it."""
    return [[int(i) for i in row if i != -1] for row in padded]


@pytest.mark.parametrize("make_file", FILES.values(), ids=FILES)
def test_lists_of_ids_are_those_of_their_rows(make_file, tmp_path, rng):
    rows = make_rows(rng, 50)
    content = make_file(rows)
    write_files(tmp_path, {f"train/a.{'csv' if isinstance(content, str) else 'parquet'}": content})
    vocabulary = make(tmp_path)
    genres, history = (category.ids.values for category in vocabulary.lists)
    assert genres == sorted(GENRES) and history == sorted({str(i) for _, _, ids in rows for i in ids})
    (block,) = reader(tmp_path, vocabulary).blocks(0, None, engine_blocks.in_order(0, "x"))
    assert [np.asarray(item).dtype for item in block[:3]] == [np.int64] * 3
    assert lists_of(np.asarray(block[1])) == [[genres.index(g) + 1 for g in found] for _, found, _ in rows]
    assert lists_of(np.asarray(block[2])) == [[history.index(str(i)) + 1 for i in ids] for _, _, ids in rows]


def test_ids_can_be_shared_hashed_and_limited(tmp_path, rng, capsys):
    rows = [(*row, row[2][0] if row[2] else None) for row in make_rows(rng, 60)]
    users, genres, history, last = zip(*rows)
    table = pa.table({"user": users, "genres": genres, "history": history, "last": last, "label": [1] * 60})
    write_files(tmp_path, {"train/a.parquet": table})
    vocabulary = make(
        tmp_path, sparse=["user", "last"], like=[("history", "last")], hash=[("user", 5)], sum=["history"], min_count=30
    )
    printed = capsys.readouterr().out
    found = [category.ids for category in (*vocabulary.categories, *vocabulary.lists)]
    assert found[3] is found[1] and found[0].size == 6
    counts = {
        i: sum((*ids, end).count(i) for _, _, ids, end in rows) for i in {i for _, _, ids, _ in rows for i in ids}
    }
    assert found[1].values == sorted(str(i) for i, count in counts.items() if count >= 30)
    assert vocabulary.config()["shared_embeddings"] == [[1, 3]]
    assert vocabulary.config()["list_pooling"] == ["mean", "sum"]
    assert "user: " in printed and "values in 5 ids" in printed and "with another's id" in printed
    assert "history: lists of up to 5" in printed and "the ids of last" in printed
    ids = vocabulary.encode({"user": users, "last": last})
    assert set(ids[:, 0]) <= set(range(1, 6)) and ids[:, 0].tolist() == [ids[users.index(u), 0] for u in users]


def test_a_hash_spreads_ids_evenly_and_is_the_same_everywhere():
    ids = categories.HashedIds("c", 1000).of([str(i) for i in range(100_000)])
    counts = np.bincount(ids, minlength=1001)
    assert counts[0] == 0 and ((counts[1:] - 100) ** 2 / 100).sum() < 1000 + 6 * np.sqrt(
        2 * 1000
    )  # chi^2, 6 deviations
    texts = ["a", "ü", "12345678901234567890"]
    expected = [1 + ((zlib.crc32(text.encode()) * 2654435769 % 2**32) * 10**9 >> 32) for text in texts]
    assert categories.HashedIds("c", 10**9).of(["", *texts]).tolist() == [0, *expected]


def test_the_share_of_collisions_is_estimated(tmp_path, capsys):
    write_files(tmp_path, {"train/a.csv": "user,label\n" + "".join(f"{i},1\n" for i in range(3000))})
    make(tmp_path, lists=[], separator="", hash=[("user", 4000)])
    (share,) = [
        float(line.split(" ids, ")[1].split(" %")[0])
        for line in capsys.readouterr().out.splitlines()
        if " ids, " in line
    ]
    ids = categories.HashedIds("user", 4000).of([str(i) for i in range(3000)])
    counts = np.bincount(ids)
    assert share == pytest.approx(100 * (counts[ids] > 1).mean(), rel=0.1)


BAD = {
    "no separator": ("a|b", {"separator": ""}, "the column tags has texts, not lists. Give --separator"),
    "brackets": ("[1| 2]", {}, "tags is '.1. 2.': write its parts without brackets"),
    "an id too large for a float": ("1|1e+17", {}, "tags has an id that is the float '?1e.17"),
}


@pytest.mark.parametrize("field,options,words", BAD.values(), ids=BAD)
def test_a_field_that_is_no_list_is_refused(field, options, words, tmp_path):
    write_files(tmp_path, {"train/a.csv": f"tags,label\n1,1\n{field},1\n"})
    with pytest.raises(ValueError, match=words) as caught:
        make(tmp_path, **{"sparse": [], "lists": ["tags"], **options})
    assert "a.csv" in str(caught.value)


def test_one_bad_row_is_skipped_and_the_lists_of_others_stay_in_place(tmp_path):
    write_files(tmp_path, {"train/a.csv": "tags,label\na|b,1\n[c],1\n,1\nb| a ,1\n"})
    vocabulary = make(tmp_path, sparse=[], lists=["tags"], skip_bad_rows=True)
    found = reader(tmp_path, vocabulary, bad_rows="skip", bad_rows_share=0.5)
    (block,) = found.blocks(0, None, engine_blocks.in_order(0, "x"))
    assert lists_of(np.asarray(block[0])) == [[1, 2], [], [2, 1]]


def test_blanks_separate_however_many_there_are(tmp_path):
    write_files(tmp_path, {"train/a.csv": "tags,label\n a  b ,1\n ,1\n"})
    (block,) = blocks(tmp_path / "train" / "a.csv")
    lengths, codes, texts = block.read([], [], [("tags", " ")]).lists["tags"]
    assert lengths.tolist() == [2, 0] and [texts[code] for code in codes] == ["a", "b"]


def test_unknown_ids_in_lists_are_warned_of(tmp_path, caplog):
    write_files(tmp_path, {"train/a.csv": "tags,label\na|b|b,1\nb|c,1\n"})
    vocabulary = make(tmp_path, sparse=[], lists=["tags"], min_count=2)
    (block,) = reader(tmp_path, vocabulary).blocks(0, None, engine_blocks.in_order(0, "x"))
    assert lists_of(np.asarray(block[0])) == [[0, 1, 1], [1, 0]]
    assert "40% of the values of tags (2 of 5) are not in" in caplog.text


def test_lists_are_taken_as_rows_of_an_array_are(rng):
    rows = [rng.randint(0, 9, rng.randint(5)).tolist() for _ in range(20)]
    made = Lists(np.array([i for row in rows for i in row], np.int32), np.array([len(row) for row in rows]))
    order = rng.permutation(20)
    for chosen in (slice(3, 9), order, order[:0], np.arange(20) % 3 == 0):
        padded = np.asarray(made[chosen])
        expected = [rows[i] for i in np.arange(20)[chosen]]
        assert lists_of(padded) == expected and padded.shape[1] == max([1, *map(len, expected)])
    both = np.concatenate([made[:5], pickle.loads(pickle.dumps(made))])
    assert lists_of(np.asarray(both)) == rows[:5] + rows and made[4].tolist() == rows[4]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_however_they_are_read(workers, tmp_path, rng):
    from support.tables import Folder

    rows = make_rows(rng, 90)
    write_files(tmp_path, {f"train/{i}.parquet": parquet_of(rows[30 * i : 30 * i + 30]) for i in range(3)})
    vocabulary = make(tmp_path)
    folder = Folder.__new__(Folder)
    folder.folder = tmp_path
    found = [
        Folder.batches(folder, reader(tmp_path, vocabulary), shuffle=True, workers=w, size=8) for w in (workers, 0)
    ]
    ours, theirs = (list(batches(1)) for batches in found)
    assert len(ours) == len(theirs) == 12
    for one, other in zip(ours, theirs):
        assert all(type(item) is np.ndarray and np.array_equal(item, same) for item, same in zip(one, other))
    users = np.concatenate([batch[0][:, 0] for batch in ours])
    assert sorted(users.tolist()) == sorted(vocabulary.encode({"user": [row[0] for row in rows]})[:, 0].tolist())


FORMS = {
    "lists": lambda rows: {"genres": [genres for _, genres, _ in rows], "history": [ids for *_, ids in rows]},
    "texts": lambda rows: {
        "genres": ["|".join(genres) for _, genres, _ in rows],
        "history": ["|".join(map(str, ids)) or None for *_, ids in rows],
    },
    "arrays": lambda rows: {"genres": [g or None for _, g, _ in rows], "history": [np.array(i, int) for *_, i in rows]},
    "pyarrow": parquet_of,
    "pandas": lambda rows: parquet_of(rows).to_pandas(),
    "polars": lambda rows: pytest.importorskip("polars").from_arrow(parquet_of(rows)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_lists_of_a_users_program_are_read_as_those_of_files(form, tmp_path, rng):
    rows = make_rows(rng, 40)
    write_files(tmp_path, {"train/a.csv": csv_of(rows)})
    vocabulary = make(tmp_path, sparse=[], sum=["history"])
    (block,) = reader(tmp_path, vocabulary).blocks(0, None, engine_blocks.in_order(0, "x"))
    inputs, unknown = vocabulary.inputs_of(form(rows))
    assert [np.asarray(item).tolist() for item in inputs] == [np.asarray(item).tolist() for item in block[:2]]
    assert unknown["history"] == (0, sum(len(ids) for *_, ids in rows), [])


@pytest.mark.parametrize(
    "column,words",
    [
        ([["1"], 2], "row 1: tags is 2, not a list"),
        ([["1"], "2|x"], "row 0: tags is a list"),
        (["1|2", "[1]"], "row 1: tags is '.1.': write its parts without brackets"),
        ([[1], [2, 1.5]], "row 1: tags is 1.5, but all its values in .* are whole numbers"),
    ],
)
def test_a_field_of_a_users_program_that_is_no_list_is_refused(column, words, tmp_path):
    write_files(tmp_path, {"train/a.csv": "tags,label\n1|2,1\n"})
    vocabulary = make(tmp_path, sparse=[], lists=["tags"])
    with pytest.raises(ValueError, match=words):
        vocabulary.inputs_of({"tags": column})


WRONG = {
    "hash of no column": (["--hash", "item=9"], "--hash: item is not among --sparse or --lists"),
    "a hash without a number": (["--hash", "tags"], "--hash"),
    "too many hashes": (["--hash", "tags=3000000000"], "must be a whole number from 1 to 2147483646"),
    "like itself": (["--like", "tags=tags"], "--like: tags cannot have the ids of tags"),
    "like no column": (["--like", "tags=item"], "--like: item is not among"),
    "sum of no list": (["--sum", "user"], "--sum: user is not among --lists"),
    "no hash": (["--hash", "tags=0"], "--hash"),
    "two hashes": (["--hash", "tags=7", "tags=9"], "--hash: tags is named twice"),
}


@pytest.mark.parametrize("arguments,words", WRONG.values(), ids=WRONG)
def test_options_that_do_not_fit_are_refused(arguments, words, tmp_path):
    write_files(tmp_path, {"train/a.csv": "user,tags,label\n1,a|b,1\n"})
    columns = ["--sparse", "user", "--lists", "tags", "--separator", "|", *arguments]
    process = run_make_vocabulary(tmp_path, "--train", "train", *columns, "--out", "v.json")
    assert process.returncode == 2 and words in process.stderr and not (tmp_path / "v.json").exists()


@pytest.mark.parametrize(
    "entry,words",
    [
        ({"values": [], "pooling": "max"}, "pooling of tags is 'max'"),
        ({"like": "item"}, "tags is like item, which has no ids of its own"),
        ({"hash": 0}, "hash of tags is 0"),
        ({"hash": 5, "values": []}, "tags has values and hash, but only one"),
        ({}, "it has no 'values'"),
    ],
)
def test_a_vocabulary_with_other_words_is_refused(entry, words, tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"numbers": [], "categories": [{"column": "tags", **entry}]}))
    with pytest.raises(ValueError, match=words):
        Vocabulary(str(tmp_path / "v.json"))


def test_empty_parts_are_left_out_of_every_form(tmp_path):
    write_files(tmp_path, {"train/a.csv": "tags,label\na|,1\n|,1\na||b,1\n"})
    table = pa.table({"tags": [["a", None], None, ["a", "", "b"]], "label": [1] * 3})
    write_files(tmp_path, {"train/b.parquet": table})
    vocabulary = make(tmp_path, sparse=[], lists=["tags"])
    found = [
        np.asarray(item) for item, _ in reader(tmp_path, vocabulary).blocks(0, None, engine_blocks.in_order(0, "x"))
    ]
    assert [lists_of(padded) for padded in found] == [[[1], [], [1, 2]]] * 2


@pytest.mark.parametrize(
    "column",
    [pa.nulls(2), pa.DictionaryArray.from_arrays(pa.array([None, 0]), pa.array([["a"]]))],
    ids=["nulls", "a dictionary of lists"],
)
def test_lists_are_read_however_they_are_stored(column, tmp_path):
    (tmp_path / "v.json").write_text(
        json.dumps({"numbers": [], "categories": [{"column": "tags", "values": ["a"], "pooling": "mean"}]})
    )
    inputs, _ = Vocabulary(str(tmp_path / "v.json")).inputs_of(pa.table({"tags": column}))
    assert lists_of(np.asarray(inputs[0])) == [[], [1] if column.null_count < 2 else []]


def test_a_list_is_not_said_to_equal_a_label(tmp_path, capsys):
    write_files(tmp_path, {"train/a.csv": "tags,label\na b,yes\n,no\na,no\n"})
    make(tmp_path, sparse=[], lists=["tags"], separator=" ")
    assert "WARNING" not in capsys.readouterr().out


def test_columns_that_share_hashes_have_the_collisions_of_both(tmp_path, capsys):
    rows = "".join(f"x{i},y{i},1\n" for i in range(3000))
    write_files(tmp_path, {"train/a.csv": "a,b,label\n" + rows})
    make(tmp_path, sparse=["a", "b"], lists=[], separator="", like=[("a", "b")], hash=[("b", 10_000)])
    shares = [
        float(line.split(" ids, ")[1].split(" %")[0])
        for line in capsys.readouterr().out.splitlines()
        if " ids, " in line
    ]
    assert shares == pytest.approx([100 * (1 - np.exp(-0.6))] * 2, rel=0.05)  # 6000 values in 10,000 ids
