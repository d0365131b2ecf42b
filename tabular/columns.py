"""The columns of a block: pyarrow's arrays as NumPy arrays, and which rows are bad."""

import collections.abc

import numpy as np

from tabular import values as table_values


def pyarrow():
    """The module pyarrow.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"CSV and Parquet files are read by pyarrow ({error}). Run: pip install pyarrow") from error
    return pyarrow


class NotNumbers(ValueError):
    """A column that should be numbers has none.

    Args:
        path: of the file.
        column: its name.
        found: what it has instead, for the message.
    """

    def __init__(self, path, column, found):
        super().__init__(f"{path}: the column {column} has no numbers: {found}.")
        self.column = column


class Texts(collections.abc.Sequence):
    """The texts of an Arrow array without nulls. To read many of them, iterate, or call ``texts_at``."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        return self.array[int(i)].as_py()

    def __iter__(self):
        return iter(self.array.to_pylist())


def texts_at(texts, places):
    """The texts at some places of a list or of Texts, as a list."""
    if isinstance(texts, Texts):
        return texts.array.take(pyarrow().array(places)).to_pylist()
    return [texts[i] for i in places]


class Column:
    """A column of a block.

    Args:
        values: as in ``Rows``: float64 [N], (codes int32 [N], texts), or (lengths int [N], codes, texts); the texts are
            a list, or ``Texts``.
        wrong: bool [N], or None: the rows whose field cannot be used.
        why: function: row -> what is wrong with its field, to follow the column's name: "is 'x', not a number".
        error: NotNumbers, if no field that is not empty is a number, and there are several.
    """

    def __init__(self, values, wrong=None, why=None, error=None):
        self.values, self.wrong, self.why, self.error = values, wrong, why, error


class Rows:
    """The rows of a block as columns, and which of them are bad.

    Args:
        place: function: a row of the block, from 0 -> "file, line 7".
        numbers, categories, lists: name -> Column.
        cut: pairs (row of the block, what is wrong) of rows that are not in the columns.

    Attributes:
        numbers: name -> float64 [N], nan where the field is empty.
        categories: name -> (codes int32 [N], texts): a row has the text that its code numbers, "" if it is empty.
        lists: name -> (lengths int [N], codes int32 [sum of the lengths], texts): the codes of the first row first.
        good: bool [N].
        without_numbers: the NotNumbers of a column; None if there is none.
    """

    def __init__(self, place, numbers, categories, lists, cut=()):
        self.place = place
        self.numbers = {name: column.values for name, column in numbers.items()}
        self.categories = {name: column.values for name, column in categories.items()}
        self.lists = {name: column.values for name, column in lists.items()}
        of_rows = [*self.numbers.values(), *(parts[0] for parts in (*self.categories.values(), *self.lists.values()))]
        self.good = np.ones(len(of_rows[0]), bool)
        self.cut = dict(cut)
        self.bad = dict(cut)  # row of the block -> what is wrong; the first row of each kind of mistake
        self.without_numbers = next((column.error for column in numbers.values() if column.error), None)
        for name, column in self.numbers.items():
            self.refuse(np.isinf(column), lambda i, name=name: f"{name} is infinite")
        for name, column in {**numbers, **categories, **lists}.items():
            if column.wrong is not None:
                self.refuse(column.wrong, lambda i, name=name, why=column.why: f"{name} {why(i)}")

    def refuse(self, wrong, why):
        """Mark rows as bad: ``wrong`` bool [N]; ``why(i)`` says what is wrong with row i."""
        if wrong.any():
            first = int(np.argmax(wrong))  # not counting rows that were cut; but if one was before it, that is reported
            self.bad.setdefault(first, why(first))
            self.good &= ~wrong

    def bad_num(self):
        """How many rows are bad."""
        return len(self.cut) + int((~self.good).sum())

    def first_bad(self):
        """Where the first bad row is, and what is wrong: "file, line 7: why"."""
        row = min(self.bad)
        return f"{self.place(row)}: {self.bad[row]}"


def number_column(column, path, name):
    """An Arrow array -> Column of numbers.

    Raises:
        NotNumbers: its type has no numbers.
    """
    arrow = pyarrow()
    kinds, column = arrow.types, _plain(column)
    value_type = _value_type(column)
    is_number = kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null
    if any(is_kind(value_type) for is_kind in is_number):
        column = column.dictionary_decode() if kinds.is_dictionary(column.type) else column
        return Column(column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False))
    if not (kinds.is_string(value_type) or kinds.is_binary(value_type)):
        raise NotNumbers(path, name, f"its type is {value_type}")
    codes, values, reasons = _coded(column, table_values.number_of)
    made = _column(codes, np.array(values, np.float64)[codes], reasons)
    if reasons and np.isnan(made.values).all() and made.wrong.sum() > 1:
        made.error = NotNumbers(path, name, f"one field {next(iter(reasons.values()))}")
    return made


def text_column(column, path, name):
    """An Arrow array -> Column of texts, as ``tabular.values`` writes them.

    Raises:
        ValueError: its type is nested, or a duration.
    """
    kinds, column = pyarrow().types, _plain(column)
    value_type = _value_type(column)
    if kinds.is_nested(value_type) or kinds.is_duration(value_type) or kinds.is_interval(value_type):
        raise ValueError(f"{path}: the column {name} is of type {value_type}, not of texts, numbers or times.")
    codes, values, reasons = _coded(column, table_values.text_of)
    return _column(codes, (codes, values), reasons)


def list_column(column, path, name, separator=""):
    """An Arrow array -> Column of lists of texts.

    Args:
        column: of lists; or of texts, whose parts are separated.
        separator: between the parts; a blank stands for one or several. Empty parts are left out.
    Raises:
        ValueError: it has neither lists nor texts, or texts and there is no separator.
    """
    arrow, column, faults = pyarrow(), _plain_list(column), []  # faults: (bool [N], function: row -> what is wrong)
    if not _is_list(column.type):
        _check_separated(column, path, name, separator)
        codes, texts, reasons = _coded(column, table_values.raw_text)
        faults.append((np.isin(codes, list(reasons)), lambda i: reasons[int(codes[i])]))
        in_brackets = np.array([text[:1] == "[" and text[-1:] == "]" for text in texts])[codes]
        faults.append((in_brackets, lambda i: f"is {texts[codes[i]]!r:.100}: write its parts without brackets"))
        column = _split(texts, separator).take(arrow.array(codes))
    elif arrow.types.is_nested(column.type.value_type):
        raise ValueError(f"{path}: the column {name} is of type {column.type}, not of lists of texts or numbers.")
    lengths = arrow.compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    item_codes, items, wrong_items = _coded(_plain(column.flatten()), table_values.text_of)
    if wrong_items:
        is_wrong = np.isin(item_codes, list(wrong_items))
        # backwards, so that a row's first wrong one stays
        code_of = dict(zip(rows[is_wrong][::-1].tolist(), item_codes[is_wrong][::-1].tolist()))
        wrong = np.isin(np.arange(len(lengths)), rows[is_wrong])
        faults.append((wrong, lambda i: f"has an id that {wrong_items[code_of[i]]}"))
    is_filled = np.array([bool(text) for text in items])[item_codes]
    lengths, item_codes = np.bincount(rows[is_filled], minlength=len(lengths)), item_codes[is_filled]
    wrong = np.any([mask for mask, _ in faults], axis=0) if faults else None
    return Column((lengths, item_codes, items), wrong, lambda i: next(why(i) for mask, why in faults if mask[i]))


def _plain_list(column):
    """``_plain``, and lists as Arrow's usual ones; a column of nothing but nulls has empty lists."""
    arrow, column = pyarrow(), _plain(column)
    if arrow.types.is_null(column.type):
        return column.cast(arrow.list_(arrow.string()))
    if arrow.types.is_dictionary(column.type) and _is_list(column.type.value_type):
        return column.dictionary_decode()
    if "list_view" in str(column.type):
        return column.cast(arrow.list_(column.type.value_type))
    return column


def _check_separated(column, path, name, separator):
    """Raise ValueError if a column that has no lists has no texts either, or there is no separator."""
    arrow, value_type = pyarrow(), _value_type(column)
    if not (arrow.types.is_string(value_type) or arrow.types.is_binary(value_type)):
        raise ValueError(f"{path}: the column {name} is of type {value_type}, not of lists or texts.")
    if not separator:
        raise ValueError(f"{path}: the column {name} has texts, not lists. Give --separator to make_vocabulary.py.")


def _is_list(kind):
    kinds = pyarrow().types
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def _split(texts, separator):
    """Texts -> an Arrow array of lists of their parts; of a text without a character, an empty one."""
    arrow = pyarrow()
    texts = arrow.array([text or None for text in texts], arrow.string())
    if separator.isspace() and separator != "\t":
        return arrow.compute.utf8_split_whitespace(texts)
    return arrow.compute.split_pattern(texts, separator)


def _column(codes, values, reasons):
    """A Column in which the codes in ``reasons`` are wrong."""
    if not reasons:
        return Column(values)
    return Column(values, np.isin(codes, list(reasons)), lambda i: reasons[int(codes[i])])


def _value_type(column):
    """The type of an Arrow array's values, in a dictionary or not."""
    return column.type.value_type if pyarrow().types.is_dictionary(column.type) else column.type


def _plain(column):
    """An Arrow array without special ways of storing: dictionaries, texts, bytes, numbers or times."""
    arrow = pyarrow()
    if isinstance(column, arrow.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(column, arrow.ExtensionArray):
        name, stored = getattr(column.type, "extension_name", ""), column.storage
        if name == "arrow.uuid":
            stored = arrow.array(map(table_values.text_of, column.to_pylist()), arrow.string())
        column = stored.cast(arrow.bool_()) if name == "arrow.bool8" else stored
    if str(column.type).startswith("run_end_encoded"):
        column = arrow.compute.run_end_decode(column)
    kind = _value_type(column)
    if str(kind) in ("large_string", "string_view"):
        plain = arrow.string()
    elif str(kind) in ("large_binary", "binary_view") or arrow.types.is_fixed_size_binary(kind):
        plain = arrow.binary()
    else:
        return column
    is_dictionary = arrow.types.is_dictionary(column.type)
    return column.cast(arrow.dictionary(column.type.index_type, plain) if is_dictionary else plain)


def _coded(column, convert):
    """An Arrow array as codes.

    Args:
        column: of ``_plain``.
        convert: ``text_of``, ``raw_text`` or ``number_of``.
    Returns:
        (codes int32 [N], the converted values, code -> what is wrong with its value). The last value is that of a null.
    """
    arrow = pyarrow()
    if column.type == arrow.float16():  # for which there is no dictionary
        column = column.cast(arrow.float32())
    coded = column if arrow.types.is_dictionary(column.type) else column.dictionary_encode()
    null = arrow.nulls(1, coded.dictionary.type)
    values, reasons = _converted(arrow.concat_arrays([coded.dictionary, null]), convert)
    codes = coded.indices.cast(arrow.int32()).fill_null(len(values) - 1)  # int8 might not hold the null's code
    return codes.to_numpy(zero_copy_only=False), values, reasons


def _converted(values, convert):
    """(An Arrow array's converted values: a list, or Texts; index -> what is wrong with the value there)."""
    arrow = pyarrow()
    kinds, is_text = arrow.types, convert is not table_values.number_of
    if convert is table_values.text_of and kinds.is_integer(values.type):
        return Texts(values.cast(arrow.string()).fill_null("")), {}
    if convert is table_values.text_of and kinds.is_string(values.type):
        return _texts(values)
    if kinds.is_floating(values.type):
        objects = list(values.to_numpy(zero_copy_only=False))  # of their own width, on which their texts depend
    elif kinds.is_temporal(values.type) or kinds.is_decimal(values.type):
        objects = values.cast(arrow.string()).to_pylist()
    else:
        objects = values.to_pylist()
    found, reasons = [], {}
    for i, value in enumerate(objects):
        try:
            found.append(convert(value))
        except ValueError as error:
            found.append("" if is_text else np.nan)
            reasons[i] = str(error)
    return found, reasons


def _texts(values):
    """``_converted`` of texts: pyarrow finds those few that Python has to look at."""
    arrow = pyarrow()
    try:
        trimmed = arrow.compute.utf8_trim_whitespace(values).fill_null("")
        trimmed.validate(full=True)  # trimming alone does not look at every byte
        several_ways = _written_in_several_ways(trimmed)
    except (UnicodeDecodeError, arrow.ArrowInvalid):  # a file may declare any bytes to be text
        return _converted(values.cast(arrow.binary()), table_values.text_of)
    if not several_ways:
        return Texts(trimmed), {}
    texts, reasons = trimmed.to_pylist(), {}
    for i in several_ways:
        try:
            texts[i] = table_values.one_way(texts[i])
        except ValueError as error:
            texts[i], reasons[i] = "", str(error)
    return texts, reasons


def _written_in_several_ways(texts):
    """The indices of the texts that match ``SEVERAL_WAYS``. Most texts are digits alone, which is faster to see."""
    compute = pyarrow().compute
    places = np.flatnonzero(~compute.ascii_is_decimal(texts).to_numpy(zero_copy_only=False))
    found = compute.match_substring_regex(texts.take(pyarrow().array(places)), table_values.SEVERAL_WAYS)
    return places[found.to_numpy(zero_copy_only=False)].tolist()
