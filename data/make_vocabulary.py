"""CSV or Parquet files -> vocabulary.json: how tabular/reader.py turns their columns into numbers.

python data/make_vocabulary.py --train FOLDER --dense a b --sparse c d --labels x y --out vocabulary.json

Reads the training files in blocks. Dense columns are standardised by the mean and the standard deviation of their
rows, and cut into pieces by their quantiles. The ids of a sparse column, or of a column of lists, are the positions of
its sorted values, from 1, or hashes (--hash); id 0 is for empty fields and all other values. Prints what it found, and
what the config needs, or writes a config.
"""

import argparse
import collections
import json
import os
import sys
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from dselect_k_model import output_files  # noqa: E402  (found by the line above)
from tabular import files as table_files  # noqa: E402  (likewise)
from tabular import first_config, profile  # noqa: E402  (likewise)
from tabular.columns import NotNumbers  # noqa: E402  (likewise)
from tabular.vocabulary import Vocabulary  # noqa: E402  (likewise)

warnings.filterwarnings("ignore", "No ccache found")  # what Paddle says when it is imported
MOST_CLASSES = 1000  # of a column of labels in words


def _read(args):
    """The Columns of the training rows. A column of labels without a number is read again, as names of classes."""
    files, in_words = [os.path.join(args.train, name) for name in os.listdir(args.train)], []
    while True:
        about = {"weight": args.weight, "group": args.group}
        about = {name: column for name, column in about.items() if column is not None}
        columns = profile.Columns(args.dense, _sparse(args), args.labels, in_words, about, _encoded(args))
        try:
            for file in table_files.open_files(files):
                columns.read(file, args.skip_bad_rows)
        except NotNumbers as error:
            in_words.append(error.column)
            continue
        for name, of_classes in columns.classes.items():
            number = len(profile.class_names(of_classes.counter))
            if not 2 <= number <= MOST_CLASSES:
                raise ValueError(
                    f"the column {name} has {number} different texts as labels, but a task has 2 to {MOST_CLASSES} "
                    "classes."
                )
        return columns


def _by_column(option, pairs):
    """An option's pairs (column, value) as a dict."""
    counts = collections.Counter(column for column, _ in pairs)
    for column in (column for column in counts if counts[column] > 1):
        raise ValueError(f"--{option}: {column} is named twice.")
    return dict(pairs)


def _sparse(args):
    """The profile.Sparse of each column of --sparse and --lists."""
    hashes, likes = _by_column("hash", args.hash), _by_column("like", args.like)
    named = [*args.sparse, *args.lists]
    for option, columns in (("hash", hashes), ("like", likes), ("like", likes.values()), ("sum", args.sum)):
        known = args.lists if option == "sum" else named
        for column in (column for column in columns if column not in known):
            raise ValueError(f"--{option}: {column} is not among {'' if option == 'sum' else '--sparse or '}--lists.")
    for column, other in likes.items():
        if other in likes or column in hashes:
            raise ValueError(
                f"--like: {column} cannot have the ids of {other}: "
                + (f"{other} has those of {likes[other]}." if other in likes else f"--hash gives {column} its own.")
            )
    found = []
    for column in named:
        pooling = "" if column in args.sparse else "sum" if column in args.sum else "mean"
        like = likes.get(column, "")
        number = hashes.get(like or column, 0)
        found.append(profile.Sparse(column, pooling, args.separator if pooling else "", like, number))
    return found


def _encoded(args):
    """How columns of --dense are encoded, by --encode: column -> one of profile.ENCODINGS."""
    for column, how in args.encode:
        if column not in args.dense:
            raise ValueError(f"--encode: {column} is not among --dense.")
        if how not in profile.ENCODINGS:
            raise ValueError(f"--encode: {column} is {how!r}, but must be one of {', '.join(profile.ENCODINGS)}.")
        if how != "plain" and args.pieces == 0:
            raise ValueError(f"--encode: {column}={how} needs pieces, but --pieces is 0.")
        if how == "bins" and args.pieces == 1:
            raise ValueError(f"--encode: {column}=bins needs 2 bins or more, but --pieces is 1.")
    return _by_column("encode", args.encode)


def make(args):
    """Read the folder, write the vocabulary and report.

    Raises:
        ValueError: the folder has no table, or a file or its columns cannot be used.
        OSError: the folder cannot be read, or the file not written.
    """
    groups = [] if args.group is None or args.group in args.sparse else [args.group]
    weights = [] if args.weight is None else [args.weight]
    counts = collections.Counter([*args.dense, *args.sparse, *args.lists, *args.labels, *weights, *groups])
    twice = [name for name, count in counts.items() if count > 1]
    if twice or not (args.dense or args.sparse or args.lists):
        raise ValueError(
            f"the column {twice[0]} is named twice." if twice else "name columns by --dense, --sparse or --lists."
        )
    if not os.path.isdir(args.train):
        raise ValueError(f"--train: there is no folder {args.train}.")
    if args.separator and not args.lists:
        raise ValueError("--separator is for --lists, which is missing.")
    output_files.check_file(args.out, "--out")
    if args.config is not None and os.path.lexists(args.config):
        raise ValueError(
            f"--config: {args.config} is there already, and may have been changed. Give another path, or delete it."
        )
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


def _column_and_number(text):
    column, _, number = text.rpartition("=")
    return column.strip(), _positive(number)


def _column_and_column(text):
    column, equals, other = text.partition("=")
    if not equals:
        raise ValueError(text)
    return column.strip(), other.strip()


def _from_zero(text):
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    paths = {"type": os.path.expanduser, "required": True}
    columns = {"type": str.strip, "nargs": "+", "action": "extend", "default": [], "metavar": "COLUMN"}
    parser.add_argument("--train", **paths, metavar="FOLDER", help="folder of the training files")
    parser.add_argument("--dense", **columns, help="columns of numbers")
    parser.add_argument("--sparse", **columns, help="columns of categories")
    parser.add_argument("--lists", **columns, help="columns of lists of categories")
    parser.add_argument("--separator", default="", help="what separates the values of a list that is a text, as in CSV")
    parser.add_argument("--sum", **columns, help="those of --lists whose embeddings are summed; of others, the mean")
    parser.add_argument(
        "--hash", **{**columns, "type": _column_and_number, "metavar": "COLUMN=N"},
        help="columns of --sparse or --lists whose ids are hashes, from 1 to N",
    )  # fmt: skip
    parser.add_argument(
        "--like", **{**columns, "type": _column_and_column, "metavar": "COLUMN=OTHER"},
        help="columns of --sparse or --lists that have the ids and embeddings of another one",
    )  # fmt: skip
    parser.add_argument("--labels", **columns, help="columns of labels, one for each task")
    one = {"type": str.strip, "metavar": "COLUMN"}
    parser.add_argument("--weight", **one, help="column of the rows' weights, numbers >= 0")
    parser.add_argument("--group", **one, help="column of the rows' groups, such as a user; it may be one of --sparse")
    parser.add_argument("--out", **paths, metavar="FILE", help="file to write, beside the config")
    parser.add_argument("--min-count", type=_positive, default=1, help="how often a value must occur to have an id")
    parser.add_argument("--max-size", type=_positive, help="largest number of ids of a sparse column")
    parser.add_argument(
        "--pieces",
        type=_from_zero,
        help="pieces of a dense column's range; 0: none; default: by rows and columns, "
        f"{profile.PIECES} or {profile.FEW_PIECES}",
    )
    parser.add_argument(
        "--encode", **{**columns, "type": _column_and_column, "metavar": "COLUMN=HOW"},
        help=f"how columns of --dense are encoded: {', '.join(profile.ENCODINGS)}",
    )  # fmt: skip
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
