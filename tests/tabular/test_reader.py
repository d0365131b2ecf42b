"""tabular/reader.py on CSV and Parquet, against support/tables.py, which goes row by row with Python's csv."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from dselect_k_model.hyper_parameters import HyperParameters
from engine.errors import UserError
from support import ROOT
from support.memory import peak_of
from support.tables import COLUMNS, HEAD, TASKS, Folder, joined, make_rows, write, write_files
from tabular import files as table_files
from tabular import reader as table_reader


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many blocks a file, so that rows lie across their borders."""
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 150)
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 5)


@pytest.fixture
def mixed(tmp_path, rng):
    return Folder(tmp_path, ["a.csv", "b.csv.gz", "c.parquet"], make_rows(rng, 90))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # float32 of the same float64, give or take its last bit


def sorted_rows(arrays):
    flat = np.concatenate([np.nan_to_num(array.reshape(len(array), -1), nan=-9.0) for array in arrays], axis=1)
    return flat[np.lexsort(flat.T)]


# --------------------------------------------------------------------------------------- rows and their order


@pytest.mark.parametrize("names", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet", "a.csv b.csv.gz c.parquet d.tsv.gz"])
def test_every_row_is_read_once_as_python_reads_it(names, tmp_path, rng):
    folder = Folder(tmp_path, names.split(), make_rows(rng, 90))
    for name in (".hidden.csv", "notes.txt"):
        (tmp_path / "train" / name).write_text("not a table")
    expected = folder.expected()
    assert_same(joined(folder.batches()(0)), expected)
    one_by_one = [np.array(column) for column in zip(*iter(folder.reader()))]
    assert_same([column.astype(other.dtype) for column, other in zip(one_by_one, expected)], expected)
    assert folder.batches().steps() == 13  # of 90 rows, 7 at a time


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_depend_on_seed_and_epoch_and_not_on_workers(mixed, shuffle):
    def digests(batches):
        return [[array.tobytes() for array in batch] for batch in batches]

    alone = digests(mixed.batches(shuffle=shuffle, window=20)(1))
    for workers in (1, 2):
        assert digests(mixed.batches(workers=workers, shuffle=shuffle, window=20)(1)) == alone
    for begin in (0, 1, 5, 12):
        assert digests(mixed.batches(shuffle=shuffle, window=20)(1, begin)) == alone[begin:]
    assert (digests(mixed.batches(shuffle=shuffle, window=20)(2)) != alone) == shuffle
    assert (digests(mixed.batches(shuffle=shuffle, window=30)(1)) != alone) == shuffle


def test_a_shuffled_epoch_has_every_row_once(mixed):
    for window in (None, 20):
        found = joined(mixed.batches(shuffle=True, window=window)(0))
        np.testing.assert_allclose(sorted_rows(found), sorted_rows(mixed.expected()), rtol=1e-5)


def test_the_shares_of_all_ranks_are_the_whole(mixed):
    shares = []
    for rank in range(3):
        reader = mixed.reader()
        reader.rank, reader.rank_num = rank, 3
        shares.append(joined(mixed.batches(reader, workers=rank)(0)))
        assert reader.row_num() == 90  # of all
    assert all(len(share[0]) for share in shares)
    np.testing.assert_allclose(sorted_rows(joined(shares)), sorted_rows(mixed.expected()), rtol=1e-5)


def test_the_rank_is_the_launchers(mixed):
    """In a process of its own: Paddle keeps the rank."""
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); from tabular import reader\n"
    code += "found = reader.RecDataset([sys.argv[2]], json.loads(sys.argv[3])); print(found.rank, found.rank_num)"
    command = [sys.executable, "-c", code, str(ROOT), str(mixed.folder / "train" / "a.csv"), json.dumps(mixed.config())]
    ranks = {"PADDLE_TRAINER_ID": "2", "PADDLE_TRAINERS_NUM": "3"}  # as paddle.distributed.launch sets them
    process = subprocess.run(command, env={**os.environ, **ranks}, capture_output=True, text=True)
    # a thread of pyarrow's that runs at exit would end it with an error
    assert process.returncode == 0 and process.stdout.split() == ["2", "3"], process.stderr


def test_memory_does_not_grow_with_the_file(tmp_path, rng, monkeypatch):
    """Python's, NumPy's and pyarrow's, of some blocks and of ten times as many."""
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1 << 14)
    folder = Folder(tmp_path, ["a.csv"], make_rows(rng, 50))
    path = tmp_path / "train" / "a.csv"
    head, rows = path.read_text().split("\n", 1)

    def read_all():
        for block in folder.reader().blocks(0, None, map):
            row_nums[-1] += len(block[0])
            of_pyarrow[-1] = max(of_pyarrow[-1], pa.total_allocated_bytes())

    row_nums, of_pyarrow, peaks = [], [], []
    for times in (40, 400):
        path.write_text(head + "\n" + rows * times)
        row_nums.append(0), of_pyarrow.append(0)
        peaks.append(peak_of(read_all) + of_pyarrow[-1])
    assert row_nums == [50 * 40, 50 * 400]
    assert peaks[1] < 1.5 * peaks[0], f"bytes: {peaks}"


# --------------------------------------------------------------------------------------------------- bad rows

# in place of row 40, and the message about it
BAD = {
    "too few columns": ("0.1,0.2,shop 1", "it has 3 columns, not 7"),
    "too many columns": ("0.1,0.2,shop 1,3,1,1,0.5,9", "it has 8 columns, not 7"),
    "text for a number": ("0.1,cheap,shop 1,3,1,1,0.5", "minutes is 'cheap', not a number"),
    "text for a label": ("0.1,0.2,shop 1,3,1,1,much", "spent is 'much', not a number"),
    "infinite": ("0.1,inf,shop 1,3,1,1,0.5", "minutes is infinite"),
    "input beyond float32": ("1e300,0,a,1,1,1,1", "price is 1e+300, which does not fit float32"),
    "half a class": ("0.1,0.2,shop 1,3,1.5,1,0.5", "the label rating is 1.5, not a class: a whole number from 0 to 2"),
    "a class below 0": ("0.1,0.2,shop 1,3,-1,1,0.5", "the label rating is -1, not a class"),
    "one class too many": ("0.1,0.2,shop 1,3,3,1,0.5", "the label rating is 3, not a class"),
    "less than no": ("0.1,0.2,shop 1,3,1,-1,0.5", "the label bought is -1, not 0 or 1"),
    "neither yes nor no": ("0.1,0.2,shop 1,3,1,2,0.5", "the label bought is 2, not 0 or 1"),
    "label beyond float32": ("0,0,a,1,1,1,-1e39", "the label spent is -1e+39, not a number that fits float32"),
    "no UTF-8": ("0.1,0.2,\udcff,3,1,1,0.5", "shop is b'\\xff', not UTF-8 text"),
}


def spoil(folder, name, line, at=40):
    """Replace row ``at`` by a line, and put a blank line at the top; returns how messages name the line."""
    path = folder.folder / "train" / name
    opened = gzip.open if name.endswith("gz") else open
    with opened(path, "rb") as file:
        lines = file.read().split(b"\r\n")
    lines[at + 1] = line.encode("utf-8", "surrogateescape")
    with opened(path, "wb") as file:
        file.write(b"\r\n".join([lines[0], b"", *lines[1:]]))
    return f"{path}, line {at + 3}: "


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("line,why", BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_by_its_line_or_skipped(name, line, why, tmp_path, rng, caplog):
    folder = Folder(tmp_path, [name], make_rows(rng, 90))
    where = spoil(folder, name, line)
    for workers in (0, 2) if "not a number" in why else (0,):
        with pytest.raises(UserError) as caught:
            list(folder.batches(workers=workers)(0))
        assert str(caught.value).startswith(where + why) and "runner.bad_rows" in str(caught.value)
        reader = folder.reader(bad_rows="skip", bad_rows_share=0.02)
        found = joined(folder.batches(reader, workers=workers)(0))
        assert_same(found, folder.expected(folder.rows[:40] + folder.rows[41:]))
        assert f"1 of 90 rows are bad and were skipped. The first: {where}{why}" in caplog.text
    with pytest.raises(UserError, match="1 of the 90 rows read are bad.*0.01.*line 43"):
        list(folder.batches(folder.reader(bad_rows="skip"))(0))
    with pytest.raises(UserError, match="line 43.*Correct the row.$"):
        list(folder.batches(folder.reader(bad_rows="skip", inference=True))(0))


def test_a_file_of_bad_rows_alone_is_skipped_by_workers_too(tmp_path, rng):
    folder = Folder(tmp_path, ["a.csv"], make_rows(rng, 30))
    (tmp_path / "train" / "b.csv").write_text(HEAD + "x\n" * 200)
    reader = folder.reader(bad_rows="skip", bad_rows_share=0.9)
    for workers in (0, 2):
        assert_same(joined(folder.batches(reader, workers=workers)(0)), folder.expected())


def test_the_line_of_a_bad_row_is_looked_up_once_an_epoch(mixed, monkeypatch, caplog):
    """That reads the file up to the line: for each block it would be too much."""
    lookups, lines_before = [], table_files._lines_before
    monkeypatch.setattr(table_files, "_lines_before", lambda *found: lookups.append(found) or lines_before(*found))
    path = mixed.folder / "train" / "a.csv"
    path.write_text("x\n".join(path.read_text().splitlines(keepends=True)))
    batches = mixed.batches(mixed.reader(bad_rows="skip", bad_rows_share=0.5))
    for epoch in (0, 1):
        assert len(joined(batches(epoch))[0]) == 90 and len(lookups) == epoch + 1
    assert caplog.text.count("30 of 120 rows are bad") == 2


def test_many_bad_rows_end_the_epoch_early(mixed, monkeypatch):
    monkeypatch.setattr(table_reader, "ENOUGH", 10)
    (mixed.folder / "train" / "a.csv").write_text(HEAD + "x\n" * 200)
    with pytest.raises(UserError, match="bad_rows_share") as caught:
        list(mixed.batches(mixed.reader(bad_rows="skip"))(0))
    assert "200 of" not in str(caught.value)


@pytest.mark.parametrize(
    "column,words", [(5, "bought has no .* Labels are numbers: 0 and 1"), (0, "price has no .*lists it as numbers")]
)
def test_a_column_of_texts_for_numbers_is_refused_with_a_remedy(mixed, column, words):
    path = mixed.folder / "train" / "a.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    path.write_text(HEAD + "".join(",".join([*row[:column], "yes", *row[column + 1 :]]) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"the column {words}"):
        [*iter(mixed.reader("train"))]


# ----------------------------------------------------------------------------------------- config and labels

LABELS_IN_WORDS = [{"column": "size"}, {"column": "buys"}]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"runner.bad_rows": "ignore"}, "runner.bad_rows is 'ignore', but must be refuse or skip"),
        ({"runner.bad_rows_share": 2}, "runner.bad_rows_share is 2, but must be a number >= 0"),
        ({"runner.vocabulary": None}, "runner.vocabulary is missing.*make_vocabulary.py"),
        ({"runner.vocabulary": "gone.json"}, "gone.json: the vocabulary cannot be read"),
        ({"hyper_parameters.input.dense_size": 3}, "dense_size 2, but hyper_parameters.input.dense_size is 3"),
        ({"hyper_parameters.input.vocabulary_sizes": [5]}, "vocabulary_sizes .5, 10., but .* is .5."),
        ({"hyper_parameters.tasks": TASKS[1:]}, "tasks.0. is named bought, but its label .* is rating"),
        ({"hyper_parameters.tasks": [{"classes": "many"}]}, "tasks.0..classes is 'many'"),
        ({"hyper_parameters.tasks": 3}, "tasks is 3, but must be a list of mappings"),
        ({"hyper_parameters.tasks": [3]}, "tasks is .3., but must be a list of mappings"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(mixed, change, words):
    with pytest.raises(ValueError, match=words):
        table_reader.RecDataset([str(mixed.folder / "train" / "a.csv")], {**mixed.config(), **change})


def test_without_tasks_the_labels_are_classes(mixed):
    no_tasks = {"hyper_parameters.tasks": None, "hyper_parameters.task_num": 2, "hyper_parameters.class_num": 3}
    path = str(mixed.folder / "train" / "a.csv")
    for tasks in (no_tasks, {**no_tasks, "hyper_parameters.tasks": []}):
        reader = table_reader.RecDataset([path], {**mixed.config(), **tasks})
        assert [array.dtype for array in next(reader.blocks(0, None, map))[2:]] == [np.int64] * 2
    (mixed.folder / "train" / "a.csv").write_text(HEAD + "0,0,a,1,3,1,1\n")
    reader = table_reader.RecDataset([path], {**mixed.config(), **no_tasks})
    with pytest.raises(ValueError, match="line 2: the label rating is 3, not a class: a whole number from 0 to 2"):
        list(reader.blocks(0, None, map))
    assert table_reader.DEFAULT_CLASS_NUM == HyperParameters.defaults()["hyper_parameters.class_num"]


def test_labels_in_words_are_numbered_by_their_task(tmp_path):
    write_files(tmp_path, {"train/a.csv": "x,size,buys\n1,small,yes\n2,LARGE,no\n3,,NA\n4, small ,no\n5,huge,yes\n"})
    (tmp_path / "v.json").write_text(
        json.dumps(
            {"numbers": [{"column": "x", "mean": 0, "deviation": 1}], "categories": [], "labels": LABELS_IN_WORDS}
        )
    )
    tasks = [
        {"name": "size", "classes": ["LARGE", "small"]},
        {"name": "buys", "kind": "binary", "classes": ["no", "yes"]},
    ]
    config = {"config_abs_dir": str(tmp_path), "runner.vocabulary": "v.json", "runner.job": "train"}
    config.update({"hyper_parameters.tasks": tasks, "hyper_parameters.input.dense_size": 1})
    path = str(tmp_path / "train" / "a.csv")
    with pytest.raises(ValueError, match="line 6: the label size is 'huge', not one of the classes LARGE, small"):
        list(table_reader.RecDataset([path], config).blocks(0, None, map))
    skipping = {**config, "runner.bad_rows": "skip", "runner.bad_rows_share": 0.5}
    ((dense, size, buys),) = table_reader.RecDataset([path], skipping).blocks(0, None, map)
    assert np.asarray(dense)[:, 0].tolist() == [1, 2, 3, 4]
    assert size.tolist() == [1, 0, -1, 1] and size.dtype == np.int64
    np.testing.assert_array_equal(buys, np.array([1, 0, np.nan, 0], "f4"))


def test_a_task_of_several_labels_takes_several_columns(mixed):
    """The columns bought and rating as two labels of one task; a rating of 2 is bad for it."""
    mixed.make_vocabulary(labels=["bought", "rating", "spent"])
    tasks = [{"name": "both", "kind": "multi_label", "labels": ["yes", "good"]}, TASKS[2]]
    config = {**mixed.config(bad_rows="skip", bad_rows_share=1.0), "hyper_parameters.tasks": tasks}
    reader = table_reader.RecDataset(sorted(map(str, (mixed.folder / "train").iterdir())), config)
    *_, both, spent = joined(mixed.batches(reader)(0))
    kept = [row for row in mixed.rows if row[4] != "2"]
    expected = np.array([[float(row[5] or "nan"), float(row[4] or "nan")] for row in kept], "f4")
    np.testing.assert_array_equal(both, expected)
    assert spent.shape == (len(kept),)
    for labels, words in ((["rating", "bought"], "named rating.*is bought"), (["a", "b", "c", "d"], "has 4 labels")):
        config["hyper_parameters.tasks"] = [{"labels": labels}]
        with pytest.raises(ValueError, match=words):
            table_reader.RecDataset(sorted(map(str, (mixed.folder / "train").iterdir())), config)


@pytest.mark.parametrize(
    "job,hint", [("infer", " Evaluation needs this column; tools/predict.py does not."), ("train", "")]
)
def test_a_file_without_labels_is_refused_for_training_and_evaluation(mixed, job, hint):
    write(mixed.folder / "new" / "a.csv", [row[:4] for row in mixed.rows], COLUMNS[:4])
    with pytest.raises(ValueError, match=f"no column 'rating'.*product.{hint}$"):
        mixed.reader("new", job=job)


def test_without_pyarrow_the_message_says_what_to_install(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        mixed.reader()


# -------------------------------------------------------------------------------------------- unknown values


@pytest.mark.parametrize("workers", [0, 2])
def test_a_warning_names_the_columns_with_many_unknown_values_once(mixed, workers, caplog):
    new = HEAD + "".join(f"0.1,0.2,new {i % 5},3,1,1,0.5\n" for i in range(60))
    (mixed.folder / "train" / "z.csv").write_text(new)
    batches = mixed.batches(workers=workers)
    for epoch in range(2):
        list(batches(epoch))
    (line,) = [message for message in caplog.messages if "unknown" in message]  # once a run, and not of product
    assert "of the values of shop (60 of " in line and "'new 0', 'new 1', 'new 2'" in line


def test_there_is_no_warning_of_few_unknown_values_and_empty_fields(mixed, caplog):
    lines = ["0.1,0.2,new,3,1,1,0.5\n"] + ["0.1,0.2,,3,1,1,0.5\n"] * 60
    (mixed.folder / "train" / "z.csv").write_text(HEAD + "".join(lines))
    [*iter(mixed.reader("train"))]
    assert [message for message in caplog.messages if "unknown" in message] == []
