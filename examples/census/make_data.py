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

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from dselect_k_model import output_files  # noqa: E402  (found by the line above)

COLUMNS = (
    "age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat major_ind_code "
    "major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp capital_gains capital_losses "
    "stock_dividends tax_filer_stat region_prev_res state_prev_res det_hh_fam_stat det_hh_summ instance_weight "
    "mig_chg_msa mig_chg_reg mig_move_reg mig_same mig_prev_sunbelt num_emp fam_under_18 country_father "
    "country_mother country_self citizenship own_or_self vet_question vet_benefits weeks_worked year income_50k"
).split()
NUMBERS = "age wage_per_hour capital_gains capital_losses stock_dividends num_emp weeks_worked".split()
INCOME, MARITAL = "income_50k", "marital_stat"
WEIGHT = "instance_weight"  # how many people a row stands for: not a feature
CATEGORIES = [name for name in COLUMNS if name not in (*NUMBERS, INCOME, MARITAL, WEIGHT)]
INCOMES = {"- 50000.": 0, "50000+.": 1}  # a line ends in a full stop
NEVER_MARRIED = "Never married"
# rows, and the SHA-256 of the text; that of the training file is not known here
OFFICIAL = {
    "train": (199523, None),
    "test": (99762, "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c"),
}
TRAIN_ROWS, TRAIN_AND_VALIDATION_ROWS = 60000, 79762  # of the test file, where there is no other
VOCABULARY = "vocabulary.json"
SAMPLE = {"train": 2000, "validation": 500, "test": 500}  # the first rows of each part
BIN_NUM = 100  # at most so many bins for the positive values of a number
CHUNK = 8192  # rows parsed at a time


# ------------------------------------------------------------------------------ file -> columns


def read_text(path, role, unchecked=False):
    """(text of an official file, gzipped or not; SHA-256 of the unpacked bytes).

    Args:
        path: of the file.
        role: "train" or "test".
        unchecked: accept any text.
    Raises:
        ValueError: it cannot be read, or is another file.
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
            "Get census-income.test.gz again, or give --unchecked to accept other rows of the same form."
        )
    return text, digest


def read_columns(path, text):
    """Parse the lines of a file: {column: (codes int32 [N], values)}, without the weights.

    A row has the value that its code numbers, without blanks around it.

    Raises:
        ValueError: a line has another form; the message names it.
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
    found = zip(COLUMNS, map(np.concatenate, codes), indexes)
    return {name: (array, [value.strip() for value in index]) for name, array, index in found if name != WEIGHT}


def translated(path, columns, name, translate, dtype):
    """A column as numbers [N]; ``translate`` turns a value into its number or raises ValueError."""
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
    """1 for an income above 50 000, else 0."""
    if value not in INCOMES:
        raise ValueError(" or ".join(map(repr, INCOMES)))
    return INCOMES[value]


class Rows:
    """The rows of a file, parsed from its text.

    Raises:
        ValueError: a line has another form; the message names it.
    """

    def __init__(self, path, text, digest=None):
        self.digest = digest
        columns = read_columns(path, text)
        self.numbers = np.stack([translated(path, columns, name, to_number, "f8") for name in NUMBERS], axis=1)
        self.income = translated(path, columns, INCOME, to_income, "u1")
        self.never_married = translated(path, columns, MARITAL, lambda value: value == NEVER_MARRIED, "u1")
        self.categories = {name: columns[name] for name in CATEGORIES}

    def __len__(self):
        return len(self.income)


# --------------------------------------------------------------------------- columns -> arrays


def make_vocabulary(rows, chosen):
    """The content of vocabulary.json, from the training rows: the slice ``chosen`` of ``rows``."""
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
    """The smallest number of each bin but the first, for the training rows' numbers [N].

    Up to ``BIN_NUM`` different numbers have a bin each. If there are more, quantiles of the positive ones are the
    bins, and the other numbers are the first bin. (Most columns are 0 for most people.)
    """
    distinct = np.unique(column)
    if len(distinct) <= BIN_NUM:
        return distinct[1:].tolist()
    positive = np.sort(column[column > 0])
    places = np.arange(BIN_NUM) * (len(positive) - 1) // BIN_NUM
    return np.unique(positive[places]).tolist()


def vocabulary_sizes(vocabulary):
    """Number of ids of each column: the categories, id 0 included, then the bins of the numbers."""
    categories = [len(column["values"]) + 1 for column in vocabulary["categories"]]
    return categories + [len(column["edges"]) + 1 for column in vocabulary["numbers"]]


def encode(rows, chosen, vocabulary):
    """A slice of the rows as arrays, by the content of vocabulary.json.

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
    """The rows of each part: {part: (Rows, slice)}."""
    if train is None:
        total, whole = len(test), OFFICIAL["test"][0]
        first, second = (total * rows // whole for rows in (TRAIN_ROWS, TRAIN_AND_VALIDATION_ROWS))
        parts = {"train": (test, 0, first), "validation": (test, first, second), "test": (test, second, total)}
    else:
        first = len(train) - len(train) // 10
        parts = {"train": (train, 0, first), "validation": (train, first, len(train)), "test": (test, 0, len(test))}
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
    """Make the three parts and the vocabulary in the folder ``out``, and report them; see ``main`` for the arguments.

    Raises:
        ValueError: a file is not the official one, or a row has another form.
        OSError: a file cannot be written.
    """
    for part in SAMPLE:
        output_files.check_alone(os.path.join(out, part), f"{part}.npz")
        output_files.check_file(_path(out, part), "--out")
    output_files.check_file(os.path.join(out, VOCABULARY), "--out")
    test = _rows(test_path, "test", unchecked)
    train = None if train_path is None else _rows(train_path, "train", unchecked)
    sources = {role: rows.digest for role, rows in (("train", train), ("test", test)) if rows is not None}
    parts = split(test, train, sample)
    vocabulary = {"sources": sources, **make_vocabulary(*parts["train"])}
    content = (json.dumps(vocabulary, indent=1) + "\n").encode("ascii")
    digest = hashlib.sha256(content)
    output_files.write_file(os.path.join(out, VOCABULARY), lambda file: file.write(content), "--out")
    for part, (rows, chosen) in parts.items():
        arrays = encode(rows, chosen, vocabulary)
        arrays["vocabulary"] = np.frombuffer(digest.digest(), np.uint8)
        path = _path(out, part)
        output_files.write_file(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays), "--out")
        income, never_married = (arrays[name].mean() for name in ("income", "never_married"))
        print(
            f"{path}: {len(arrays['ids'])} rows, income above 50000: {income:.4f}, never married: {never_married:.4f}, "
            f"unseen categories: {(arrays['ids'][:, : len(CATEGORIES)] == 0).sum()}"
        )
    print(f"{os.path.join(out, VOCABULARY)}: SHA-256 {digest.hexdigest()}")
    print(f"for the config: vocabulary_sizes: {vocabulary_sizes(vocabulary)}")


def _rows(path, role, unchecked):
    rows = Rows(path, *read_text(path, role, unchecked))
    if not unchecked and len(rows) != OFFICIAL[role][0]:
        raise ValueError(
            f"{path}: it has {len(rows)} rows, but the official {role} file has {OFFICIAL[role][0]}. "
            "Give --unchecked to accept it as it is."
        )
    return rows


def _path(out, part):
    return os.path.join(out, part, f"{part}.npz")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--test", required=True, help="the official test file, census-income.test, gzipped or not")
    parser.add_argument("--train", help="the official training file, census-income.data, gzipped or not")
    parser.add_argument("--out", required=True, help="folder to make train, validation and test in")
    parser.add_argument("--sample", action="store_true", help="2000, 500 and 500 rows only")
    parser.add_argument("--unchecked", action="store_true", help="take files of other rows in the same form")
    args = parser.parse_args()
    with output_files.exit_on_error():
        make(args.test, args.out, args.train, args.sample, args.unchecked)


if __name__ == "__main__":
    main()
