"""tabular/reader.py on CSV and Parquet files, against a reader of these tests that goes row by row, by csv."""

import csv
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import kill_resume
import numpy as np
import paddle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from toolbox import assert_refused, run_here

import make_vocabulary
from engine.batches import Batches
from engine.errors import UserError
from tabular import files as table_files
from tabular import reader as table_reader
from tabular.vocabulary import Vocabulary

COLUMNS = "price minutes shop product rating bought spent".split()
DENSE, SPARSE, LABELS = COLUMNS[:2], COLUMNS[2:4], COLUMNS[4:]
TASKS = [
    {"name": "rating", "classes": 3},
    {"name": "bought", "kind": "binary"},
    {"name": "spent", "kind": "regression"},
]


def make_rows(rng, number):
    """Rows as texts, with empty fields in every column."""
    rows = []
    for _ in range(number):
        row = [f"{rng.rand():.3f}", f"{rng.randn():.4g}", f"shop {rng.randint(4)}", str(rng.randint(9))]
        row += [str(rng.randint(3)), str(rng.randint(2)), f"{rng.rand():.3f}"]
        rows.append(["" if rng.rand() < 0.1 else field for field in row])
    return rows


def write(path, rows, columns=COLUMNS):
    """A file of rows in the form that its name tells."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        numbers = {"price": "f8", "minutes": "f4", "product": "i8", "rating": "i4", "bought": "b1", "spent": "f8"}
        kinds = {"f8": pa.float64(), "f4": pa.float32(), "i8": pa.int64(), "i4": pa.int32(), "b1": pa.int8()}
        made = {}
        for name, column in zip(columns, zip(*rows)):
            to = float if numbers.get(name, "")[:1] == "f" else int if name in numbers else str
            values = [to(field) if field else None for field in column]
            made[name] = pa.array(values, kinds[numbers[name]] if name in numbers else pa.string())
        made["shop"] = made["shop"].dictionary_encode()
        pq.write_table(pa.table(made), path, row_group_size=13)
        return
    delimiter = "\t" if ".tsv" in path.name else ","
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="")
    with opened as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def expected(rows, vocabulary):
    """[dense, ids, rating, bought, spent] of rows, one by one."""
    made = []
    for row in rows:
        of = dict(zip(COLUMNS, row))
        dense = [(float(of[c["column"]]) - c["mean"]) / c["deviation"] if of[c["column"]] else 0 for c in vocabulary[0]]
        ids = [c["values"].index(of[c["column"]]) + 1 if of[c["column"]] in c["values"] else 0 for c in vocabulary[1]]
        labels = [int(of["rating"] or -1), float(of["bought"] or "nan"), float(of["spent"] or "nan")]
        made.append((np.array(dense, "f4"), np.array(ids), *labels))
    types_ = ("f4", "i8", "i8", "f4", "f4")
    return [np.array(column, dtype) for column, dtype in zip(zip(*made), types_)]


class Folder:
    """Training files, their vocabulary and a config, in a folder of the test's."""

    def __init__(self, folder, names, rows):
        self.folder, self.rows = folder, rows
        shares = np.array_split(np.arange(len(rows)), len(names))
        for name, share in zip(names, shares):
            write(folder / "train" / name, [rows[i] for i in share])
        self.make_vocabulary()

    def make_vocabulary(self, **options):
        arguments = {"min_count": 1, "max_size": None, "skip_bad_rows": False, **options}
        self.vocabulary_path = str(self.folder / "vocabulary.json")
        make_vocabulary.make(
            types.SimpleNamespace(
                train=str(self.folder / "train"),
                dense=DENSE,
                sparse=SPARSE,
                labels=LABELS,
                out=self.vocabulary_path,
                **arguments,
            )  # fmt: skip
        )
        content = json.loads((self.folder / "vocabulary.json").read_text())
        self.numbers, self.categories = content["numbers"], content["categories"]

    def expected(self, rows=None):
        return expected(self.rows if rows is None else rows, (self.numbers, self.categories))

    def config(self, **runner):
        sizes = [len(c["values"]) + 1 for c in self.categories]
        flat = {"config_abs_dir": str(self.folder), "runner.vocabulary": "vocabulary.json", "runner.job": "train"}
        flat.update({"hyper_parameters.input.dense_size": 2, "hyper_parameters.input.vocabulary_sizes": sizes})
        return {**flat, "hyper_parameters.tasks": TASKS, **{f"runner.{name}": value for name, value in runner.items()}}

    def reader(self, part="train", **runner):
        return table_reader.RecDataset(sorted(map(str, (self.folder / part).iterdir())), self.config(**runner))

    def batches(self, reader=None, workers=0, shuffle=False, size=7, window=None):
        values = {
            "train_data_dir": str(self.folder / "train"), "train_batch_size": size, "drop_last": False,
            "shuffle": shuffle, "shuffle_window": window, "num_workers": workers, "seed": 3,
        }  # fmt: skip
        reader = self.reader() if reader is None else reader
        return Batches(reader, types.SimpleNamespace(**values), "train", paddle.CPUPlace())


def joined(batches):
    return [np.concatenate(arrays) for arrays in zip(*batches)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # float32 of the same float64, give or take its last bit


def sorted_rows(arrays):
    flat = np.concatenate([np.nan_to_num(array.reshape(len(array), -1), nan=-9.0) for array in arrays], axis=1)
    return flat[np.lexsort(flat.T)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Many blocks a file, so that rows lie across their borders."""
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 150)
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 5)


FORMS = [
    ["a.csv"], ["a.csv.gz"], ["a.tsv"], ["a.parquet"],
    ["a.csv", "b.csv.gz", "c.parquet", "d.tsv.gz", ".hidden.csv", "notes.txt"],
]  # fmt: skip


@pytest.fixture(params=FORMS, ids=lambda names: "+".join(names)[:25])
def folder(request, tmp_path, rng):
    names = [name for name in request.param if name[0] != "." and not name.endswith("txt")]
    made = Folder(tmp_path, names, make_rows(rng, 90))
    for name in set(request.param) - set(names):
        (tmp_path / "train" / name).write_text("no table")
    return made


@pytest.fixture
def mixed(tmp_path, rng):
    return Folder(tmp_path, ["a.csv", "b.csv.gz", "c.parquet"], make_rows(rng, 90))


def test_every_row_is_read_once_as_python_reads_it(folder):
    assert_same(joined(folder.batches()(0)), folder.expected())
    one_by_one = [np.array(column) for column in zip(*iter(folder.reader()))]
    assert_same([c.astype(e.dtype) for c, e in zip(one_by_one, folder.expected())], folder.expected())
    assert folder.batches().steps() == 13  # of 90 rows by 7


def test_the_vocabulary_is_of_the_training_rows(folder):
    for entry, column in zip(folder.numbers, list(zip(*folder.rows))[:2]):
        there = np.array([float(field) for field in column if field])
        assert entry["mean"] == pytest.approx(there.mean()) and entry["deviation"] == pytest.approx(there.std())
    for entry, column in zip(folder.categories, list(zip(*folder.rows))[2:4]):
        assert entry["values"] == sorted({field for field in column if field})


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


def test_ranks_have_shares_that_make_the_whole(mixed):
    shares, sizes = [], 0
    for rank in range(3):
        reader = mixed.reader()
        reader.rank, reader.rank_num = rank, 3
        shares.append(joined(mixed.batches(reader, workers=rank)(0)))
        sizes += reader.row_num()
    assert all(len(share[0]) for share in shares) and sizes == 90
    np.testing.assert_allclose(sorted_rows(joined(shares)), sorted_rows(mixed.expected()), rtol=1e-5)


def test_the_rank_is_the_launchers(mixed):
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from tabular import reader as table_reader\n"
        "reader = table_reader.RecDataset([sys.argv[2]], json.loads(sys.argv[3])); print(reader.rank, reader.rank_num)"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(mixed.folder / "train" / "a.csv"), json.dumps(mixed.config())]
    env = {**os.environ, "PADDLE_TRAINER_ID": "2", "PADDLE_TRAINERS_NUM": "3"}  # as paddle.distributed.launch sets them
    process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.stdout.split() == ["2", "3"]
    assert process.returncode == 0, "a thread of pyarrow's was left at the end"


FIELD = st.text(st.sampled_from("ab\",\t é\u20ac;'0"), max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_quoting_is_read_as_python_reads_it(tmp_path_factory, fields, ending, blank):
    path = tmp_path_factory.mktemp("quoted") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=ending + (ending if blank else ""), quoting=csv.QUOTE_ALL)
        writer.writerows([("x", "y"), *fields])
    file = table_files.open_file(str(path))
    found = {"x": [], "y": []}
    for part in file.parts():
        for block in part.blocks():
            rows = block.read([], ["x", "y"])
            assert not rows.bad_num()
            for name, (codes, values) in rows.categories.items():
                found[name] += [values[code] for code in codes]
    assert list(zip(found["x"], found["y"])) == [tuple(field.strip() for field in row) for row in fields]
    assert file.count() == len(fields)


# what is put in place of row 40, and what is said of it
BAD = {
    "too few columns": ("0.1,0.2,shop 1", "it has 3 columns, not 7"),
    "too many columns": ("0.1,0.2,shop 1,3,1,1,0.5,9", "it has 8 columns, not 7"),
    "text for a number": ("0.1,cheap,shop 1,3,1,1,0.5", "minutes is 'cheap', not a number"),
    "text for a label": ("0.1,0.2,shop 1,3,1,1,much", "spent is 'much', not a number"),
    "infinite": ("0.1,inf,shop 1,3,1,1,0.5", "minutes is infinite"),
    "half a class": ("0.1,0.2,shop 1,3,1.5,1,0.5", "the label rating is 1.5, not a class: a whole number from 0 to 2"),
    "a class below 0": ("0.1,0.2,shop 1,3,-1,1,0.5", "the label rating is -1, not a class"),
    "one class too many": (
        "0.1,0.2,shop 1,3,3,1,0.5",
        "the label rating is 3, not a class: a whole number from 0 to 2",
    ),
    "less than no": ("0.1,0.2,shop 1,3,1,-1,0.5", "the label bought is -1, not 0 or 1"),
    "neither yes nor no": ("0.1,0.2,shop 1,3,1,2,0.5", "the label bought is 2, not 0 or 1"),
    "an open quote": ('0.1,0.2,"shop 1,3,1,1,0.5', "a quote is not closed in its line"),
    "no UTF-8": ("0.1,0.2,\udcff,3,1,1,0.5", "shop is b'\\xff', not UTF-8 text"),
}


def spoil(folder, name, line, at=40):
    """Put a line in place of row ``at``, and a blank one at the top."""
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
    for workers in (0, 2) if "number" in why else (0,):
        with pytest.raises(UserError) as caught:
            list(folder.batches(workers=workers)(0))
        assert str(caught.value).startswith(where + why) and "runner.bad_rows" in str(caught.value)
        reader = folder.reader(bad_rows="skip", bad_rows_share=0.02)
        found = joined(folder.batches(reader, workers=workers)(0))
        assert_same(found, folder.expected(folder.rows[:40] + folder.rows[41:]))
        assert f"1 of 90 rows are bad and were skipped. The first: {where}{why}" in caplog.text
    with pytest.raises(UserError, match="1 of the 90 rows read are bad.*0.01.*line 43"):
        list(folder.batches(folder.reader(bad_rows="skip"))(0))
    with pytest.raises(UserError, match="line 43.*mend the row.$"):
        list(folder.batches(folder.reader(bad_rows="skip", inference=True))(0))


def test_a_quote_within_a_field_is_none(tmp_path, rng):
    """As in 5" pipe, in rows beside a bad one and beside a quote that is not closed."""
    rows = make_rows(rng, 30)
    folder = Folder(tmp_path, ["a.csv"], rows)
    text = ",".join(COLUMNS) + "\n"
    for i, row in enumerate(rows):
        text += ",".join([*row[:2], f'5" {row[2]}', *row[3:]]) + "\n" + 'x,"y\n' * (i == 9) + "bad\n" * (i == 19)
    (tmp_path / "train" / "a.csv").write_text(text)
    found = joined(folder.batches(folder.reader(bad_rows="skip", bad_rows_share=0.1))(0))
    assert_same([found[0], *found[2:]], [folder.expected()[0], *folder.expected()[2:]])


def test_a_file_of_bad_rows_alone_is_skipped_by_workers_too(tmp_path, rng):
    folder = Folder(tmp_path, ["a.csv"], make_rows(rng, 30))
    (tmp_path / "train" / "b.csv").write_text(",".join(COLUMNS) + "\n" + "x\n" * 200)
    reader = folder.reader(bad_rows="skip", bad_rows_share=0.9)
    for workers in (0, 2):
        assert_same(joined(folder.batches(reader, workers=workers)(0)), folder.expected())


def test_the_place_of_a_bad_row_is_looked_for_once_an_epoch(mixed, monkeypatch, caplog):
    """It takes a reading of the file up to there, which for each block would be too much."""
    looked = []
    monkeypatch.setattr(table_files, "_line_of", lambda content, row: looked.append(row) or 0)
    path = mixed.folder / "train" / "a.csv"
    path.write_text("x\n".join(path.read_text().splitlines(keepends=True)))
    batches = mixed.batches(mixed.reader(bad_rows="skip", bad_rows_share=0.5))
    for epoch in (0, 1):
        assert len(joined(batches(epoch))[0]) == 90 and len(looked) == epoch + 1
    assert caplog.text.count("30 of 120 rows are bad") == 2


def test_many_bad_rows_end_the_epoch_early(mixed, monkeypatch):
    monkeypatch.setattr(table_reader, "ENOUGH", 10)
    (mixed.folder / "train" / "a.csv").write_text(",".join(COLUMNS) + "\n" + "x\n" * 200)
    with pytest.raises(UserError, match="bad_rows_share") as caught:
        list(mixed.batches(mixed.reader(bad_rows="skip"))(0))
    assert "200 of" not in str(caught.value)


def test_a_bad_value_in_parquet_is_refused_by_its_row(tmp_path, rng):
    folder = Folder(tmp_path, ["a.csv"], make_rows(rng, 20))
    (tmp_path / "train" / "a.csv").unlink()
    columns = {name: list(column) for name, column in zip(COLUMNS, zip(*folder.rows))}
    columns["minutes"][17] = "cheap"
    pq.write_table(pa.table(columns), tmp_path / "train" / "a.parquet")
    with pytest.raises(UserError, match="a.parquet, row 18: minutes is 'cheap', not a number"):
        list(folder.batches()(0))
    columns["minutes"][17] = "0.5"
    columns["product"] = pa.array([float(x) if x else None for x in columns["product"]])  # as pandas has it
    pq.write_table(pa.table(columns), tmp_path / "train" / "a.parquet")
    assert_same([joined(folder.batches()(0))[1]], [folder.expected()[1]])
    columns["price"] = pa.array([0] * 20, pa.timestamp("s"))
    pq.write_table(pa.table(columns), tmp_path / "train" / "a.parquet")
    with pytest.raises(UserError, match="a.parquet: the column price is of type timestamp"):
        list(folder.batches()(0))


BROKEN = {
    "cut gzip": ("a.csv.gz", lambda data: data[:-12], "a.csv.gz: it cannot be read"),
    "no gzip": ("a.csv.gz", lambda data: b"price\n", "a.csv.gz: "),
    "cut Parquet": ("a.parquet", lambda data: data[:-30], "a.parquet: it cannot be read"),
    "empty": ("a.csv", lambda data: b"", "a.csv: its first line is empty"),
    "no such column": ("a.csv", lambda data: data.replace(b"shop,", b"ship,", 1), "a.csv: there is no column 'shop'"),
    "one twice": ("a.csv", lambda data: data.replace(b"shop,", b"price,", 1), "a.csv: there are two columns 'price'"),
    "one line": ("a.csv", lambda data: b"x" * (1 << 24), "a.csv: a line is longer"),
    "carriage returns": ("a.csv", lambda data: data.replace(b"shop 1", b"shop\r1"), "a.csv, line "),
}


@pytest.mark.parametrize("name,damage,words", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(name, damage, words, tmp_path, rng):
    folder = Folder(tmp_path, [name], make_rows(rng, 60))
    path = tmp_path / "train" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((ValueError, UserError)) as caught:
        list(folder.batches()(0))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"runner.bad_rows": "ignore"}, "runner.bad_rows is 'ignore', but must be refuse or skip"),
        ({"runner.bad_rows_share": 2}, "runner.bad_rows_share is 2, but must be a number from 0 to 1"),
        ({"runner.vocabulary": None}, "runner.vocabulary is None.*make_vocabulary.py"),
        ({"runner.vocabulary": "gone.json"}, "gone.json: the vocabulary cannot be read"),
        ({"hyper_parameters.input.dense_size": 3}, "dense_size 2, but hyper_parameters.input.dense_size is 3"),
        ({"hyper_parameters.input.vocabulary_sizes": [5]}, "vocabulary_sizes .5, 10., but .* is .5."),
        ({"hyper_parameters.tasks": TASKS[1:]}, "tasks.0. is named bought, but label 1 .* is rating"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(mixed, change, words):
    files = [str(mixed.folder / "train" / "a.csv")]
    with pytest.raises(ValueError, match=words):
        table_reader.RecDataset(files, {**mixed.config(), **change})


@pytest.mark.parametrize(
    "content,words",
    [
        ("", "Expecting value"),
        ("[]", "indices"),
        ("{}", "it has no 'numbers'"),
        ('{"numbers": [], "categories": []}', "it has no column, or one twice"),
        ('{"numbers": 1}', "iterable"),
        ("[" * 9999, "recursion"),
    ],
)
def test_what_is_no_vocabulary_is_refused(mixed, content, words):
    (mixed.folder / "vocabulary.json").write_text(content)
    with pytest.raises(ValueError, match="vocabulary.json: this is no vocabulary") as caught:
        mixed.reader()
    assert words in str(caught.value) and "Error(" not in str(caught.value)


def test_frequent_values_have_ids(mixed):
    shops = [row[2] for row in mixed.rows if row[2]]
    counts = {shop: shops.count(shop) for shop in shops}
    mixed.make_vocabulary(max_size=2)
    assert set(mixed.categories[0]["values"]) == set(sorted(counts, key=lambda shop: (-counts[shop], shop))[:2])
    mixed.make_vocabulary(min_count=max(counts.values()))
    assert mixed.categories[0]["values"] == sorted(s for s in counts if counts[s] == max(counts.values()))
    assert_same(joined(mixed.batches()(0)), mixed.expected())


def test_without_pyarrow_it_says_what_to_install(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        mixed.reader()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_file(tmp_path, rng):
    """Thirty times the rows, the same peak, in a process of its own."""
    peaks = []
    for name, times in (("small", 1), ("large", 30)):
        (tmp_path / name).mkdir()
        folder = Folder(tmp_path / name, ["a.csv"], make_rows(rng, 50))
        text = (tmp_path / name / "train" / "a.csv").read_text().split("\n", 1)
        (tmp_path / name / "train" / "a.csv").write_text(text[0] + "\n" + text[1] * (600 * times))
        code = (
            "import sys, json; sys.path[:0] = sys.argv[1:3]\n"
            "from tabular import files as table_files, reader as table_reader\n"
            "table_files.BLOCK_BYTES = 1 << 18\n"
            "reader = table_reader.RecDataset([sys.argv[3]], json.loads(sys.argv[4]))\n"
            "rows = sum(len(block[0]) for block in reader.blocks(0, None, map))\n"
            "print(rows, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tools")]
        command += [str(tmp_path / name / "train" / "a.csv"), json.dumps(folder.config())]
        process = subprocess.run(command, capture_output=True, text=True)
        rows, peak = map(int, process.stdout.split())
        assert rows == 50 * 600 * times
        peaks.append(peak / 1024)
    assert peaks[1] < peaks[0] + 20, f"MB: {peaks}; the large file alone has some 25 MB of text, and 50 MB of rows"


# --------------------------------------------------------------------------------- under the tools


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a config, data and an export of a first training: (folder, epoch's log)."""
    path = tmp_path_factory.mktemp("package")
    rng = np.random.RandomState(5)
    folder = Folder(path, ["a.csv", "b.parquet"], make_rows(rng, 120))
    write(path / "test" / "a.csv", make_rows(rng, 30))
    runner = {
        "train_data_dir": "train", "test_data_dir": "test", "train_reader_path": "tabular.reader",
        "infer_reader_path": "tabular.reader", "vocabulary": "vocabulary.json", "shuffle": True, "strict": True,
        "epochs": 1, "train_batch_size": 10, "infer_batch_size": 20, "print_interval": 100, "infer_end_epoch": 1,
        "model_save_path": "output", "infer_load_path": "output",
    }  # fmt: skip
    hyper = {
        "input": {"dense_size": 2, "vocabulary_sizes": folder.config()["hyper_parameters.input.vocabulary_sizes"]},
        "tasks": TASKS, "expert_num": 2, "optimizer": {"schedule": "one_cycle"},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump({"runner": runner, "hyper_parameters": hyper}))
    for tool in ("trainer", "export"):
        process = run_here(tool, path / "config.yaml", cwd=path)
        assert process.returncode == 0, process.stderr
    return path


def predictions(package, rows, columns, *overrides):
    """What predict.py writes of rows with some of the columns."""
    for old in (package / "serve").glob("*"):
        old.unlink()
    write(package / "serve" / "a.csv", rows, columns)
    process = run_here("predict", package / "config.yaml", "runner.test_data_dir=serve", *overrides, cwd=package)
    assert process.returncode == 0, process.stderr
    with open(package / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_without_labels_and_with_unknown_values_are_served(package, rng):
    rows = make_rows(rng, 30)
    whole = predictions(package, rows, COLUMNS)
    assert [row["index"] for row in whole] == [str(i) for i in range(30)]
    assert [row["label_spent"] for row in whole] == [f"{float(row[6]):.7g}" if row[6] else "nan" for row in rows]
    without = predictions(package, [row[:4] for row in rows], COLUMNS[:4])
    assert list(without[0]) == [name for name in whole[0] if not name.startswith("label_")]
    assert without == [{name: row[name] for name in without[0]} for row in whole]
    unknown = predictions(package, [[*row[:2], "", row[3]] for row in rows], COLUMNS[:4])
    assert predictions(package, [[*row[:2], "nowhere", row[3]] for row in rows], COLUMNS[:4]) == unknown != without
    some = predictions(package, [[*row[:4], row[6]] for row in rows], [*COLUMNS[:4], "spent"])
    assert [row["label_spent"] for row in some] == [row["label_spent"] for row in whole]
    assert {row["label_rating"] for row in some} == {"-1"} and {row["label_bought"] for row in some} == {"nan"}


@pytest.mark.parametrize(
    "tool,overrides",
    [
        ("infer", []),
        ("static_infer", []),
        ("export", []),
        ("predict", []),
        ("trainer", ["runner.resume=auto"]),
        ("trainer", ["runner.model_init_path=output/0", "runner.model_save_path=new"]),
        ("static_trainer", ["runner.model_init_path=output/0", "runner.model_save_path=new"]),
    ],
)
def test_weights_are_not_fed_by_another_vocabulary(package, tool, overrides):
    other = json.loads((package / "vocabulary.json").read_text())
    other["categories"][0]["values"].reverse()
    (package / "other.json").write_text(json.dumps(other))
    refused = run_here(tool, package / "config.yaml", "runner.vocabulary=other.json", *overrides, cwd=package)
    words = ["exported/rec_inference.vocabulary.json"] if tool == "predict" else ["rec.pdparams"]
    assert_refused(refused, "trained with a different vocabulary.json", package / "other.json", *words)


def test_the_copy_in_the_export_is_the_vocabulary(package):
    copy = package / "exported" / "rec_inference.vocabulary.json"
    assert copy.read_bytes() == (package / "vocabulary.json").read_bytes()
    override = "runner.vocabulary=exported/rec_inference.vocabulary.json"
    assert run_here("predict", package / "config.yaml", override, cwd=package).returncode == 0
    assert run_here("infer", package / "config.yaml", override, cwd=package).returncode == 0
    manifest = json.loads((package / "output" / "0" / "manifest.json").read_text())
    assert list(manifest["encoding"]) == ["vocabulary.json"]


def test_a_save_that_names_no_vocabulary_passes_and_a_reader_that_names_none_is_told_of(package, tmp_path):
    path = package / "output" / "0" / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    try:
        path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "encoding"}))
        silent = run_here("infer", package / "config.yaml", cwd=package)
        assert silent.returncode == 0 and "vocabulary" not in silent.stderr
        path.write_text(json.dumps({**manifest, "encoding": 3}))
        assert_refused(run_here("infer", package / "config.yaml", cwd=package), "its encoding is 3")
    finally:
        path.write_text(before)
    (package / "silent_reader.py").write_text(
        "from tabular import reader as table_reader\n"
        "class RecDataset(table_reader.RecDataset):\n    encoding_files = None\n"
        "    def __init__(self, file_list, config):\n"
        "        type(self).encoding_files = staticmethod(table_reader.RecDataset.encoding_files)\n"
        "        super().__init__(file_list, config)\n        del type(self).encoding_files\n"
        "        type(self).encoding_files = None\n"
    )
    told = run_here("infer", package / "config.yaml", "runner.infer_reader_path=silent_reader", cwd=package)
    assert told.returncode == 0 and "declares no such file" in told.stderr


def train(package, folder, *overrides):
    command = [sys.executable, str(ROOT / "tools" / "trainer.py"), "-m", str(package / "config.yaml"), "-o"]
    keys = ["runner.epochs=2", "runner.save_interval_steps=1", "runner.shuffle_window=25", "runner.print_interval=1"]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen([*command, *keys, *overrides], cwd=folder, stdout=log, stderr=log)


def test_a_killed_training_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(package, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    process = train(package, tmp_path / "killed", "runner.num_workers=2")
    log = pathlib.Path(tmp_path / "killed" / "log")
    while process.poll() is None and "epoch: 1, batch_id: 3" not in log.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert train(package, tmp_path / "whole").wait() == 0
    assert train(package, tmp_path / "killed", "runner.resume=auto").wait() == 0, log.read_text()
    assert "resumed from" in log.read_text()
    assert not kill_resume.differences(kill_resume.state(tmp_path / "killed"), kill_resume.state(tmp_path / "whole"))


def run_script(folder, *arguments):
    command = [sys.executable, str(ROOT / "data" / "make_vocabulary.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_command_prints_what_the_config_needs(mixed):
    columns = ["--dense", *DENSE, "--sparse", *SPARSE, "--labels", *LABELS]
    made = run_script(mixed.folder, "--train", "train", *columns, "--out", "new.json")
    assert made.returncode == 0, made.stderr
    printed = yaml.safe_load(made.stdout.split("for the config:\n")[1])
    assert printed["input"] == {"dense_size": 2, "vocabulary_sizes": [5, 10]}
    weight = printed["tasks"][2].pop("weight")
    spent = [float(row[6]) for row in mixed.rows if row[6]]
    assert printed["tasks"] == TASKS and weight == pytest.approx(1 / np.var(spent), rel=0.05)
    new = json.loads((mixed.folder / "new.json").read_text())
    assert new["categories"] == mixed.categories and new["labels"] == [{"column": name} for name in LABELS]
    means = [entry["mean"] for entry in mixed.numbers]
    assert [entry["mean"] for entry in new["numbers"]] == pytest.approx(means), "the blocks are larger there"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--train", "train", "--dense", "weight"], "no column 'weight'"),
        (["--train", "train", "--dense", "price", "--sparse", "price"], "the column price is named twice"),
        (["--train", "train"], "--dense or --sparse"),
        (["--train", "nowhere", "--dense", "price"], "nowhere"),
        (["--train", ".", "--dense", "price"], "there is no table"),
        (["--train", "train", "--dense", "shop"], "line 2: shop is 'shop"),
    ],
)
def test_the_command_refuses_in_one_line(mixed, arguments, words):
    os.remove(mixed.folder / "vocabulary.json")
    process = run_script(mixed.folder, *arguments, "--out", "new.json")
    assert process.returncode == 2 and process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert words in process.stderr and not list(mixed.folder.glob("*.json*"))


# ------------------------------------------------------------------------- files with a fault each


def read_all(path, numbers=(), categories=()):
    """(Columns of a file as lists, whether each row is good, what is said of the first bad one)."""
    found, good, said = {name: [] for name in (*numbers, *categories)}, [], None
    for part in table_files.open_file(str(path)).parts():
        for block in part.blocks():
            rows = block.read([*numbers], [*categories])
            good += [*rows.good]
            said = said or (rows.first_bad() if rows.bad_num() else None)
            for name in numbers:
                found[name] += rows.numbers[name].tolist()
            for name in categories:
                codes, values = rows.categories[name]
                found[name] += [values[code] for code in codes]
    return found, good, said


def test_an_empty_field_of_a_text_column_in_parquet_is_no_bad_value(tmp_path):
    columns = {"x": ["cheap", None, "1"], "nothing": pa.array([None] * 3, pa.string())}
    pq.write_table(pa.table({**columns, "c": pa.array([b"\xff", None, b"a"])}), tmp_path / "a.parquet")
    found, good, said = read_all(tmp_path / "a.parquet", ["x", "nothing"])
    assert np.isnan(found["x"][1]) and found["x"][2] == 1 and np.isnan(found["nothing"]).all()
    assert good == [False, True, True] and "row 1: x is 'cheap'" in said
    found, good, _ = read_all(tmp_path / "a.parquet", [], ["c"])
    assert found["c"][1:] == ["", "a"] and good == [False, True, True]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.struct({"a": pa.int64()})], ids=str)
def test_a_column_of_lists_is_refused_by_its_type(tmp_path, kind):
    pq.write_table(pa.table({"c": pa.array([None, None], kind)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: the column c is of type (list|struct)<.*, not of texts"):
        read_all(tmp_path / "a.parquet", [], ["c"])


@pytest.mark.parametrize(
    "kind,value,text",
    [
        (pa.bool_(), True, "true"),
        (pa.large_string(), " é ", "é"),
        (pa.date32(), 1, "1970-01-02"),
        (pa.dictionary(pa.int8(), pa.int64()), 7, "7"),
        (pa.null(), None, ""),
    ],
    ids=str,
)
def test_other_columns_are_read_as_texts(tmp_path, kind, value, text):
    pq.write_table(pa.table({"c": pa.array([value, None], kind)}), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet", [], ["c"])[0]["c"] == [text, ""]


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", "größe,x\n1,2\n".encode("latin-1"), "a.csv: it is not UTF-8; save it as UTF-8"),
        ("a.csv", b"x,y\r1,2\r3,4\r", "a.csv: its lines end in \\r alone"),
    ],
)
def test_a_file_of_another_encoding_or_line_end_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        table_files.open_file(str(tmp_path / name))
    assert words in str(caught.value)


def test_a_compressed_file_may_have_its_name_in_capitals(tmp_path):
    (tmp_path / "U.CSV.GZ").write_bytes(gzip.compress(b"x\n1\n2\n"))
    assert table_files.table_paths([str(tmp_path / "U.CSV.GZ")])
    assert read_all(tmp_path / "U.CSV.GZ", ["x"])[0]["x"] == [1, 2]


@pytest.mark.parametrize("path", ["a.csv", "a.parquet"])
def test_what_is_empty_in_a_column_of_numbers_is_a_category_in_one_of_texts(tmp_path, path):
    texts = ["NA", " n/a ", "nan", "NULL", " ", "", " 2.5 "]
    if path == "a.csv":
        (tmp_path / path).write_text("x,c\n" + "".join(f"{text},{text}\n" for text in texts))
    else:
        pq.write_table(pa.table({"x": texts, "c": texts}), tmp_path / path)
    found, good, _ = read_all(tmp_path / path, ["x"], ["c"])
    assert np.isnan(found["x"][:-1]).all() and found["x"][-1] == 2.5 and all(good)
    assert found["c"] == [text.strip() for text in texts]
    (tmp_path / "b.csv").write_text("x\nNone\n")
    assert read_all(tmp_path / "b.csv", ["x"])[2].endswith("x is 'None', not a number")


def test_a_blank_line_is_no_row_and_a_quoted_nothing_is_one(tmp_path):
    (tmp_path / "a.csv").write_text('x\n1\n\n""\n2\n')
    assert read_all(tmp_path / "a.csv", [], ["x"])[0]["x"] == ["1", "", "2"]
    found, good, _ = read_all(tmp_path / "a.csv", ["x"])
    assert np.isnan(found["x"][1]) and found["x"][::2] == [1, 2] and all(good)
    assert table_files.open_file(str(tmp_path / "a.csv")).count() == 3


@pytest.mark.parametrize("text,kept", [('1,"x\n2,y"\n3,z\n', ["z"]), ('1,"x\n2,y\n3,5" z\n', ["y", '5" z'])])
def test_the_line_that_closes_a_quote_is_bad_too(tmp_path, text, kept):
    (tmp_path / "a.csv").write_text("n,c\n" + text)
    found, good, said = read_all(tmp_path / "a.csv", ["n"], ["c"])
    assert [value for value, is_good in zip(found["c"], good) if is_good] == kept
    assert "line 2: a quote is not closed" in said


def test_a_number_that_fits_no_float32_is_bad(tmp_path, rng):
    for line, why in (
        ("1e300,0,a,1,1,1,1", "price is 1e+300, which does not fit float32"),
        ("0,0,a,1,1,1,-1e39", "spent is -1e+39"),
    ):
        (tmp_path / line[:2]).mkdir()
        folder = Folder(tmp_path / line[:2], ["a.csv"], make_rows(rng, 60))
        where = spoil(folder, "a.csv", line)
        with pytest.raises(UserError) as caught:
            list(folder.batches()(0))
        assert str(caught.value).startswith(where) and why in str(caught.value)


NO_TASKS = {"hyper_parameters.tasks": [], "hyper_parameters.task_num": 2, "hyper_parameters.class_num": 3}


def test_without_tasks_the_labels_are_classes(mixed):
    for tasks in (NO_TASKS, {**NO_TASKS, "hyper_parameters.tasks": None}):
        reader = table_reader.RecDataset([str(mixed.folder / "train" / "a.csv")], {**mixed.config(), **tasks})
        assert [array.dtype for array in next(reader.blocks(0, None, map))[2:]] == [np.int64] * 2
    path = mixed.folder / "train" / "a.csv"
    path.write_text(",".join(COLUMNS) + "\n0,0,a,1,3,1,1\n")
    reader = table_reader.RecDataset([str(path)], {**mixed.config(), **NO_TASKS})
    with pytest.raises(ValueError, match="line 2: the label rating is 3, not a class: a whole number from 0 to 2"):
        list(reader.blocks(0, None, map))


@pytest.mark.parametrize("task", [{"kind": ["x"]}, {"classes": "many"}, {"classes": 2.5}, {"classes": float("nan")}])
def test_a_wrong_task_is_left_to_the_network(mixed, task):
    table_reader.RecDataset(
        [str(mixed.folder / "train" / "a.csv")], {**mixed.config(), "hyper_parameters.tasks": [task]}
    )


def test_evaluation_says_that_it_needs_labels(mixed):
    write(mixed.folder / "new" / "a.csv", [row[:4] for row in mixed.rows], COLUMNS[:4])
    with pytest.raises(ValueError, match="no column 'rating'.* Evaluation needs the labels; tools/predict.py does not"):
        mixed.reader("new", job="infer")
    with pytest.raises(ValueError, match="no column 'rating'") as caught:
        mixed.reader("new", job="train")
    assert "Evaluation" not in str(caught.value)


def test_a_vocabulary_takes_lists(mixed):
    vocabulary = Vocabulary(mixed.vocabulary_path)
    columns = {
        name: [(float(x) if x else None) if name in DENSE else x or None for x in column]
        for name, column in zip(COLUMNS[:3], zip(*mixed.rows))
    }
    products = [int(row[3]) if row[3] else None for row in mixed.rows]
    assert_same([vocabulary.dense(columns)], mixed.expected()[:1])
    ids = vocabulary.encode({**columns, "product": products})
    assert (ids == mixed.expected()[1]).all()


def test_the_tasks_are_guessed_with_a_word_on_scale_and_empty_classes(tmp_path):
    (tmp_path / "train").mkdir()
    lines = [f"{x},{1 + i % 4},{x * 1000.5},{x * 1e5 + 0.5},{x - 0.5}" for i, x in enumerate(range(20))]
    (tmp_path / "train" / "a.csv").write_text("\n".join(["über,stars,big,huge,near", *lines]) + "\n", encoding="utf-8")
    columns = ["--dense", "über", "--labels", "stars", "big", "huge", "near", "--out", "v.json"]
    made = run_script(tmp_path, "--train", "train", *columns)
    assert "classes: 5}  # 1 to 4; classes start at 0: class 0 is empty; subtract 1\n" in made.stdout
    assert "# 1 / variance, so that tasks of other scales are heard" in made.stdout
    tasks = {task["name"]: task for task in yaml.safe_load(made.stdout.split("for the config:\n")[1])["tasks"]}
    for name, scale in (("big", 1000.5), ("huge", 1e5), ("near", 1)):
        assert tasks[name]["weight"] == pytest.approx(1 / np.var(np.arange(20) * scale), rel=0.05)
    assert "über" in (tmp_path / "v.json").read_text(encoding="utf-8")


def test_numbers_too_far_apart_for_a_variance_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.csv").write_text("x\n" + "0\n" * 200 + "1e300\n" + "0\n" * 200)
    made = run_script(tmp_path, "--train", "train", "--dense", "x", "--out", "v.json")
    assert (
        made.returncode == 2 and made.stderr == "error: the numbers of x reach 1e+300: too far apart for a variance.\n"
    )
    assert not (tmp_path / "v.json").exists()
