"""Census-Income (KDD) -> training, validation and test data: python make_data.py --test FILE --out FOLDER

Writes OUT/train/train.npz, OUT/validation/validation.npz, OUT/test/test.npz for census_reader.py, and
OUT/vocabulary.json. With --train too, the split is the official one, and the last tenth of the training file is for
validation. With the test file alone, its rows 0 to 59999 are for training, up to 79761 for validation, the rest
for testing. Files may be gzipped.

Numbers are standardised by the mean and deviation of the training rows. A category's id is its place among those
of the training rows, from 1; id 0 is for categories that are not among them. A number has an id as well, that of its
bin, so that a network can give each range of a skewed column an embedding of its own.
"""

import argparse
import collections
import gzip
import hashlib
import json
import os
import sys
import zlib

import numpy as np

COLUMNS = (
    "age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat major_ind_code "
    "major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp capital_gains capital_losses "
    "stock_dividends tax_filer_stat region_prev_res state_prev_res det_hh_fam_stat det_hh_summ instance_weight "
    "mig_chg_msa mig_chg_reg mig_move_reg mig_same mig_prev_sunbelt num_emp fam_under_18 country_father "
    "country_mother country_self citizenship own_or_self vet_question vet_benefits weeks_worked year income_50k"
).split()
NUMBERS = "age wage_per_hour capital_gains capital_losses stock_dividends num_emp weeks_worked".split()
INCOME, MARITAL = "income_50k", "marital_stat"
LEFT_OUT = "instance_weight"  # how many people a row stands for: no feature
CATEGORIES = [name for name in COLUMNS if name not in (*NUMBERS, INCOME, MARITAL, LEFT_OUT)]
INCOMES = {"- 50000": 0, "50000+": 1}
NEVER_MARRIED = "Never married"
# rows, and the SHA-256 of the text; that of the training file is not known here
OFFICIAL = {
    "train": (199523, None),
    "test": (99762, "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c"),
}
TRAIN_ROWS, TRAIN_AND_VALIDATION_ROWS = 60000, 79762  # of the test file, where there is no other
SAMPLE = {"train": 2000, "validation": 500, "test": 500}  # the first rows of each part
BIN_NUM = 100  # at most so many bins for the positive values of a number
CHUNK = 8192  # rows parsed at a time


# ------------------------------------------------------------------------------ file -> columns


def read_text(path, role, unchecked=False):
    """The text of an official file, checked.

    Args:
        path: of the file, gzipped or not.
        role: "train" or "test".
        unchecked: take any text.
    Returns:
        (text, SHA-256 of its bytes).
    Raises:
        ValueError: it cannot be read or is another file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: it cannot be read as a text file, gzipped or not ({reason}).") from error
    digest, known = hashlib.sha256(content).hexdigest(), OFFICIAL[role][1]
    if not unchecked and known not in (None, digest):
        raise ValueError(
            f"{path}: this is not the official {role} file: the SHA-256 of its text is {digest}, not {known}. "
            "Get census-income.test.gz again, or give --unchecked to take other rows of the same form."
        )
    return text, digest


def read_columns(path, text):
    """Parse the rows.

    Args:
        path: of the file, for messages.
        text: its lines.
    Returns:
        {column: (codes int32 [N], values)}, for all but the weights: a row has the value that its code numbers,
        blanks at its ends left out.
    Raises:
        ValueError: naming the line that has another form.
    """
    indexes = [collections.defaultdict() for _ in COLUMNS]
    for index in indexes:
        index.default_factory = index.__len__  # a new value's code is the next number
    codes = [[] for _ in COLUMNS]
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise ValueError(f"{path}: there is no row in it.")
    for begin in range(0, len(lines), CHUNK):
        rows = [line.split(",") for line in lines[begin : begin + CHUNK]]
        for i, row in enumerate(rows, begin + 1):
            if len(row) != len(COLUMNS):
                raise ValueError(f"{path}, line {i}: it has {len(row)} columns, not {len(COLUMNS)}.")
        for index, of_column, values in zip(indexes, codes, zip(*rows)):
            of_column.append(np.fromiter(map(index.__getitem__, values), np.int32, len(values)))
    return {
        name: (np.concatenate(of_column), [value.strip() for value in index])
        for name, of_column, index in zip(COLUMNS, codes, indexes)
        if name != LEFT_OUT
    }


def translated(path, columns, name, translate, dtype):
    """A column's values as numbers [N]; ``translate`` gives a distinct value's number or raises ValueError."""
    codes, values = columns[name]
    table = np.empty(len(values), dtype)
    for code, value in enumerate(values):
        try:
            table[code] = translate(value)
        except ValueError as error:
            line = int(np.argmax(codes == code)) + 1
            raise ValueError(f"{path}, line {line}: {name} is {value!r}, not {error}.") from error
    return table[codes]


def to_number(value):
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError("a number")
    return number


def to_income(value):
    """1 for an income above 50 000, else 0; a line ends in a full stop."""
    if value[:-1] not in INCOMES or value[-1:] != ".":
        raise ValueError(" or ".join(f"'{income}.'" for income in INCOMES))
    return INCOMES[value[:-1]]


class Rows:
    """A file's rows, parsed.

    Args:
        path: of the file, for messages.
        text: its lines.
    Raises:
        ValueError: naming the line that has another form.
    """

    def __init__(self, path, text):
        columns = read_columns(path, text)
        self.numbers = np.stack([translated(path, columns, name, to_number, "f8") for name in NUMBERS], axis=1)
        self.income = translated(path, columns, INCOME, to_income, "u1")
        self.never_married = translated(path, columns, MARITAL, lambda value: value == NEVER_MARRIED, "u1")
        self.categories = {name: columns[name] for name in CATEGORIES}

    def __len__(self):
        return len(self.income)


# --------------------------------------------------------------------------- columns -> arrays


def make_vocabulary(rows, chosen):
    """What the training rows say of the columns: the content of vocabulary.json.

    Args:
        rows: Rows.
        chosen: slice, the training rows.
    """
    numbers = []
    for name, column in zip(NUMBERS, rows.numbers[chosen].T):
        deviation = float(column.std()) if column.min() < column.max() else 1.0
        mean, edges = float(column.mean()), bin_edges(column)
        numbers.append({"column": name, "mean": mean, "deviation": deviation, "edges": edges})
    categories = []
    for name, (codes, values) in rows.categories.items():
        found = sorted({values[code] for code in np.unique(codes[chosen])})
        categories.append({"column": name, "values": found})  # ids 1, 2, ...; id 0: any other value
    return {"numbers": numbers, "categories": categories}


def bin_edges(column):
    """The smallest value of each bin of a number but the first.

    Up to ``BIN_NUM`` distinct values have a bin each. Of more, the positive ones are cut at their quantiles; what is
    not positive is the first bin. (Most columns are 0 for most people.)

    Args:
        column: the training rows' values [N].
    """
    distinct = np.unique(column)
    if len(distinct) <= BIN_NUM:
        return distinct[1:].tolist()
    positive = np.sort(column[column > 0])
    places = np.arange(BIN_NUM) * (len(positive) - 1) // BIN_NUM
    return np.unique(positive[places]).tolist()


def vocabulary_sizes(vocabulary):
    """Number of ids of each column: of the categories, id 0 included, then of the numbers' bins."""
    categories = [len(column["values"]) + 1 for column in vocabulary["categories"]]
    return categories + [len(column["edges"]) + 1 for column in vocabulary["numbers"]]


def encode(rows, chosen, vocabulary):
    """The chosen rows as arrays.

    Args:
        rows: Rows.
        chosen: slice.
        vocabulary: from ``make_vocabulary``.
    Returns:
        {dense: float32 [N, 7], ids: int32 [N, 39], income: uint8 [N], never_married: uint8 [N]}. The last 7 ids are
        the bins of the numbers.
    """
    mean, deviation = (np.array([column[name] for column in vocabulary["numbers"]]) for name in ("mean", "deviation"))
    ids = []
    for column in vocabulary["categories"]:
        codes, values = rows.categories[column["column"]]
        id_of = {value: i for i, value in enumerate(column["values"], 1)}
        ids.append(np.array([id_of.get(value, 0) for value in values], np.int32)[codes[chosen]])
    for column, numbers in zip(vocabulary["numbers"], rows.numbers[chosen].T):
        ids.append(np.searchsorted(column["edges"], numbers, side="right").astype(np.int32))
    return {
        "dense": ((rows.numbers[chosen] - mean) / deviation).astype(np.float32),
        "ids": np.stack(ids, axis=1),
        "income": rows.income[chosen],
        "never_married": rows.never_married[chosen],
    }


def split(test, train=None, sample=False):
    """Which rows are for what: {part: (Rows, slice)}."""
    if train is None:
        total, whole = len(test), OFFICIAL["test"][0]
        first, second = (total * rows // whole for rows in (TRAIN_ROWS, TRAIN_AND_VALIDATION_ROWS))
        parts = {"train": (test, 0, first), "validation": (test, first, second), "test": (test, second, total)}
    else:
        first = len(train) - len(train) // 10
        parts = {
            "train": (train, 0, first), "validation": (train, first, len(train)), "test": (test, 0, len(test))
        }  # fmt: skip
    found = {}
    for part, (rows, begin, end) in parts.items():
        if sample:
            end = min(end, begin + SAMPLE[part])
        if begin == end:
            raise ValueError(f"there are too few rows: none is left for {part}.")
        found[part] = rows, slice(begin, end)
    return found


# ------------------------------------------------------------------------------------- the files


def make(test_path, out, train_path=None, sample=False, unchecked=False):
    """Make the three parts and the vocabulary, and report them.

    Args:
        test_path: the official test file.
        out: folder to write to.
        train_path: the official training file; None: the test file is split into three.
        sample: the first rows of each part only.
        unchecked: take files of any rows.
    Raises:
        ValueError: a file is not the known one, or a row has another form.
        OSError: writing failed.
    """
    for part in SAMPLE:
        _check_alone(os.path.join(out, part), f"{part}.npz")
    test, sources = _rows(test_path, "test", unchecked), {}
    train = None if train_path is None else _rows(train_path, "train", unchecked)
    for role, rows in (("train", train), ("test", test)):
        if rows is not None:
            sources[role] = rows.digest
    parts = split(test, train, sample)
    vocabulary = {"sources": sources, **make_vocabulary(*parts["train"])}
    content = (json.dumps(vocabulary, indent=1) + "\n").encode("ascii")
    digest = hashlib.sha256(content)
    os.makedirs(out, exist_ok=True)
    _write(os.path.join(out, "vocabulary.json"), lambda file: file.write(content))
    for part, (rows, chosen) in parts.items():
        arrays = encode(rows, chosen, vocabulary)
        arrays["vocabulary"] = np.frombuffer(digest.digest(), np.uint8)
        os.makedirs(os.path.join(out, part), exist_ok=True)
        path = os.path.join(out, part, f"{part}.npz")
        _write(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays))
        income, never_married = (arrays[name].mean() for name in ("income", "never_married"))
        print(
            f"{path}: {len(arrays['ids'])} rows, income above 50000: {income:.4f}, never married: {never_married:.4f}, "
            f"unseen categories: {(arrays['ids'][:, : len(CATEGORIES)] == 0).sum()}"
        )
    print(f"{os.path.join(out, 'vocabulary.json')}: SHA-256 {digest.hexdigest()}")
    print(f"for the config: vocabulary_sizes: {vocabulary_sizes(vocabulary)}")


def _rows(path, role, unchecked):
    text, digest = read_text(path, role, unchecked)
    rows = Rows(path, text)
    if not unchecked and len(rows) != OFFICIAL[role][0]:
        raise ValueError(
            f"{path}: it has {len(rows)} rows, but the official {role} file has {OFFICIAL[role][0]}. "
            "Give --unchecked to take it as it is."
        )
    rows.digest = digest
    return rows


def _check_alone(folder, name):
    """Raise ValueError if ``folder`` holds another .npz than ``name``: the reader takes all of them as one set."""
    there = os.listdir(folder) if os.path.isdir(folder) else []
    others = sorted(other for other in there if other.endswith(".npz") and other != name)
    if others:
        path = os.path.join(folder, others[0])
        raise ValueError(f"{path}: it would be read as part of the new set. Remove it, or give another --out.")


def _write(path, write):
    """Write beside ``path`` and rename, so that no half file ever bears the name."""
    temporary = path + ".part"
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--test", required=True, help="the official test file, census-income.test, gzipped or not")
    parser.add_argument("--train", help="the official training file, census-income.data, gzipped or not")
    parser.add_argument("--out", required=True, help="folder to make train, validation and test in")
    parser.add_argument("--sample", action="store_true", help="2000, 500 and 500 rows only")
    parser.add_argument("--unchecked", action="store_true", help="take files of other rows in the same form")
    args = parser.parse_args()
    try:
        make(args.test, args.out, args.train, args.sample, args.unchecked)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
