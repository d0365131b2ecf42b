"""Tables for tests: rows at random, files of them in every form, a vocabulary and a config that fit them."""

import csv
import gzip
import json
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import make_vocabulary
from engine.batches import Batches
from engine.processes import Alone
from support import ROOT
from support.toolbox import run_script
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
HEAD = ",".join(COLUMNS) + "\n"


def make_rows(rng, number):
    """Rows as texts, with empty fields in every column."""
    rows = []
    for _ in range(number):
        row = [f"{rng.rand():.3f}", f"{rng.randn():.4g}", f"shop {rng.randint(4)}", str(rng.randint(9))]
        row += [str(rng.randint(3)), str(rng.randint(2)), f"{rng.rand():.3f}"]
        rows.append(["" if rng.rand() < 0.1 else field for field in row])
    return rows


def write(path, rows, columns=COLUMNS):
    """Write rows of ``make_rows`` in the format that the file's name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        numbers = {"price": pa.float64(), "minutes": pa.float32(), "product": pa.int64(), "spent": pa.float64()}
        numbers.update({"rating": pa.int32(), "bought": pa.int8()})
        arrays = {}
        for name, column in zip(columns, zip(*rows)):
            kind = numbers.get(name, pa.string())
            convert = str if kind == pa.string() else int if pa.types.is_integer(kind) else float
            arrays[name] = pa.array([convert(field) if field else None for field in column], kind)
        arrays["shop"] = arrays["shop"].dictionary_encode()
        pq.write_table(pa.table(arrays), path, row_group_size=13)
        return
    delimiter = "\t" if ".tsv" in path.name else ","
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


class Folder:
    """Training files of some rows, their vocabulary and a config, in a folder of the test's."""

    def __init__(self, folder, names, rows):
        self.folder, self.rows = folder, rows
        for name, share in zip(names, np.array_split(np.arange(len(rows)), len(names))):
            write(folder / "train" / name, [rows[i] for i in share])
        self.make_vocabulary()

    def make_vocabulary(self, **options):
        self.vocabulary_path = str(self.folder / "vocabulary.json")
        arguments = {"train": str(self.folder / "train"), "out": self.vocabulary_path, "min_count": 1, "max_size": None}
        # ``expected`` has standardised numbers alone
        arguments |= {"pieces": 0, "config": None, "validation": None, "test": None, "weight": None, "group": None}
        arguments |= {"lists": [], "separator": "", "sum": [], "hash": [], "like": [], "encode": []}
        arguments |= {"dense": DENSE, "sparse": SPARSE, "labels": LABELS, "skip_bad_rows": False, **options}
        make_vocabulary.make(types.SimpleNamespace(**arguments))
        content = json.loads((self.folder / "vocabulary.json").read_text())
        self.numbers, self.categories = content["numbers"], content["categories"]

    def expected(self, rows=None):
        """[dense, ids, rating, bought, spent] of rows, one row at a time."""
        made = []
        for row in self.rows if rows is None else rows:
            field = dict(zip(COLUMNS, row))
            dense = [(float(field[c["column"]] or c["mean"]) - c["mean"]) / c["deviation"] for c in self.numbers]
            ids = [{v: i for i, v in enumerate(c["values"], 1)}.get(field[c["column"]], 0) for c in self.categories]
            rating = int(field["rating"] or -1)
            made.append((dense, ids, rating, float(field["bought"] or "nan"), float(field["spent"] or "nan")))
        return [np.array(column, dtype) for column, dtype in zip(zip(*made), ("f4", "i8", "i8", "f4", "f4"))]

    def config(self, **runner):
        """The flat config, with ``runner.*`` keys."""
        sizes = [len(c["values"]) + 1 for c in self.categories]
        flat = {"config_abs_dir": str(self.folder), "runner.vocabulary": "vocabulary.json", "runner.job": "train"}
        flat.update({"hyper_parameters.input.dense_size": 2, "hyper_parameters.input.vocabulary_sizes": sizes})
        return {**flat, "hyper_parameters.tasks": TASKS, **{f"runner.{name}": value for name, value in runner.items()}}

    def reader(self, part="train", **runner):
        return table_reader.RecDataset(sorted(map(str, (self.folder / part).iterdir())), self.config(**runner))

    def batches(self, reader=None, workers=0, shuffle=False, size=7, window=None):
        values = {"train_data_dir": str(self.folder / "train"), "train_batch_size": size, "drop_last": False, "seed": 3}
        settings = types.SimpleNamespace(
            **values, processes=Alone(), shuffle=shuffle, shuffle_window=window, num_workers=workers
        )
        return Batches(self.reader() if reader is None else reader, settings, "train")


def joined(batches):
    """Batches or blocks as one."""
    return [np.asarray(np.concatenate(arrays)) for arrays in zip(*batches)]


def read(path, numbers=(), categories=()):
    """Read columns of a file.

    Returns:
        (name -> values: all numbers, and the texts of good rows; whether each row is good; the message about the first
        bad row, or None).
    """
    found, good, message = {name: [] for name in (*numbers, *categories)}, [], None
    for block in blocks(path):
        rows = block.read([*numbers], [*categories])
        good += [*rows.good]
        message = message or (rows.first_bad() if rows.bad_num() else None)
        for name in numbers:
            found[name] += rows.numbers[name].tolist()
        for name, (codes, texts) in rows.categories.items():
            found[name] += [texts[code] for code in codes[rows.good]]
    return found, good, message


def blocks(path):
    """The blocks of a file."""
    (file,) = table_files.open_files([str(path)])
    return [block for part in file.parts() for block in part.blocks()]


def write_files(folder, files):
    """Write files, path -> text, bytes or table; returns the paths of what is in the folder, as the tools give them."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(path) for path in folder.iterdir()]


def write_vocabulary(folder, numbers="x", **categories):
    """A vocabulary with numbers that are not changed, and categories, name -> values."""
    content = {
        "numbers": [{"column": name, "mean": 0, "deviation": 1} for name in numbers],
        "categories": [{"column": name, "values": values} for name, values in categories.items()],
    }
    (folder / "written.json").write_text(json.dumps(content))
    return Vocabulary(str(folder / "written.json"))


def run_make_vocabulary(folder, *arguments, env=None):
    """The finished process of data/make_vocabulary.py: one of its own if it gets an environment."""
    if env is None:
        return run_script(make_vocabulary, *arguments, cwd=folder)
    command = [sys.executable, str(ROOT / "data" / "make_vocabulary.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
