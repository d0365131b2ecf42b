"""CSV and Parquet files of any size -> rows (dense, ids, labels), by a vocabulary. Knows no network.

The files are read block by block, so memory does not grow with them. See docs/tables.md.
"""

import itertools
import logging
import os

import numpy as np
from paddle.distributed import get_rank, get_world_size
from paddle.io import IterableDataset, get_worker_info

from hyper_parameters import HyperParameters
from tabular import files as table_files
from tabular.vocabulary import Vocabulary

LOG = logging.getLogger("dselect_k")
HOW_TO_MAKE = "python data/make_vocabulary.py"
ENOUGH = 100_000  # rows after which the share of bad ones is looked at
TASK_NUM, CLASS_NUM = "hyper_parameters.task_num", "hyper_parameters.class_num"
LARGEST = float(np.finfo(np.float32).max)
# what a label may be, by the kind of its task: (dtype, value of a missing one, what is wrong with others, in words)
LABELS = {
    "classes": (np.int64, -1, lambda x: (x != np.floor(x)) | (x < 0) | (x >= 2**31), "a class: a whole number >= 0"),
    "binary": (np.float32, np.nan, lambda x: (x != 0) & (x != 1), "0 or 1"),
    "regression": (np.float32, np.nan, lambda x: abs(x) > LARGEST, "a number that fits float32"),
}
# runner.* keys: what a value may be, the default (None: required), its meaning, the check of a value
KEYS = {
    "vocabulary": (
        "the path of a file", None, f"the vocabulary, relative to the YAML's folder; make one by {HOW_TO_MAKE}",
        lambda value: isinstance(value, str),
    ),
    "bad_rows": (
        "refuse or skip", "refuse", "what is done with a row that cannot be used",
        lambda value: value in ("refuse", "skip"),
    ),
    "bad_rows_share": (
        "a number from 0 to 1", 0.01, "share of the rows that may be skipped before the run ends after all",
        lambda value: type(value) in (int, float) and 0 <= value <= 1,
    ),
}  # fmt: skip


class RecDataset(IterableDataset):
    """Rows of all files whose names end as in ``table_files.SUFFIXES``: [dense float32, ids int64, a label a task].

    Dense or ids are left out where the vocabulary has none. The labels' kinds are those of the config's tasks, in
    this order: whole numbers for classes, -1 where one is missing; else floats, nan where one is missing.

    Args:
        file_list: paths.
        config: flat config dict. Read are the ``runner.*`` keys in ``KEYS``, ``runner.inference`` (predict.py sets
            it: files need no labels) and the tasks.
    Raises:
        ValueError: a file, the vocabulary and the config do not go together, or pyarrow is not installed.
    """

    config_keys = tuple(KEYS)  # for tools that ask
    shards_by_worker = True  # likewise: ``__iter__`` gives each worker process rows of its own

    def __init__(self, file_list, config):
        super().__init__()
        self.skips, self.share = _setting(config, "bad_rows") == "skip", _setting(config, "bad_rows_share")
        self.vocabulary = Vocabulary(self.encoding_files(config)[0])
        self.vocabulary.check_config(config)
        paths = table_files.table_paths(file_list)
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: no table (*{', *'.join(table_files.SUFFIXES)}; .csv.gz and the like too).")
        self.folder = os.path.dirname(paths[0])
        self.files = [table_files.open_file(path) for path in paths]
        self.labels = dict(zip(self.vocabulary.labels, _kinds(config, self.vocabulary)))  # name -> (kind, classes)
        self.predicts = bool(config.get("runner.inference"))
        if self.predicts:
            self.skips = False  # or the rows behind a bad one would get other numbers
            if not any(name in file.columns for name in self.labels for file in self.files):
                self.labels = {}
        for file in self.files:
            table_files.check_columns(file, self.vocabulary.inputs())
            self._check_labels(file, evaluates=config.get("runner.job") == "infer")
        self.rank, self.rank_num = get_rank(), get_world_size()
        self.has_reported = False  # of a bad row, in this epoch and process: where it is takes a reading of the file

    def _check_labels(self, file, evaluates):
        names = [name for name in self.labels if name in file.columns or not self.predicts]
        try:
            table_files.check_columns(file, names)
        except ValueError as error:
            remedy = " Evaluation needs the labels; tools/predict.py does not."
            raise ValueError(f"{error}{remedy if evaluates and not self.predicts else ''}") from error

    @staticmethod
    def encoding_files(config):
        """Paths of the files that decide how raw values become inputs: the vocabulary. For tools that ask."""
        return [os.path.join(config.get("config_abs_dir", ""), _setting(config, "vocabulary"))]

    def row_num(self):
        """Rows in an epoch of this rank, or nearly: bad rows are counted, and ranks do not have quite as many."""
        return sum(file.count() for file in self.files) // self.rank_num

    def blocks(self, epoch, seed, in_order):
        """Many rows at a time: the blocks of an epoch, for tools that make batches of them.

        Args:
            epoch: decides the order, with ``seed``; None for the files' own.
            in_order: function (function, items) -> the results in order; ``items`` is iterated once or several
                times, also in other processes.
        Yields:
            Lists of arrays [rows, ...], as a row has them.
        Raises:
            ValueError: a file is broken, or a row bad and not to be skipped.
        """
        tally, self.has_reported = _Tally(self.folder, self.share), False
        for arrays, *counts in in_order(self._load, _Blocks(self, epoch, seed)):
            tally.add(*counts)
            yield _with_long_ids(arrays)
        tally.close()

    def __iter__(self):
        """Row by row, in the files' order. A worker process, and a rank, has a share of its own."""
        tally, worker, self.has_reported = _Tally(self.folder, self.share), get_worker_info(), False
        share = (worker.id, None, worker.num_workers) if worker else (0, None)
        for block in itertools.islice(_Blocks(self, 0, None), *share):
            arrays, *counts = self._load(block)
            tally.add(*counts)
            yield from map(list, zip(*_with_long_ids(arrays)))
        tally.close()

    def _load(self, block):
        """(A block's arrays, ids as int32; its rows; how many are bad; a text on the first bad one of an epoch)."""
        vocabulary, labels = self.vocabulary, [name for name in self.labels if name in block.columns]
        rows = block.read([*(name for name, *_ in vocabulary.numbers), *labels], [n for n, _ in vocabulary.categories])
        for name in labels:
            self._refuse_labels(rows, name)
        arrays = [vocabulary.dense(rows.numbers)] if vocabulary.numbers else []
        for i, (name, *_) in enumerate(vocabulary.numbers):
            column = rows.numbers[name]
            rows.refuse(
                np.isinf(arrays[0][:, i]),
                lambda i, name=name, column=column: (
                    f"{name} is {column[i]:g}, which does not fit float32 when standardised"
                ),
            )
        bad_num = rows.bad_num()
        if bad_num and not self.skips:
            remedy = "mend the row" + ("" if self.predicts else ", or set runner.bad_rows to skip")
            raise ValueError(f"{rows.first_bad()}; {remedy}.")
        arrays += [vocabulary.encode(rows.categories)] if vocabulary.categories else []
        arrays += [_label(rows.numbers.get(name), kind, len(rows.good)) for name, (kind, _) in self.labels.items()]
        if not rows.good.all():
            arrays = [array[rows.good] for array in arrays]
        first_bad = rows.first_bad() if bad_num and not self.has_reported else None
        self.has_reported = self.has_reported or bad_num > 0
        return arrays, len(rows.good) + len(rows.cut), bad_num, first_bad

    def _refuse_labels(self, rows, name):
        """Take rows for bad whose label ``name`` its task cannot have."""
        kind, class_num = self.labels[name]
        _, _, is_wrong, wanted = LABELS[kind]
        column = rows.numbers[name]
        wrong = is_wrong(column)
        if class_num is not None:
            wrong |= column >= class_num
            wanted = f"a class: a whole number from 0 to {class_num - 1}"
        rows.refuse(~np.isnan(column) & wrong, lambda i: f"the label {name} is {column[i]:g}, not {wanted}")


def _with_long_ids(arrays):
    """Arrays as a network takes them; between processes ids are half as long."""
    return [array.astype(np.int64) if array.dtype == np.int32 else array for array in arrays]


class _Blocks:
    """The blocks of an epoch that are this rank's, each time it is iterated."""

    def __init__(self, dataset, epoch, seed):
        parts = [part for file in dataset.files for part in file.parts()]
        if seed is not None:
            parts = [parts[i] for i in np.random.default_rng([seed, epoch]).permutation(len(parts))]
        self.parts, self.share = parts, (dataset.rank, None, dataset.rank_num)

    def __iter__(self):
        return itertools.islice(itertools.chain.from_iterable(part.blocks() for part in self.parts), *self.share)


class _Tally:
    """Counts the bad rows that were skipped.

    Args:
        where: the folder, for messages.
        share: how many of the rows may be bad.
    """

    def __init__(self, where, share):
        self.where, self.share, self.rows, self.bad, self.first = where, share, 0, 0, None

    def add(self, rows, bad, first):
        """Count a block, whose first bad row the text ``first`` tells of."""
        self.rows, self.bad = self.rows + rows, self.bad + bad
        if bad and self.first is None:
            self.first = first
        if self.rows >= ENOUGH:
            self._check()

    def close(self):
        """All rows have been read."""
        self._check()
        if self.bad:
            facts = self.where, self.bad, self.rows, self.first
            LOG.warning("%s: %d of %d rows are bad and were skipped. The first: %s", *facts)

    def _check(self):
        if self.bad > self.share * self.rows:
            raise ValueError(
                f"{self.where}: {self.bad} of the {self.rows} rows read are bad, more than runner.bad_rows_share "
                f"allows ({self.share}). The first: {self.first}. Mend the files, or allow more."
            )


def _setting(config, name):
    """The value of a key in ``KEYS``."""
    wanted, default, meaning, is_right = KEYS[name]
    value = config.get(f"runner.{name}")
    value = default if value is None else value
    if not is_right(value):
        raise ValueError(f"runner.{name} is {value!r}, but must be {wanted}: {meaning}.")
    return value


def _kinds(config, vocabulary):
    """The kind of each label that has a task, and its number of classes (None: not known), by the config's tasks."""
    tasks, names = config.get("hyper_parameters.tasks"), vocabulary.labels
    if not tasks:
        names = names[: _whole(config.get(TASK_NUM))]
        return [("classes", _whole(config.get(CLASS_NUM, HyperParameters.defaults()[CLASS_NUM])))] * len(names)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        return [("classes", None)] * len(names)  # the network refuses it
    for i, (task, label) in enumerate(zip(tasks, names)):
        if task.get("name") in names and task["name"] != label:
            raise ValueError(
                f"hyper_parameters.tasks[{i}] is named {task['name']}, but label {i + 1} of {vocabulary.path} is "
                f"{label}. Give the tasks in the order of the labels: {', '.join(names)}."
            )
    return [_kind(task) for task in tasks]


def _kind(task):
    kind = task.get("kind", "classes" if "classes" in task else None)
    kind = kind if isinstance(kind, str) and kind in LABELS else "regression"  # the network refuses another one
    return kind, _whole(task.get("classes")) if kind == "classes" else None


def _whole(value):
    """A whole number >= 1, or its text, as int; None for what is none, which the network refuses."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and number >= 1 else None


def _label(column, kind, row_num):
    """A column of labels in the type of its kind; ``None`` stands for a column that a file does not have."""
    dtype, missing, *_ = LABELS[kind]
    column = np.full(row_num, np.nan) if column is None else column
    return np.where(np.isnan(column), missing, column).astype(dtype)
