"""CSV or Parquet files -> vocabulary.json: how tabular/reader.py turns their columns into numbers.

python data/make_vocabulary.py --train FOLDER --dense a b --sparse c d --labels x y --out vocabulary.json

Reads the training files once, in blocks. Dense columns are standardised by the mean and the standard deviation of their
rows. The ids of a sparse column are the positions of its sorted values, from 1; id 0 is for empty fields and all other
values. Prints what the config needs.
"""

import argparse
import collections
import json
import math
import os
import re
import sys

import numpy as np
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from dselect_k_model import output_files  # noqa: E402  (found by the line above)
from tabular import files as table_files  # noqa: E402  (likewise)
from tabular.columns import NotNumbers  # noqa: E402  (likewise)
from tabular.vocabulary import LABELS_ARE, Vocabulary  # noqa: E402  (likewise)


class Summary:
    """Count, mean, deviation, least and greatest of a column's numbers, added block by block."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # squares: of the distances from the mean
        self.least, self.greatest, self.whole, self.missing = math.inf, -math.inf, True, 0

    def add(self, column):
        """Add numbers: float64 [N], nan where missing."""
        numbers = column[~np.isnan(column)]
        self.missing += len(column) - len(numbers)
        if not len(numbers):
            return
        with np.errstate(over="ignore"):  # then the deviation is infinite, which is refused
            mean, count = float(numbers.mean()), self.count + len(numbers)
            squares = float(((numbers - mean) ** 2).sum())
        distance = mean - self.mean
        self.squares += squares + distance * distance * self.count * len(numbers) / count
        self.mean += distance * len(numbers) / count
        self.count = count
        self.least, self.greatest = min(self.least, float(numbers.min())), max(self.greatest, float(numbers.max()))
        self.whole &= bool((numbers == np.floor(numbers)).all())

    def deviation(self):
        """The standard deviation; 1 if all numbers are equal."""
        return math.sqrt(self.squares / self.count) if self.least < self.greatest else 1.0


def suggested_task(summary):
    """(an entry of ``tasks``, without its name, that fits a column of labels; a remark)."""
    from dselect_k_model.kinds import KINDS  # it imports Paddle: that takes seconds, and warns on stderr

    return next(filter(None, (kind.suggest(summary) for kind in KINDS.values())))


class Columns:
    """What the training rows say of the columns.

    Args:
        dense, sparse, labels: names of columns.
    """

    def __init__(self, dense, sparse, labels):
        self.dense, self.labels = ({name: Summary() for name in names} for names in (dense, labels))
        self.sparse = {name: collections.Counter() for name in sparse}
        self.rows = self.bad = 0
        self.first_bad = self.without_numbers = None  # where the first bad row is; the first NotNumbers

    def read(self, file, skips):
        """Add the rows of a file of ``table_files.open_files``.

        Raises:
            ValueError: it cannot be read, or lacks one of these columns; or a row is bad, unless ``skips``.
        """
        numbers = [*self.dense, *self.labels]
        table_files.check_columns(file, [*numbers, *self.sparse])
        try:
            for part in file.parts():
                for block in part.blocks():
                    self._add(block.read(numbers, [*self.sparse]), skips)
        except NotNumbers as error:
            remedy = LABELS_ARE if error.column in self.labels else "Name it in --sparse, or write numbers."
            raise ValueError(f"{error} {remedy}") from error

    def _add(self, rows, skips):
        if rows.without_numbers and not skips:
            raise rows.without_numbers
        if rows.bad_num():
            if not skips:
                raise ValueError(f"{rows.first_bad()}. Correct the row, or give --skip-bad-rows.")
            self.first_bad = self.first_bad or rows.first_bad()
            self.without_numbers = self.without_numbers or rows.without_numbers
            self.bad += rows.bad_num()
        for name, summary in {**self.dense, **self.labels}.items():
            summary.add(rows.numbers[name][rows.good])
        for name, counter in self.sparse.items():
            codes, values = rows.categories[name]
            counts = np.bincount(codes[rows.good], minlength=len(values))
            for value, count in zip(values, counts.tolist()):
                counter[value] += count
        self.rows += int(rows.good.sum())

    def vocabulary(self, min_count=1, max_size=None):
        """The content of vocabulary.json.

        Args:
            min_count: how often a value must occur to have an id.
            max_size: how many values of a sparse column have ids, the most frequent ones; None: all.
        Raises:
            ValueError: there are no rows, or a dense column is empty, or the variance of a column is infinite.
        """
        if not self.rows:
            problem = self.without_numbers or f"The first: {self.first_bad}"
            raise ValueError(f"all rows are bad. {problem}" if self.bad else "these files have no rows.")
        for name, summary in {**self.dense, **self.labels}.items():
            if not summary.count and name in self.dense:
                raise ValueError(f"the column {name} is empty in all rows. Remove it from --dense.")
            if summary.count and not math.isfinite(summary.mean + summary.deviation()):
                raise ValueError(f"the numbers of {name} reach {summary.greatest:g}: too far apart for a variance.")
        numbers = [{"column": name, "mean": s.mean, "deviation": s.deviation()} for name, s in self.dense.items()]
        categories = [
            {"column": name, "values": _chosen(counter, min_count, max_size)} for name, counter in self.sparse.items()
        ]
        labels = [{"column": name} for name in self.labels]
        return {"rows": self.rows, "numbers": numbers, "categories": categories, "labels": labels}


def _chosen(counter, min_count, max_size):
    values = [value for value, count in counter.items() if value and count >= min_count]
    return sorted(sorted(values, key=lambda value: (-counter[value], value))[:max_size])


def _in_yaml(name):
    """A name as YAML reads it back: in quotes unless it is a plain word without a meaning of its own."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in ("y", "n") and yaml.safe_load(name) == name
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # standard output may be closed
    can_be_shown = name.encode(encoding, "ignore").decode(encoding) == name
    return name if plain and can_be_shown else json.dumps(name, ensure_ascii=not can_be_shown)


def report(columns, out):
    """Print what was read, and the lines for the config."""
    vocabulary = Vocabulary(out)
    skipped = f"; {columns.bad} bad rows were skipped, the first: {columns.first_bad}" if columns.bad else ""
    print(f"{out}: of {columns.rows} rows{skipped}\nfor the config:\n  input:")
    if vocabulary.numbers:
        print(f"    dense_size: {len(vocabulary.numbers)}")
    if vocabulary.categories:
        print(f"    vocabulary_sizes: {vocabulary.sizes()}")
    if columns.labels:
        print("  tasks:  # guessed from the labels")
    for name, summary in columns.labels.items():
        task, remark = suggested_task(summary) if summary.count else ({}, "there are no labels")
        entry = ", ".join(f"{key}: {value}" for key, value in {"name": _in_yaml(name), **task}.items())
        missing = f", missing in {summary.missing} rows" if summary.missing else ""
        print(f"    - {{{entry}}}  # {remark}{missing}")


def make(args):
    """Read the folder, write the vocabulary and report.

    Raises:
        ValueError: the folder has no table, or a file or its columns cannot be used.
        OSError: the folder cannot be read, or the file not written.
    """
    counts = collections.Counter([*args.dense, *args.sparse, *args.labels])
    twice = [name for name, count in counts.items() if count > 1]
    if twice or not (args.dense or args.sparse):
        raise ValueError(f"the column {twice[0]} is named twice." if twice else "name columns by --dense or --sparse.")
    output_files.check_file(args.out, "--out")
    columns = Columns(args.dense, args.sparse, args.labels)
    for file in table_files.open_files([os.path.join(args.train, name) for name in os.listdir(args.train)]):
        columns.read(file, args.skip_bad_rows)
    content = json.dumps(columns.vocabulary(args.min_count, args.max_size), indent=1, ensure_ascii=False)
    output_files.write_file(args.out, lambda file: file.write(content.encode() + b"\n"), "--out")
    report(columns, args.out)


def _positive(text):
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    paths = {"type": os.path.expanduser, "required": True}
    columns = {"type": str.strip, "nargs": "+", "default": [], "metavar": "COLUMN"}
    parser.add_argument("--train", **paths, metavar="FOLDER", help="folder of the training files")
    parser.add_argument("--dense", **columns, help="columns of numbers")
    parser.add_argument("--sparse", **columns, help="columns of categories")
    parser.add_argument("--labels", **columns, help="columns of labels, one for each task")
    parser.add_argument("--out", **paths, metavar="FILE", help="file to write, beside the config")
    parser.add_argument("--min-count", type=_positive, default=1, help="how often a value must occur to have an id")
    parser.add_argument("--max-size", type=_positive, help="largest number of ids of a sparse column")
    parser.add_argument("--skip-bad-rows", action="store_true", help="skip rows that cannot be used")
    args = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may be unable to show a path
    with output_files.exit_on_error():
        make(args)


if __name__ == "__main__":
    main()
