"""CSV or Parquet files -> vocabulary.json: how tabular/reader.py makes numbers of their columns.

python data/make_vocabulary.py --train FOLDER --dense a b --sparse c d --labels x y --out vocabulary.json

Reads the training files once, in blocks. Dense columns are standardised by the mean and deviation of their rows.
A sparse column's ids are the places of its values in sorted order, from 1; id 0 is for empty fields and all other
values. Prints what the config needs.
"""

import argparse
import collections
import json
import math
import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tabular import files as table_files  # noqa: E402  (found by the line above)
from tabular.vocabulary import Vocabulary  # noqa: E402  (likewise)

MOST_CLASSES = 1000  # whole numbers beyond it are taken for amounts


class Moments:
    """Count, mean, deviation, least and greatest of a column's numbers, added block by block."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.least, self.greatest, self.whole, self.missing = math.inf, -math.inf, True, 0

    def add(self, column):
        """Add numbers, nan for a missing one: float64 [N]."""
        there = column[~np.isnan(column)]
        self.missing += len(column) - len(there)
        if not len(there):
            return
        with np.errstate(over="ignore"):  # then the deviation is infinite, which is refused
            mean, count = float(there.mean()), self.count + len(there)
            squares = float(((there - mean) ** 2).sum())
        # the squares about the common mean: those about each one's own, and their distance
        distance = mean - self.mean
        self.squares += squares + distance * distance * self.count * len(there) / count
        self.mean += (mean - self.mean) * len(there) / count
        self.count = count
        self.least, self.greatest = min(self.least, float(there.min())), max(self.greatest, float(there.max()))
        self.whole &= bool((there == np.floor(there)).all())

    def deviation(self):
        """Of all the numbers; 1 where they are all the same."""
        return math.sqrt(self.squares / self.count) if self.least < self.greatest else 1.0


class Columns:
    """What the rows say of the columns.

    Args:
        dense, sparse, labels: names of columns.
    """

    def __init__(self, dense, sparse, labels):
        self.dense, self.labels = ({name: Moments() for name in names} for names in (dense, labels))
        self.sparse = {name: collections.Counter() for name in sparse}
        self.rows = self.bad = 0
        self.first_bad = None

    def read(self, path, skips):
        """Add a file's rows.

        Raises:
            ValueError: it cannot be read, or lacks one of these columns; or a row is bad, unless ``skips``.
        """
        file = table_files.open_file(path)
        numbers = [*self.dense, *self.labels]
        table_files.check_columns(file, [*numbers, *self.sparse])
        for part in file.parts():
            for block in part.blocks():
                self._add(block.read(numbers, [*self.sparse]), skips)

    def _add(self, rows, skips):
        if rows.bad_num():
            if not skips:
                raise ValueError(f"{rows.first_bad()}; mend the row, or give --skip-bad-rows.")
            self.first_bad = self.first_bad or rows.first_bad()
            self.bad += rows.bad_num()
        for name, moments in {**self.dense, **self.labels}.items():
            moments.add(rows.numbers[name][rows.good])
        for name, counter in self.sparse.items():
            codes, values = rows.categories[name]
            counts = np.bincount(codes[rows.good], minlength=len(values))
            for value, count in zip(values, counts.tolist()):
                counter[value] += count
        self.rows += int(rows.good.sum())

    def vocabulary(self, min_count=1, max_size=None):
        """The content of vocabulary.json.

        Args:
            min_count: how often a value must be there to have an id.
            max_size: of a sparse column, its most frequent values alone have ids; None: all.
        Raises:
            ValueError: there are no rows, or a dense column is empty, or a column's variance is infinite.
        """
        if not self.rows:
            raise ValueError("there is no row in these files.")
        empty = [name for name, moments in self.dense.items() if not moments.count]
        if empty:
            raise ValueError(f"the column {empty[0]} is empty in all rows. Leave it out of --dense.")
        for name, moments in {**self.dense, **self.labels}.items():
            if moments.count and not math.isfinite(moments.mean + moments.deviation()):
                raise ValueError(f"the numbers of {name} reach {moments.greatest:g}: too far apart for a variance.")
        numbers = [
            {"column": name, "mean": moments.mean, "deviation": moments.deviation()}
            for name, moments in self.dense.items()
        ]
        categories = [
            {"column": name, "values": _chosen(counter, min_count, max_size)} for name, counter in self.sparse.items()
        ]
        labels = [{"column": name} for name in self.labels]
        return {"rows": self.rows, "numbers": numbers, "categories": categories, "labels": labels}


def _chosen(counter, min_count, max_size):
    values = [value for value, count in counter.items() if value and count >= min_count]
    if max_size is not None and len(values) > max_size:
        values = sorted(values, key=lambda value: (-counter[value], value))[:max_size]
    return sorted(values)


def task_for(name, moments):
    """A task for the config, by what the labels look like, and a comment."""
    span = f"{moments.least:g} to {moments.greatest:g}"
    if moments.whole and 0 <= moments.least and moments.greatest <= 1:
        return f"{{name: {name}, kind: binary}}", span
    if moments.whole and 0 <= moments.least and moments.greatest < MOST_CLASSES:
        if moments.least:
            empty = "class 0 is" if moments.least == 1 else f"classes 0 to {moments.least - 1:g} are"
            span += f"; classes start at 0: {empty} empty; subtract {moments.least:g}"
        return f"{{name: {name}, classes: {moments.greatest + 1:.0f}}}", span
    variance = moments.deviation() ** 2
    if 0.25 <= variance <= 4:
        return f"{{name: {name}, kind: regression}}", span
    weight = np.format_float_positional(float(f"{1 / variance:.2g}"), trim="0")  # YAML takes 1e-05 for a text
    remark = f"1 / variance, so that tasks of other scales are heard; {span}"
    return f"{{name: {name}, kind: regression, weight: {weight}}}", remark


def report(columns, out):
    """Print what was read, and the lines for the config."""
    vocabulary = Vocabulary(out)
    print(f"{out}: of {columns.rows} rows", end="")
    print(f"; {columns.bad} bad rows were skipped, the first: {columns.first_bad}" if columns.bad else "")
    print("for the config:\n  input:")
    if vocabulary.numbers:
        print(f"    dense_size: {len(vocabulary.numbers)}")
    if vocabulary.categories:
        print(f"    vocabulary_sizes: {vocabulary.sizes()}")
    if columns.labels:
        print("  tasks:  # guessed from the labels")
    for name, moments in columns.labels.items():
        if moments.count:
            print("    - {}  # {}".format(*task_for(name, moments)), end="")
        else:
            print(f"    - {{name: {name}}}  # there is no label", end="")
        print(f", missing in {moments.missing} rows" if moments.missing else "")


def make(args):
    """Read the folder, write the vocabulary and report.

    Raises:
        ValueError: the folder has no table, a file is not as it should be, or the columns are not.
        OSError: the folder cannot be read, or the file not written.
    """
    names = [*args.dense, *args.sparse, *args.labels]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice or not (args.dense or args.sparse):
        raise ValueError(f"the column {twice[0]} is named twice." if twice else "name columns by --dense or --sparse.")
    paths = table_files.table_paths(os.path.join(args.train, name) for name in os.listdir(args.train))
    if not paths:
        raise ValueError(f"{args.train}: there is no table (*{', *'.join(table_files.SUFFIXES)}).")
    columns = Columns(args.dense, args.sparse, args.labels)
    for path in paths:
        columns.read(path, args.skip_bad_rows)
    content = json.dumps(columns.vocabulary(args.min_count, args.max_size), indent=1, ensure_ascii=False)
    with open(args.out + ".part", "w", encoding="utf-8") as file:
        file.write(content + "\n")
    os.replace(args.out + ".part", args.out)  # so that no half file ever bears the name
    report(columns, args.out)


def _positive(text):
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--train", required=True, metavar="FOLDER", help="folder of the training files")
    parser.add_argument("--dense", nargs="+", default=[], metavar="COLUMN", help="columns of numbers")
    parser.add_argument("--sparse", nargs="+", default=[], metavar="COLUMN", help="columns of categories")
    parser.add_argument("--labels", nargs="+", default=[], metavar="COLUMN", help="columns of labels, one a task")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, beside the config")
    parser.add_argument("--min-count", type=_positive, default=1, help="times that a value with an id must be there")
    parser.add_argument("--max-size", type=_positive, help="most ids of a sparse column; frequent values get them")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be read")
    args = parser.parse_args()
    try:
        make(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
