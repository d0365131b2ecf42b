"""vocabulary.json: how the columns of a table become numbers. ``data/make_vocabulary.py`` makes it from training rows.

``numbers`` are encoded as tabular/numbers.py says, and ``categories`` as tabular/categories.py says, by what is given
for each column: ``values``, ``hash`` or ``edges`` (bins of numbers), or ``like``, the name of another column; of lists
also ``pooling`` and ``separator``. tabular/values.py decides which value a field is. ``labels`` (optional) are names of
columns, in the order of the tasks. ``weight`` and ``group`` (optional) name the columns of the rows' weights and
groups. Unknown keys are ignored.
"""

import functools
import json
import re

import numpy as np

from tabular import categories
from tabular.columns import Rows, list_column, number_column, pyarrow, text_column, texts_at
from tabular.lists import Lists
from tabular.numbers import Number, Numbers
from tabular.values import is_missing, number_of, text_of

LABELS_ARE = (
    "Labels are numbers: 0 and 1 for no and yes, classes from 0 up, or amounts; or texts, which the task lists in "
    "classes."
)
INPUT = "hyper_parameters.input."
_FRACTION = re.compile(r"-?\d+\.\d*[1-9]\d*")
EMPTY = {  # the keys under it that a vocabulary decides, and what they are without such columns
    "dense_size": 0,
    **{name: [] for name in ("vocabulary_sizes", "list_sizes", "list_pooling", "shared_embeddings")},
    **{name: False for name in ("example_weights", "groups")},
}


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
            found = categories.read(form["categories"])
            self.categories = [category for category in found if not category.pooling]
            self.lists = [category for category in found if category.pooling]
            self.labels = [str(c["column"]) for c in form.get("labels", [])]
            self.about = {name: str(form[name]) for name in ("weight", "group") if name in form}  # name -> column
            self._check()
        except OSError as error:
            raise ValueError(f"{path}: the vocabulary cannot be read ({error.strerror}).") from error
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: this is not a vocabulary ({reason:.200}). Make it again.") from error

    def _check(self):
        names = [*self.inputs(), *self.labels]
        if len(set(names)) < len(names) or not self.inputs():
            raise ValueError("it has no column, or a column twice")
        weight, group = (self.about.get(name) for name in ("weight", "group"))
        texts = [category.column for category in self.categories if not category.ids.of_numbers]
        if weight in [*names, group or ""] or (group in names and group not in texts):
            raise ValueError("its weight is not a column of its own, or its group that of a number or label")

    def inputs(self):
        """Names of the columns that the network's inputs are made of."""
        return [column.column for column in (*self.numbers, *self.categories, *self.lists)]

    def columns_read(self):
        """(Names of the columns that are read as numbers; of those that are read as texts, a value each)."""
        of_numbers = [category.column for category in self.categories if category.ids.of_numbers]
        numbers = [*(number.column for number in self.numbers), *of_numbers]
        return numbers, [category.column for category in self.categories if category.column not in of_numbers]

    def config(self):
        """The keys under ``hyper_parameters.input`` that describe these columns, without those that are empty."""
        fields = [*self.categories, *self.lists]
        sharing = {}  # the ids of some fields -> their numbers
        for i, field in enumerate(fields):
            sharing.setdefault(id(field.ids), []).append(i)
        found = {
            "dense_size": sum(number.width for number in self.numbers),
            "vocabulary_sizes": [category.ids.size for category in self.categories],
            "list_sizes": [category.ids.size for category in self.lists],
            "list_pooling": [category.pooling for category in self.lists],
            "shared_embeddings": [group for group in sharing.values() if len(group) > 1],
            "example_weights": "weight" in self.about,
            "groups": "group" in self.about,
        }
        return {name: value for name, value in found.items() if value}

    def check_config(self, config):
        """Raise ValueError if a config describes other inputs, or other weights and groups."""
        mine = self.config()
        for name, empty in EMPTY.items():
            given, wanted = config.get(INPUT + name) or empty, mine.get(name, empty)
            if name == "list_pooling" and not given and {*wanted} == {"mean"}:
                continue  # the default
            if given != wanted:
                given, wanted = (json.dumps(value, default=str) for value in (given, wanted))
                raise ValueError(
                    f"{self.path}: its columns have {name} {wanted}, but {INPUT}{name} is {given}. Set it to {wanted}, "
                    "or give the vocabulary that the config was made for."
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
        return self._dense(_read(columns, numbers=[number.column for number in self.numbers]))

    def _dense(self, found):
        numbers, misfits = self.numbers_of(found)
        for name, wrong in misfits.items():
            row = int(np.argmax(wrong))
            raise ValueError(f"row {row}: {self.does_not_fit(name, found[name], row)}.")
        return np.asarray(numbers)

    @staticmethod
    def does_not_fit(name, column, row):
        """The message for a number that does not fit."""
        return f"{name} is {column[row]:g}, which does not fit float32 when standardised"

    def numbers_of(self, columns):
        """Like ``dense``, for columns as the reader has them.

        Args:
            columns: name -> float64 [N], nan where a field is empty.
        Returns:
            (Numbers; the columns with numbers that do not fit float32: name -> bool [N]).
        """
        values = [columns[number.column] for number in self.numbers]
        wrong = {number.column: number.does_not_fit(column) for number, column in zip(self.numbers, values)}
        misfits = {name: rows for name, rows in wrong.items() if rows.any()}
        return Numbers(self.numbers, np.stack(values, axis=1) if values else np.empty([0, 0])), misfits

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
        numbers, texts = self.columns_read()
        numbers = [name for name in numbers if name in self._names(self.categories)]
        ids, _ = self._encoded_categories(_read(columns, numbers, texts))
        return ids[0]

    @staticmethod
    def _names(columns):
        return [column.column for column in columns]

    def inputs_of(self, columns):
        """The network's inputs for some rows, in the order of its feeds.

        Args:
            columns: as for ``dense`` and ``encode``. A field of a column of lists is a list of such values, or a text
                with the column's separator.
        Returns:
            ([what ``dense`` gives, what ``encode`` gives], without one that has no columns, then Lists for each column
            of lists; column -> what is not in the vocabulary, as ``encoded`` says it).
        Raises:
            ValueError: as ``dense`` and ``encode`` do; or a number has a fraction, but all values of its category are
                whole numbers.
        """
        found = _read(columns, *self.columns_read(), self.lists)
        self._refuse_fractions(found)
        ids, unknown = self.encoded(found, found)
        inputs = [self._dense(found)] if self.numbers else []
        return inputs + ids, dict(zip(self._names((*self.categories, *self.lists)), unknown))

    def _refuse_fractions(self, found):
        for category in (*self.categories, *self.lists):
            if category.ids.of_numbers:
                continue
            *lengths, codes, texts = found[category.column]
            has_fraction = [bool(_FRACTION.fullmatch(text)) for text in texts]
            places = np.flatnonzero(np.array(has_fraction, bool)[codes])
            if len(places) and category.ids.are_whole():
                row = np.searchsorted(np.cumsum(lengths[0]), places[0], side="right") if lengths else places[0]
                raise ValueError(
                    f"row {row}: {category.column} is {texts[codes[places[0]]]}, but all its values in {self.path} are "
                    "whole numbers. Give a whole number, or None if there is none."
                )

    def encoded(self, columns, lists):
        """The ids of columns as the reader has them, and what is not in the vocabulary.

        Args:
            columns: name -> (codes int [N], texts): a row has the text that its code numbers; of bins float64 [N].
            lists: name -> (lengths int [N], codes, texts), likewise: see ``columns.Rows``.
        Returns:
            ([int32 [N, number of categories], if there are any, and Lists for each column of lists]; for each of these
            columns: how many of its values have no id, how many values there are, and up to three without an id).
        """
        made, unknown = self._encoded_categories(columns)
        for category in self.lists:
            lengths, codes, texts = lists[category.column]
            of_texts = category.ids.of(texts)
            made.append(Lists(of_texts[codes], lengths))
            unknown.append(_without_id(of_texts, codes, texts))
        return made, unknown

    def _encoded_categories(self, columns):
        """``encoded`` without lists."""
        ids, unknown = [], []
        for category in self.categories:
            if category.ids.of_numbers:
                ids.append(category.ids.of(columns[category.column]))
                unknown.append((0, 0, []))
                continue
            codes, texts = columns[category.column]
            of_texts = category.ids.of(texts)
            ids.append(of_texts[codes])
            unknown.append(_without_id(of_texts, codes, texts))
        return [np.stack(ids, axis=1)] if ids else [], unknown


def _without_id(ids, codes, texts):
    """(Values without an id, values, up to three texts without one) among codes of texts, which have these ids."""
    counts = np.bincount(codes, minlength=len(texts))
    without_id = np.flatnonzero((ids == 0) & (counts > 0))
    found = dict(zip(without_id.tolist(), texts_at(texts, without_id)))
    empty = [i for i, text in found.items() if not text]
    unknown = [i for i, text in found.items() if text]
    examples = dict.fromkeys(found[i] for i in unknown[:100])  # a user's program may give a text several times
    return int(counts[unknown].sum()), int(len(codes) - counts[empty].sum()), list(examples)[:3]


def _read(columns, numbers=(), categories=(), lists=()):
    """Columns of a user's program, as ``numbers_of`` and ``encoded`` take them: name -> values.

    Args:
        columns: see ``Vocabulary.dense``.
        numbers, categories: names of columns.
        lists: the Category of each column of lists.
    """
    found = {name: _read_column(columns, name, number_column, _numbers) for name in numbers}
    found.update({name: _read_column(columns, name, text_column, _texts) for name in categories})
    for of in lists:
        separated = functools.partial(list_column, separator=of.separator)
        found[of.column] = _read_column(columns, of.column, separated, functools.partial(_lists, separated=separated))
    sizes = {name: len(values[0] if isinstance(values, tuple) else values) for name, values in found.items()}
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the columns have different lengths: {lengths}.")
    return found


def _read_column(columns, name, of_arrow, of_items):
    """The values of a column.

    Args:
        of_arrow: of ``columns``: (Arrow array, path, name) -> Column.
        of_items: (Python objects, name) -> values.
    """
    known = getattr(columns, "column_names", getattr(columns, "columns", None))  # of pyarrow; of pandas and polars
    known = columns if known is None else known
    if list(known).count(name) > 1:
        raise ValueError(f"there are two columns {name!r}.")
    if name not in known:
        raise ValueError(f"there is no column {name!r}; the columns are: {', '.join(map(str, known)) or 'none'}.")
    column = columns[name]
    if hasattr(column, "to_arrow"):  # polars
        column = column.to_arrow()
    if type(column).__module__.startswith("pyarrow"):
        return _values_of(of_arrow(column, "the table", name), name)
    items = column
    if hasattr(column, "to_numpy"):  # pandas: numbers of its own types would become floats where one is missing
        is_numpys = isinstance(getattr(column, "dtype", None), np.dtype)
        items = column.to_numpy() if is_numpys else column.to_numpy(dtype=object)
    if isinstance(items, (str, bytes)) or not hasattr(items, "__iter__") or getattr(items, "ndim", 1) != 1:
        raise ValueError(f"the column {name} must be a list with a value for each row, not {column!r:.100}.")
    return of_items(items, name)


def _values_of(column, name):
    """The values of a Column without bad rows."""
    kinds = [{}, {}, {}]
    kinds[len(column.values) - 1 if isinstance(column.values, tuple) else 0] = {name: column}
    rows = Rows("row {}".format, *kinds)
    if rows.bad_num():
        raise ValueError(f"{rows.first_bad()}.")
    return column.values


def _converted(items, name, convert):
    found = []
    for row, value in enumerate(items):
        try:
            found.append(convert(value))
        except ValueError as error:
            raise ValueError(f"row {row}: {name} {error}.") from error
    return found


def _numbers(items, name):
    return np.array(_converted(items, name, number_of), np.float64)


def _texts(items, name):
    texts = _converted(items, name, text_of)
    return np.arange(len(texts)), texts


def _lists(items, name, separated):
    """Lists of values, or texts of them, as ``list_column`` reads them."""
    arrow, items = pyarrow(), list(items)
    if any(isinstance(item, (str, bytes)) for item in items):
        array = arrow.array(_converted(items, name, text_of), arrow.string())
    else:
        array = arrow.array(_converted(items, name, _list_of_texts), arrow.list_(arrow.string()))
    return _values_of(separated(array, "the table", name), name)


def _list_of_texts(item):
    if not hasattr(item, "__iter__") and not is_missing(item):
        raise ValueError(f"is {item!r:.100}, not a list")
    return [text_of(value) for value in item] if hasattr(item, "__iter__") else []
