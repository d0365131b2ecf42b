"""CSV and Parquet files of any size -> rows (dense, ids, labels), by a vocabulary. Knows no network.

The files are read block by block, so memory does not grow with them. See docs/tables.md.
"""

import itertools
import logging
import os

import numpy as np
from paddle.distributed import get_rank, get_world_size
from paddle.io import IterableDataset, get_worker_info

from tabular import files as table_files
from tabular.vocabulary import Vocabulary

LOG = logging.getLogger("dselect_k")
HOW_TO_MAKE = "python data/make_vocabulary.py"
ENOUGH = 100_000  # rows after which the share of bad ones is looked at
# what a label may be, by the kind of its task: (dtype, value of a missing one, what is wrong with others, in words)
LABELS = {
    "classes": (np.int64, -1, lambda x: x != np.floor(x), "a whole number"),
    "binary": (np.float32, np.nan, lambda x: (x > 0) & (x != 1), "0 or 1"),
    "regression": (np.float32, np.nan, lambda x: np.zeros(len(x), bool), ""),
}


class RecDataset(IterableDataset):
    """Rows of all files whose names end as in ``table_files.SUFFIXES``: [dense float32, ids int64, a label a task].

    Dense or ids are left out where the vocabulary has none. The labels' kinds are those of the config's tasks, in
    this order: whole numbers for classes, -1 where one is missing; else floats, nan where one is missing.

    Args:
        file_list: paths.
        config: flat config dict. Read are ``runner.vocabulary`` (path, relative to the YAML), ``runner.bad_rows``
            (refuse or skip), ``runner.bad_rows_share`` (how many may be skipped), ``runner.inference`` (predict.py
            sets it: files need no labels) and the tasks.
    Raises:
        ValueError: a file, the vocabulary and the config do not go together, or pyarrow is not installed.
    """

    config_keys = ("vocabulary", "bad_rows", "bad_rows_share")  # runner.* keys of this reader, for tools that ask
    shards_by_worker = True  # likewise: ``__iter__`` gives each worker process rows of its own

    def __init__(self, file_list, config):
        super().__init__()
        self.skips, self.share = _bad_rows(config)
        self.vocabulary = Vocabulary(self.encoding_files(config)[0])
        self.vocabulary.check_config(config)
        paths = table_files.table_paths(file_list)
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: no table (*{', *'.join(table_files.SUFFIXES)}; .csv.gz and the like too).")
        self.folder = os.path.dirname(paths[0])
        self.files = [table_files.open_file(path) for path in paths]
        self.labels = dict(zip(self.vocabulary.labels, _kinds(config, self.vocabulary)))
        self.predicts = bool(config.get("runner.inference"))
        if self.predicts:
            self.skips = False  # or the rows behind a bad one would get other numbers
            if not any(name in file.columns for name in self.labels for file in self.files):
                self.labels = {}
        for file in self.files:
            there = [name for name in self.labels if name in file.columns] if self.predicts else [*self.labels]
            table_files.check_columns(file, [*self.vocabulary.inputs(), *there])
        self.rank, self.rank_num = get_rank(), get_world_size()
        self.has_told = False  # of a bad row, in this epoch and process: where it is takes a reading of the file

    @staticmethod
    def encoding_files(config):
        """Paths of the files that decide how raw values become inputs: the vocabulary. For tools that ask."""
        path = config.get("runner.vocabulary")
        if not isinstance(path, str):
            raise ValueError(f"runner.vocabulary is {path!r}, but must be the path of a file. Make one: {HOW_TO_MAKE}")
        return [os.path.join(config.get("config_abs_dir", ""), path)]

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
        tally, self.has_told = _Tally(self.folder, self.share), False
        for arrays, *counts in in_order(self._load, _Blocks(self, epoch, seed)):
            tally.add(*counts)
            yield _with_long_ids(arrays)
        tally.close()

    def __iter__(self):
        """Row by row, in the files' order. A worker process, and a rank, has a share of its own."""
        tally, worker, self.has_told = _Tally(self.folder, self.share), get_worker_info(), False
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
            _, _, is_wrong, wanted = LABELS[self.labels[name]]
            column = rows.numbers[name]
            rows.refuse(
                ~np.isnan(column) & is_wrong(column),
                lambda i, name=name, column=column, wanted=wanted: f"the label {name} is {column[i]:g}, not {wanted}",
            )
        bad_num = rows.bad_num()
        if bad_num and not self.skips:
            remedy = "mend the row" + ("" if self.predicts else ", or set runner.bad_rows to skip")
            raise ValueError(f"{rows.first_bad()}; {remedy}.")
        arrays = [vocabulary.dense(rows.numbers)] if vocabulary.numbers else []
        arrays += [vocabulary.encode(rows.categories)] if vocabulary.categories else []
        arrays += [_label(rows.numbers.get(name), kind, len(rows.good)) for name, kind in self.labels.items()]
        if not rows.good.all():
            arrays = [array[rows.good] for array in arrays]
        told = rows.first_bad() if bad_num and not self.has_told else None
        self.has_told = self.has_told or bad_num > 0
        return arrays, len(rows.good) + len(rows.cut), bad_num, told


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
            told = self.where, self.bad, self.rows, self.first
            LOG.warning("%s: %d of %d rows are bad and were skipped. The first: %s", *told)

    def _check(self):
        if self.bad > self.share * self.rows:
            raise ValueError(
                f"{self.where}: {self.bad} of the {self.rows} rows read are bad, more than runner.bad_rows_share "
                f"allows ({self.share}). The first: {self.first}. Mend the files, or allow more."
            )


def _bad_rows(config):
    """(Whether bad rows are skipped, which share of the rows may be)."""
    how, share = config.get("runner.bad_rows"), config.get("runner.bad_rows_share")
    if how not in (None, "refuse", "skip"):
        raise ValueError(f"runner.bad_rows is {how!r}, but must be refuse or skip.")
    if share is not None and (type(share) not in (int, float) or not 0 <= share <= 1):
        raise ValueError(f"runner.bad_rows_share is {share!r}, but must be a number from 0 to 1.")
    return how == "skip", 0.01 if share is None else share


def _kinds(config, vocabulary):
    """The kind of each label that has a task, by the config's tasks; a config without tasks has classes."""
    tasks = config.get("hyper_parameters.tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):  # the network's to refuse
        return ["classes"] * len(vocabulary.labels)
    for i, (task, label) in enumerate(zip(tasks, vocabulary.labels)):
        if task.get("name") in vocabulary.labels and task["name"] != label:
            raise ValueError(
                f"hyper_parameters.tasks[{i}] is named {task['name']}, but label {i + 1} of {vocabulary.path} is "
                f"{label}. Give the tasks in the order of the labels: {', '.join(vocabulary.labels)}."
            )
    kinds = [task.get("kind", "classes" if "classes" in task else None) for task in tasks]
    return [kind if kind in LABELS else "regression" for kind in kinds]  # another kind is the network's to refuse


def _label(column, kind, row_num):
    """A column of labels in the type of its kind; ``None`` stands for a column that a file does not have."""
    dtype, missing, *_ = LABELS[kind]
    column = np.full(row_num, np.nan) if column is None else column
    return np.where(np.isnan(column), missing, column).astype(dtype)
