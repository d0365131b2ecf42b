"""CSV or Parquet files -> vocabulary.json: how tabular/reader.py turns their columns into numbers.

python data/make_vocabulary.py --train FOLDER --dense a b --sparse c d --labels x y --out vocabulary.json

Reads the training files in blocks. Dense columns are standardised by the mean and the standard deviation of their
rows, and cut into pieces by their quantiles. The ids of a sparse column are the positions of its sorted values, from 1;
id 0 is for empty fields and all other values. Prints what it found, and what the config needs, or writes a config.
"""

import argparse
import collections
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from dselect_k_model import output_files  # noqa: E402  (found by the line above)
from tabular import files as table_files  # noqa: E402  (likewise)
from tabular import first_config, profile  # noqa: E402  (likewise)
from tabular.columns import NotNumbers  # noqa: E402  (likewise)
from tabular.vocabulary import Vocabulary  # noqa: E402  (likewise)

MOST_CLASSES = 1000  # of a column of labels in words


def _read(args):
    """The Columns of the training rows. A column of labels without a number is read again, as names of classes."""
    files, in_words = [os.path.join(args.train, name) for name in os.listdir(args.train)], []
    while True:
        columns = profile.Columns(args.dense, args.sparse, args.labels, in_words)
        try:
            for file in table_files.open_files(files):
                columns.read(file, args.skip_bad_rows)
        except NotNumbers as error:
            in_words.append(error.column)
            continue
        for name, counter in columns.classes.items():
            number = len(profile.class_names(counter))
            if not 2 <= number <= MOST_CLASSES:
                raise ValueError(
                    f"the column {name} has {number} different texts as labels, but a task has 2 to {MOST_CLASSES} "
                    "classes."
                )
        return columns


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
    if args.config is not None and os.path.lexists(args.config):
        raise ValueError(f"--config: {args.config} is there already, and may have been changed. Give another path.")
    if args.config is not None and not args.labels:
        raise ValueError("--config: a config needs tasks. Name their columns by --labels.")
    if args.config is None and (args.validation or args.test):
        raise ValueError("--validation and --test are for --config, which is missing.")
    columns = _read(args)
    content = json.dumps(columns.vocabulary(args.min_count, args.max_size, args.pieces), indent=1, ensure_ascii=False)
    output_files.write_file(args.out, lambda file: file.write(content.encode() + b"\n"), "--out")
    vocabulary = Vocabulary(args.out)
    lines = first_config.report(columns, vocabulary)
    if args.config is not None:
        folders = {"train": args.train, "validation": args.validation, "test": args.test}
        text = first_config.first_config(columns, vocabulary, folders, args.config)
        output_files.write_file(args.config, lambda file: file.write(text.encode()), "--config")
        lines += [f"{args.config}: a first config"]
    else:
        lines += ["for the config:", "  input:", *first_config.input_lines(vocabulary)]
    if columns.names:
        lines += ["  tasks:  # guessed from the labels", *first_config.task_lines(columns)]
    print("\n".join(lines))


def _positive(text):
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _from_zero(text):
    if int(text) < 0:
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
    parser.add_argument(
        "--pieces", type=_from_zero, default=profile.PIECES, help="pieces of a dense column's range; 0: none"
    )
    of_config = {"type": os.path.expanduser, "metavar": "FOLDER"}
    parser.add_argument("--config", type=os.path.expanduser, metavar="FILE", help="write a first config, a new file")
    parser.add_argument("--validation", **of_config, help="for --config: rows to choose the best epoch by")
    parser.add_argument("--test", **of_config, help="for --config: rows to evaluate")
    parser.add_argument("--skip-bad-rows", action="store_true", help="skip rows that cannot be used")
    args = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may be unable to show a path
    with output_files.exit_on_error():
        make(args)


if __name__ == "__main__":
    main()
