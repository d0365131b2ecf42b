"""CSV and Parquet files of any size -> rows (dense, ids, labels, weight, group), by a vocabulary. Knows no network.

The files are read block by block, so memory does not grow with them. See docs/tables.md.
"""

import functools
import itertools
import logging
import os
import types
from typing import NamedTuple, Optional

import numpy as np
from paddle.distributed import get_rank, get_world_size
from paddle.io import IterableDataset, get_worker_info

from dselect_k_model import tasks
from dselect_k_model.config_key import REQUIRED, Key, as_number
from tabular import about, negatives
from tabular import files as table_files
from tabular.columns import NotNumbers
from tabular.numbers import Numbers
from tabular.values import NULL_TEXTS, one_way
from tabular.vocabulary import LABELS_ARE, Vocabulary

LOG = logging.getLogger("dselect_k")
ENOUGH = 100_000  # rows after which the shares of bad rows and unknown values are checked
UNKNOWN_SHARE = 0.03  # of a category's values; if more have no id, a warning says so
DEFAULT_CLASS_NUM = 10  # of hyper_parameters.class_num
NO_INPUTS = types.SimpleNamespace(columns_read=lambda: ((), ()), lists=())  # in the place of a vocabulary
KEYS = {
    "vocabulary": Key(
        "path", REQUIRED, "The vocabulary file, relative to the YAML's folder; python data/make_vocabulary.py makes it."
    ),
    "bad_rows": Key("choice", "refuse", "What to do with a row that cannot be used.", choices=("refuse", "skip")),
    "bad_rows_share": Key(
        float, 0.01, "The largest share of rows that may be skipped; with more, the run ends.", low=0, high=1
    ),
}


def kinds_of_tasks(config, labels):
    """Pairs (kind of a task, names of its label columns), by the config.

    Args:
        config: flat config dict.
        labels: names of the vocabulary's labels, in the order of the tasks.
    Raises:
        ValueError: a task is wrong, or is named like the label of another task.
    """
    entries = config.get("hyper_parameters.tasks")
    if not entries:
        task_num = as_number(config.get("hyper_parameters.task_num")) or len(labels)
        entry = {"classes": config.get("hyper_parameters.class_num", DEFAULT_CLASS_NUM)}
        entries = [entry] * len(labels[: int(task_num)])
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"hyper_parameters.tasks is {entries!r:.200}, but must be a list of mappings.")
    names, found = iter(labels), []
    for i, (task, entry) in enumerate(zip(tasks.parse(entries, tower_size=1), entries)):
        columns = list(itertools.islice(names, task.kind.label_size))
        for name, column in zip(task.kind.labels or [entry.get("name")], columns):
            if name in labels and name != column:
                raise ValueError(
                    f"hyper_parameters.tasks[{i}] is named {name}, but its label in the vocabulary is {column}. "
                    f"Give the tasks in the order of the labels: {', '.join(labels)}."
                )
        if 0 < len(columns) < task.kind.label_size:
            raise ValueError(
                f"hyper_parameters.tasks[{i}] has {task.kind.label_size} labels, but the vocabulary has only "
                f"{', '.join(columns)} for it. Make the vocabulary again with all --labels."
            )
        found.append((task.kind, columns))
    return [(kind, columns) for kind, columns in found if columns]


# ------------------------------------------------------------------------------------------- the reader


class Loaded(NamedTuple):
    """A block of rows as the network takes them, and what was found in it."""

    arrays: list  # [Numbers or dense, ids int32, Lists, labels by task, weight, group], without bad rows
    rows: int  # bad ones included
    bad: int
    first_bad: Optional[str]  # where the first bad row is and why it is bad; only once an epoch and process
    unknown: list  # by column of categories, see ``Vocabulary.encoded``

    def examples(self):
        """``arrays`` with int64 ids; between processes ids are half as long."""
        return [
            array.astype(np.int64) if isinstance(array, np.ndarray) and array.dtype == np.int32 else array
            for array in self.arrays
        ]


class RecDataset(IterableDataset):
    """Rows of all tables (``table_files.open_files``).

    A row is [dense float32, ids int64, lists of ids, a label for each task, weight float32, group int64]. Each column
    of lists has an item of its own, int64 [its length]; as a batch [rows, length of the longest], with -1 after the end
    of a list. Dense, ids, weight or group are missing if the vocabulary has none. The labels are what the kinds of the
    config's tasks make of their columns; a group is a number made of the field's text.

    Args:
        file_list: paths.
        config: flat config dict. Read are the ``runner.*`` keys in ``KEYS``, ``runner.inference`` (predict.py sets
            it: files need no labels, weights or groups), ``runner.job`` and the tasks.
    Raises:
        ValueError: a file, the vocabulary and the config do not fit together, or pyarrow is not installed.
    """

    config_keys = KEYS  # for tools that ask
    shards_by_worker = True  # likewise: ``__iter__`` gives each worker process rows of its own
    shards_by_rank = True  # likewise: in training ``blocks`` gives each process of a job rows of its own

    def __init__(self, file_list, config):
        super().__init__()
        self.skips, self.share = _setting(config, "bad_rows") == "skip", _setting(config, "bad_rows_share")
        self.vocabulary = Vocabulary(self.encoding_files(config)[0])
        self.vocabulary.check_config(config)
        self.files = table_files.open_files(file_list)
        self.folder = os.path.dirname(file_list[0])
        self.tasks = kinds_of_tasks(config, self.vocabulary.labels)
        self.predicts = bool(config.get("runner.inference"))
        if self.predicts:
            self.skips = False  # or the rows after a bad one would get other numbers
            if not any(name in file.columns for name in self.labels() for file in self.files):
                self.tasks = []
        self.about = self.vocabulary.about
        if self.predicts and not (self.tasks and all({*self.about.values()} <= {*f.columns} for f in self.files)):
            self.about = {}
        for file in self.files:
            table_files.check_columns(file, self.vocabulary.inputs())
            self._check_labels(file, evaluates=config.get("runner.job") == "infer")
        # in an evaluation by our tools, which say so, each process reads everything and computes its share
        self.rank, self.rank_num = (0, 1) if config.get("runner.job") == "infer" else (get_rank(), get_world_size())
        self.seed = int(config.get("runner.seed") or 0)  # of the draws of negatives
        self.leaves_out = config.get("runner.job") != "infer" and any(kind.negatives_kept < 1 for kind, _ in self.tasks)
        self.warned_unknown = set()  # categories for which a warning has named unknown values
        self.has_reported = False  # a bad row, in this epoch and process: to find its line takes a pass over the file

    def labels(self):
        """Names of the tasks' columns."""
        return [name for _, columns in self.tasks for name in columns]

    def _check_labels(self, file, evaluates):
        names = [*self.labels(), *self.about.values()]
        try:
            table_files.check_columns(file, [name for name in names if name in file.columns or not self.predicts])
        except ValueError as error:
            remedy = " Evaluation needs this column; tools/predict.py does not."
            raise ValueError(f"{error}{remedy if evaluates and not self.predicts else ''}") from error

    @staticmethod
    def encoding_files(config):
        """Paths of the files that decide how raw values become inputs: the vocabulary. For tools that ask."""
        path = os.path.expanduser(_setting(config, "vocabulary"))
        return [os.path.join(config.get("config_abs_dir", ""), path)]

    def row_num(self):
        """Rows in an epoch of all processes; bad rows count. Where negatives are left out, their expected number."""
        if not self.leaves_out:
            return sum(file.count() for file in self.files)
        rows, out = 0, 0.0
        for block in itertools.chain.from_iterable(part.blocks() for file in self.files for part in file.parts()):
            found = self._read(block, with_inputs=False)
            rows += len(found.good) + len(found.cut)
            out += negatives.expected(*self._labels(found, found.good))
        LOG.info("%s: of %d rows, negatives_kept leaves some %.0f an epoch", self.folder, rows, rows - out)
        return round(rows - out)

    def blocks(self, epoch, seed, in_order):
        """The blocks of an epoch: many rows at a time, for tools that make batches of them.

        Args:
            epoch: decides the order, with ``seed``; ``seed`` None: the order of the files.
            in_order: function (function, items) -> the results in order; ``items`` is iterated once or several
                times, also in other processes.
        Yields:
            Lists of arrays [rows, ...].
        Raises:
            ValueError: a file is broken, or a row is bad and not to be skipped.
        """
        tally, self.has_reported = _Tally(self), False
        for loaded in in_order(self._load, _Blocks(self, epoch, seed)):
            tally.add(loaded)
            yield loaded.examples()
        tally.close()

    def __iter__(self):
        """Row by row, in the order of the files. A worker process, and a rank, has a share of its own."""
        tally, worker, self.has_reported = _Tally(self), get_worker_info(), False
        share = (worker.id, None, worker.num_workers) if worker else (0, None)
        if self.leaves_out:
            raise ValueError(
                "negatives_kept: to draw negatives, use this project's tools, which read many rows at once."
            )
        for block in itertools.islice(_Blocks(self, 0, None), *share):
            loaded = self._load(block)
            tally.add(loaded)
            arrays = [np.asarray(array) if isinstance(array, Numbers) else array for array in loaded.examples()]
            yield from map(list, zip(*arrays))
        tally.close()

    def _load(self, numbered):
        """A block of ``_Blocks`` as ``Loaded``."""
        block, numbers_of_block = numbered
        vocabulary = self.vocabulary
        rows = self._read(block)
        arrays = []
        if vocabulary.numbers:
            numbers, misfits = vocabulary.numbers_of(rows.numbers)
            arrays.append(numbers)
            for name, wrong in misfits.items():
                rows.refuse(wrong, functools.partial(vocabulary.does_not_fit, name, rows.numbers[name]))
        bad = rows.bad_num()
        if bad and not self.skips:
            remedy = "Correct the row" + ("." if self.predicts else ", or the config, or set runner.bad_rows to skip.")
            raise ValueError(f"{rows.first_bad()}. {remedy}")
        ids, unknown = vocabulary.encoded({**rows.numbers, **rows.categories}, rows.lists)
        arrays += ids
        good = slice(None) if rows.good.all() else rows.good
        labels, kinds = self._labels(rows, good)
        arrays, after = ([array[good] for array in of_rows] for of_rows in (arrays, about.arrays(rows, self.about)))
        if self.leaves_out:
            labels, is_out = negatives.leave_out(labels, kinds, np.random.default_rng(numbers_of_block))
            arrays, labels, after = ([array[~is_out] for array in of_rows] for of_rows in (arrays, labels, after))
        arrays = [array.smaller() if isinstance(array, Numbers) else array for array in arrays] + [*labels, *after]
        first_bad = rows.first_bad() if bad and not self.has_reported else None
        self.has_reported = self.has_reported or bad > 0
        return Loaded(arrays, len(rows.good) + len(rows.cut), bad, first_bad, unknown)

    def _labels(self, rows, chosen):
        """(The labels of some rows by task, the tasks' kinds)."""
        missing = np.full(len(rows.good), np.nan)
        kinds = [kind for kind, _ in self.tasks]
        columns = [[rows.numbers.get(name, missing)[chosen] for name in names] for _, names in self.tasks]
        return [kind.from_columns(of_task) for kind, of_task in zip(kinds, columns)], kinds

    def _read(self, block, with_inputs=True):
        """The rows of a block; those with a label that its task cannot have, or without weight or group, are bad.

        Raises:
            ValueError: a column that should be numbers has none.
        """
        labels = [name for name in self.labels() if name in block.columns]
        in_words = {name: kind for kind, names in self.tasks for name in names if kind.class_names and name in labels}
        weights, groups = about.columns(self.about)
        read = self.vocabulary if with_inputs else NO_INPUTS
        numbers, texts = read.columns_read()
        numbers = [*numbers, *(name for name in labels if name not in in_words)]
        texts = dict.fromkeys([*texts, *in_words, *groups])
        try:
            lists = [(of.column, of.separator) for of in read.lists]
            rows = block.read([*numbers, *weights], [*texts], lists)
            if rows.without_numbers and not self.skips:
                raise rows.without_numbers
        except NotNumbers as error:
            of_input = f"{self.vocabulary.path} lists it as numbers: make the vocabulary again."
            remedies = {**dict.fromkeys(weights, about.WEIGHTS_ARE), **dict.fromkeys(labels, LABELS_ARE)}
            raise ValueError(f"{error} {remedies.get(error.column, of_input)}") from error
        for name, kind in in_words.items():
            _number_classes(rows, name, kind)
        for kind, names in self.tasks:
            for name in {*names} & {*labels} - {*in_words}:
                self._refuse_labels(rows, name, kind)
        if not self.predicts:  # which needs them for metrics alone
            about.refuse(rows, self.about)
        return rows

    @staticmethod
    def _refuse_labels(rows, name, kind):
        column = rows.numbers[name]
        wrong = ~np.isnan(column) & kind.is_wrong(column)
        rows.refuse(wrong, lambda i: f"the label {name} is {column[i]:g}, not {kind.label_words}")


def _number_classes(rows, name, kind):
    """Replace a column of class names by their numbers; a row with another text is bad."""
    codes, texts = rows.categories.pop(name)
    number_of = {one_way(class_name): float(i) for i, class_name in enumerate(kind.class_names)}
    numbers = np.array([number_of.get(text, np.nan) for text in texts])
    wrong = np.isnan(numbers) & np.array([text not in NULL_TEXTS for text in texts])
    rows.refuse(wrong[codes], lambda i: f"the label {name} is {texts[codes[i]]!r:.100}, not {kind.label_words}")
    rows.numbers[name] = numbers[codes]


class _Blocks:
    """The blocks of an epoch that are this rank's, each time it is iterated: (block, numbers that no other one has)."""

    def __init__(self, dataset, epoch, seed):
        parts = [part for file in dataset.files for part in file.parts()]
        if seed is not None:
            parts = [parts[i] for i in np.random.default_rng([seed, epoch]).permutation(len(parts))]
        self.parts, self.share, self.numbers = parts, (dataset.rank, None, dataset.rank_num), (dataset.seed, epoch)

    def __iter__(self):
        blocks = enumerate(itertools.chain.from_iterable(part.blocks() for part in self.parts))
        return ((block, (*self.numbers, i)) for i, block in itertools.islice(blocks, *self.share))


class _Tally:
    """Counts an epoch's bad rows, and the values of categories that have no id.

    Args:
        dataset: the RecDataset.
    """

    def __init__(self, dataset):
        self.dataset, self.rows, self.bad, self.first_bad = dataset, 0, 0, None
        columns = [*dataset.vocabulary.categories, *dataset.vocabulary.lists]
        self.unknown = {category.column: (0, 0, ()) for category in columns}

    def add(self, loaded):
        """Count a block."""
        self.rows, self.bad = self.rows + loaded.rows, self.bad + loaded.bad
        self.first_bad = self.first_bad or loaded.first_bad
        for name, (number, filled, examples) in zip(self.unknown, loaded.unknown):
            before = self.unknown[name]
            shown = tuple(dict.fromkeys([*before[2], *examples]))[:3]
            self.unknown[name] = before[0] + number, before[1] + filled, shown
        if self.rows >= ENOUGH:
            self._check()

    def close(self):
        """All rows have been read."""
        self._check()
        if self.bad:
            facts = self.dataset.folder, self.bad, self.rows, self.first_bad
            LOG.warning("%s: %d of %d rows are bad and were skipped. The first: %s", *facts)

    def _check(self):
        dataset = self.dataset
        for name, (number, filled, examples) in self.unknown.items():
            if number > UNKNOWN_SHARE * filled and name not in dataset.warned_unknown:
                dataset.warned_unknown.add(name)
                share = f"{100 * number / filled:.0f}% of the values of {name} ({number} of {filled})"
                LOG.warning(
                    f"{dataset.folder}: {share} are not in {dataset.vocabulary.path} and count as unknown (id 0), "
                    f"such as {', '.join(map(repr, examples))}"
                )
        if self.bad > dataset.share * self.rows:
            raise ValueError(
                f"{dataset.folder}: {self.bad} of the {self.rows} rows read are bad, more than runner.bad_rows_share "
                f"allows ({dataset.share}). The first: {self.first_bad}. Correct the files, or allow more."
            )


def _setting(config, name):
    """The value of a key in ``KEYS``."""
    key, value = KEYS[name], config.get(f"runner.{name}")
    if value is not None:
        return key.check(f"runner.{name}", value)
    if key.is_required:
        raise ValueError(f"runner.{name} is missing. {key.meaning}")
    return key.default
