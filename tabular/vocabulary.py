"""vocabulary.json: how the columns of a table become numbers. ``data/make_vocabulary.py`` makes it from training rows.

``numbers`` are encoded as tabular/numbers.py says, by what is given for each column. Each of ``categories`` has a
list of values: the id of a value is its position in the list, from 1; id 0 is for other values and for empty fields.
tabular/values.py decides which value a field is. ``labels`` (optional) are names of columns, in the order of the tasks.
Unknown keys are ignored.
"""

import collections
import itertools
import json

import numpy as np

from tabular.columns import Rows, number_column, text_column
from tabular.numbers import Number
from tabular.values import number_of, one_way, text_of

LABELS_ARE = (
    "Labels are numbers: 0 and 1 for no and yes, classes from 0 up, or amounts; or texts, which the task lists in "
    "classes."
)
DENSE, SIZES = "hyper_parameters.input.dense_size", "hyper_parameters.input.vocabulary_sizes"


class Vocabulary:
    """A vocabulary file.

    Args:
        path: of the file.
    Raises:
        ValueError: it cannot be read, or is not a vocabulary.
    """

    def __init__(self, path):
        self.path = path
        try:
            with open(path, "rb") as file:
                form = json.loads(file.read())
            self.numbers = [Number.read(entry) for entry in form["numbers"]]
            self.categories = [(str(c["column"]), [str(v) for v in c["values"]]) for c in form["categories"]]
            self.labels = [str(c["column"]) for c in form.get("labels", [])]
            self._check()
        except OSError as error:
            raise ValueError(f"{path}: the vocabulary cannot be read ({error.strerror}).") from error
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: this is not a vocabulary ({reason:.200}). Make it again.") from error
        self.ids = [{one_way(value): i for i, value in enumerate(values, 1)} for _, values in self.categories]

    def _check(self):
        for column, values in self.categories:
            spellings = collections.Counter(map(one_way, values))
            if spellings.get("") or len(spellings) < len(values):
                value = max(spellings, key=lambda value: (value == "", spellings[value]))
                raise ValueError(f"a value of {column} is empty or a duplicate: {value!r}")
        names = [*self.inputs(), *self.labels]
        if len(set(names)) < len(names) or not self.inputs():
            raise ValueError("it has no column, or a column twice")

    def inputs(self):
        """Names of the columns that the network's inputs are made of."""
        return [*(number.column for number in self.numbers), *(name for name, _ in self.categories)]

    def dense_size(self):
        """Number of inputs that the columns of numbers have together."""
        return sum(number.width for number in self.numbers)

    def sizes(self):
        """Number of ids of each categorical column, id 0 included."""
        return [len(values) + 1 for _, values in self.categories]

    def check_config(self, config):
        """Raise ValueError if a config describes other inputs."""
        for key, mine in ((DENSE, self.dense_size()), (SIZES, self.sizes())):
            given = config.get(key) or type(mine)()
            if given != mine:
                raise ValueError(
                    f"{self.path}: its columns have {key.rpartition('.')[2]} {mine}, but {key} is {given}. "
                    f"Set {key} to {mine}, or give the vocabulary that the config was made for."
                )

    def dense(self, columns):
        """The numbers of some rows, encoded.

        Args:
            columns: the rows as columns by name: a dict of lists or arrays, or a table of pandas, pyarrow or polars.
                A field may be what a file's may be: a number or its text, true or false; if empty, None, NaN, blanks
                or one of ``values.NULL_TEXTS``.
        Returns:
            float32 [N, ``dense_size()``].
        Raises:
            ValueError: a column is missing, or has another length, or a field that is not a finite number or does not
                fit float32 when standardised.
        """
        found = _read(columns, [number.column for number in self.numbers], is_number=True)
        made, misfits = self.encoded_numbers(found)
        for name, wrong in misfits.items():
            row = int(np.argmax(wrong))
            raise ValueError(f"row {row}: {self.does_not_fit(name, found[name], row)}.")
        return made

    @staticmethod
    def does_not_fit(name, column, row):
        """The message for a number that does not fit."""
        return f"{name} is {column[row]:g}, which does not fit float32 when standardised"

    def encoded_numbers(self, columns):
        """Like ``dense``, for columns as the reader has them.

        Args:
            columns: name -> float64 [N], nan where a field is empty.
        Returns:
            (float32 [N, ``dense_size()``]; the columns with numbers that do not fit float32: name -> bool [N]).
        """
        made, misfits = [np.empty([0, 0], np.float32)] * (not self.numbers), {}
        for number in self.numbers:
            made.append(number.encode(columns[number.column]))
            wrong = np.isinf(made[-1][:, 0])
            if wrong.any():
                misfits[number.column] = wrong
        return np.concatenate(made, axis=1), misfits

    def encode(self, columns):
        """The ids of some rows.

        Args:
            columns: as for ``dense``. A field may be a text, a number, a truth value, a date or a time.
        Returns:
            int32 [N, number of categories]; 0 where a field is empty or its value is not in the vocabulary.
        Raises:
            ValueError: a column is missing, or has another length, or a field that is none of these, or a float too
                large to be an exact whole number.
        """
        ids, _ = self.encoded(_read(columns, [name for name, _ in self.categories], is_number=False))
        return ids

    def encoded(self, columns):
        """Like ``encode``, for columns as the reader has them; and what is not in the vocabulary.

        Args:
            columns: name -> (codes int [N], texts): a row has the text that its code numbers.
        Returns:
            (ids int32 [N, number of categories]; for each category: how many rows have a value without an id, how many
            have a value, and up to three values without an id).
        """
        ids, unknown = [], []
        for (name, _), id_of in zip(self.categories, self.ids):
            codes, texts = columns[name]
            of_texts = np.fromiter(map(id_of.get, texts, itertools.repeat(0)), np.int32, len(texts))
            ids.append(of_texts[codes])
            counts = np.bincount(codes, minlength=len(texts))
            without_id = np.flatnonzero((of_texts == 0) & (counts > 0))
            found = [i for i in without_id if texts[i]]
            filled = len(codes) - counts[[i for i in without_id if not texts[i]]].sum()
            unknown.append((int(counts[found].sum()), int(filled), [texts[i] for i in found[:3]]))
        return np.stack(ids, axis=1), unknown


def _read(columns, names, is_number):
    """Columns of a user's program, as ``encoded_numbers`` and ``encoded`` take them: name -> values."""
    found = {name: _read_column(columns, name, is_number) for name in names}
    sizes = {name: len(values if is_number else values[0]) for name, values in found.items()}
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the columns have different lengths: {lengths}.")
    return found


def _read_column(columns, name, is_number):
    known = getattr(columns, "column_names", getattr(columns, "columns", None))  # of pyarrow; of pandas and polars
    known = columns if known is None else known
    if name not in known:
        raise ValueError(f"there is no column {name!r}; the columns are: {', '.join(map(str, known)) or 'none'}.")
    column = columns[name]
    if hasattr(column, "to_arrow"):  # polars
        column = column.to_arrow()
    if type(column).__module__.startswith("pyarrow"):
        made = (number_column if is_number else text_column)(column, "the table", name)
        rows = Rows("row {}".format, *(({name: made}, {}) if is_number else ({}, {name: made})))
        if rows.bad_num():
            raise ValueError(f"{rows.first_bad()}.")
        return made.values
    items = column
    if hasattr(column, "to_numpy"):  # pandas: numbers of its own types would become floats where one is missing
        is_numpys = isinstance(getattr(column, "dtype", None), np.dtype)
        items = column.to_numpy() if is_numpys else column.to_numpy(dtype=object)
    if isinstance(items, (str, bytes)) or not hasattr(items, "__iter__") or getattr(items, "ndim", 1) != 1:
        raise ValueError(f"the column {name} must be a list with a value for each row, not {column!r:.100}.")
    converted = []
    for row, value in enumerate(items):
        try:
            converted.append((number_of if is_number else text_of)(value))
        except ValueError as error:
            raise ValueError(f"row {row}: {name} {error}.") from error
    return np.array(converted, np.float64) if is_number else (np.arange(len(converted)), converted)
