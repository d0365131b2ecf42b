"""CSV and Parquet files -> blocks of rows, column by column, by pyarrow. Knows no vocabulary and no network.

A file is never held as a whole: a block is a few megabytes of it. Blocks of a plain CSV file, and row groups of a
Parquet file, can be read in any order; a compressed CSV file, and a row group, from their beginnings on.

A CSV file has the columns' names in its first line, and one row a line: a field has no line break in it.
"""

import contextlib
import io
import os
import re

import numpy as np

SUFFIXES = (".csv", ".tsv", ".parquet")  # .csv and .tsv compressed as well
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # a suffix, as pyarrow calls it
BLOCK_BYTES = 1 << 22  # of CSV text, before the line that it ends in
BLOCK_ROWS = 1 << 14  # of Parquet
LONGEST_LINE = 1 << 24
BLANK_LINE = re.compile(rb"(?:\A|(?<=\n))\r?\n")


def pyarrow():
    """The module pyarrow.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"CSV and Parquet files are read by pyarrow ({error}). Run: pip install pyarrow") from error
    return pyarrow


def table_paths(paths):
    """Those of ``paths`` that are CSV or Parquet files by their names, sorted; hidden ones are passed over."""
    found = [path for path in paths if _bare(path).endswith(SUFFIXES) and not os.path.basename(path).startswith(".")]
    return sorted(path for path in found if os.path.isfile(path))


def _bare(path):
    """A path in lower case, without the suffix of a compression."""
    name = path.lower()
    stem, suffix = os.path.splitext(name)
    return stem if suffix in CODECS and not stem.endswith(".parquet") else name


def open_file(path):
    """A file of ``table_paths``.

    Returns:
        CsvFile or ParquetFile: ``columns``, names in the file's order; ``parts()``, each with ``blocks()``, each
        with ``columns`` again and ``read(numbers, categories)`` -> Rows; ``count()``, the number of rows.
    Raises:
        ValueError: it cannot be read.
    """
    return (ParquetFile if _bare(path).endswith(".parquet") else CsvFile)(path)


def check_columns(file, names):
    """Raise ValueError if one of ``names`` is not a column of ``file``, or stands there twice."""
    for name in names:
        if file.columns.count(name) != 1:
            wrong = "there is no column" if name not in file.columns else "there are two columns"
            raise ValueError(f"{file.path}: {wrong} {name!r}. Its columns: {', '.join(file.columns)}.")


@contextlib.contextmanager
def _naming(path):
    """Turn an error of pyarrow or the system into a ValueError that names the file."""
    arrow = pyarrow()
    try:
        yield arrow
    except UnicodeError as error:
        raise ValueError(f"{path}: it is not UTF-8; save it as UTF-8.") from error
    except (arrow.ArrowException, OSError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: it cannot be read ({reason[0]}). Make the file again, or remove it.") from error


class Rows:
    """A block's rows as columns, and which of them are bad.

    Args:
        place: function: a row of the block, from 0 -> "file, line 7".
        numbers: name -> float64 [N], nan where the field is empty.
        categories: name -> (codes int32 [N], values): a row has the text that its code numbers, "" if it is empty.
        cut: pairs (row of the block, what is wrong) of rows that are not among the N.
    """

    def __init__(self, place, numbers, categories, cut=()):
        self.place, self.numbers, self.categories = place, numbers, categories
        columns = [*numbers.values(), *(codes for codes, _ in categories.values())]
        self.good = np.ones(len(columns[0]), bool)
        self.cut = dict(cut)
        self.bad = dict(cut)  # row of the block -> what is wrong; of several rows bad alike, the first
        for name, column in numbers.items():
            self.refuse(np.isinf(column), lambda i, name=name: f"{name} is infinite")

    def refuse(self, wrong, why):
        """Take rows for bad: ``wrong`` bool [N]; ``why(i)`` says what is wrong with row i."""
        if wrong.any():
            first = int(np.argmax(wrong))  # further down in the block if rows before it were cut: then those are first
            self.bad.setdefault(first, why(first))
            self.good &= ~wrong

    def bad_num(self):
        """How many rows are bad."""
        return len(self.cut) + int((~self.good).sum())

    def first_bad(self):
        """Where the first bad row is, and what is wrong: "file, line 7: why"."""
        row = min(self.bad)
        return f"{self.place(row)}: {self.bad[row]}"


def _column_of_texts(arrow, texts, is_number):
    """A binary column, some of which may not be text or no number -> (as in ``Rows``, wrong bool [N]: not for null)."""
    coded = texts.dictionary_encode()
    values, is_text = _cast(arrow, coded.dictionary, arrow.string())
    if is_number:
        trimmed = arrow.compute.utf8_trim_whitespace(values)
        nulls = arrow.array(arrow.csv.ConvertOptions().null_values)  # what the fast way takes for empty
        there = arrow.compute.is_in(trimmed, value_set=nulls)
        values, is_right = _cast(arrow, arrow.compute.if_else(there, None, trimmed), arrow.float64())
        column = _floats(arrow, coded.indices, values)
    else:
        column, is_right = (_codes(coded.indices, len(values)), [*_stripped(values), ""]), True
    return column, np.append(~(is_text & is_right), False)[_codes(coded.indices, len(values))]


def _cast(arrow, values, to):
    """(``values`` as another type, null where that cannot be; whether it could be, bool [N])."""
    try:
        return values.cast(to), np.ones(len(values), bool)
    except arrow.ArrowInvalid:
        if len(values) == 1:
            return arrow.nulls(1, to), np.zeros(1, bool)
    half = len(values) // 2
    (first, first_right), (second, second_right) = (_cast(arrow, x, to) for x in (values[:half], values[half:]))
    return arrow.concat_arrays([first, second]), np.concatenate([first_right, second_right])


def _floats(arrow, indices, values):
    return np.append(_numpy(arrow, values), np.nan)[_codes(indices, len(values))]


def _numpy(arrow, column):
    """A column of numbers as float64, nan where it is null."""
    return column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _codes(indices, null):
    """A dictionary's indices as int32; ``null`` where there is none."""
    return indices.fill_null(null).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


def _stripped(values):
    """An array of texts as a list, without the blanks at their ends; "" for null."""
    return pyarrow().compute.utf8_trim_whitespace(values).fill_null("").to_pylist()


def _coded(column):
    """A dictionary array of texts as in ``Rows``."""
    return _codes(column.indices, len(column.dictionary)), [*_stripped(column.dictionary), ""]


def _whole(column):
    """A table's column as one array."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


# ----------------------------------------------------------------------------------------------- CSV


class CsvFile:
    """A file of delimited text, compressed or not.

    Args:
        path: of the file; .tsv is delimited by tabs.
    Raises:
        ValueError: it cannot be read, or is empty.
    """

    def __init__(self, path):
        self.path = path
        self.delimiter = "\t" if _bare(path).endswith(".tsv") else ","
        self.codec = CODECS.get(os.path.splitext(path.lower())[1])  # None: the file is not compressed
        with _naming(path) as arrow, self.stream() as stream:
            head = _line(stream, path)
            if not head.strip():
                raise ValueError(f"{path}: its first line is empty; it must have the columns' names.")
            if b"\r" in head.rstrip(b"\r\n"):
                raise ValueError(f"{path}: its lines end in \\r alone; save it with line ends \\n or \\r\\n.")
            options = arrow.csv.ReadOptions(use_threads=False), arrow.csv.ParseOptions(delimiter=self.delimiter)
            self.columns = arrow.csv.read_csv(arrow.BufferReader(head), *options).column_names
        self.head_size = len(head)

    def stream(self):
        """The file's text from its beginning, unpacked."""
        return io.BufferedReader(pyarrow().input_stream(self.path, compression=self.codec), BLOCK_BYTES)

    def parts(self):
        """What can be read in any order: ranges of bytes; of a compressed file, the whole."""
        if self.codec:
            return [_CsvStream(self)]
        begins = range(self.head_size, os.path.getsize(self.path), BLOCK_BYTES)
        return [_CsvRange(self, begin, begin + BLOCK_BYTES) for begin in begins]

    def count(self):
        """The number of rows, bad ones included."""
        with _naming(self.path), self.stream() as stream:
            _line(stream, self.path)
            return sum(_row_num(content) for content in _texts(stream, self.path))

    def rows(self, content, lines_before, numbers, categories):
        """Parse whole lines.

        Args:
            content: bytes.
            lines_before: function () -> the number of lines of the file before them.
            numbers: names of the columns to read as numbers.
            categories: names of the columns to read as texts.
        Returns:
            Rows.
        """

        def place(row):
            return f"{self.path}, line {lines_before() + _line_of(content, row) + 1}"

        arrow = pyarrow()
        coded = arrow.dictionary(arrow.int32(), arrow.string())
        types = {**dict.fromkeys(numbers, arrow.float64()), **dict.fromkeys(categories, coded)}
        try:
            table, cut = self._parsed(content, types)
        except arrow.ArrowInvalid:
            return self._rows_one_by_one(content, place, numbers, categories)
        found = len(table) + len(cut)  # fewer than lines, if a quote that is not closed swallows some
        if found != _line_num(content) and found != _row_num(content):
            return self._rows_one_by_one(content, place, numbers, categories)
        columns = {name: _whole(table.column(name)) for name in types}
        return Rows(
            place,
            {name: _numpy(arrow, columns[name]) for name in numbers},
            {name: _coded(columns[name]) for name in categories},
            cut,
        )

    def _rows_one_by_one(self, content, place, numbers, categories):
        """``rows`` where something in them cannot be read: what it is, is found out."""
        arrow = pyarrow()
        types = dict.fromkeys([*numbers, *categories], arrow.binary())
        lines = [line for line in content.split(b"\n") if line.rstrip(b"\r")]
        open_quotes = [i for i, line in enumerate(lines) if line.count(b'"') % 2 and self._swallows(line, types)]
        closing = self._closing(lines, open_quotes, types)
        kept = sorted({*range(len(lines))} - {*open_quotes} - {*closing})
        try:
            table, cut = self._parsed(b"\n".join([lines[i] for i in kept] + [b""]), types)
            if len(table) + len(cut) != len(kept):
                raise ValueError("a field holds a line break")
        except ValueError as error:  # of which ArrowInvalid is one
            raise ValueError(f"{place(0)}: the lines from here on cannot be told apart ({error}).") from error
        columns = {name: _whole(table.column(name)) for name in (*numbers, *categories)}
        made = {name: _column_of_texts(arrow, column, name in numbers) for name, column in columns.items()}
        cut = {kept[i]: why for i, why in cut}
        cut.update(dict.fromkeys(open_quotes, "a quote is not closed in its line"))
        cut.update(dict.fromkeys(closing, "it closes a quote of a line before it"))
        rows = Rows(place, *({name: made[name][0] for name in names} for names in (numbers, categories)), cut.items())
        for name, (_, wrong) in made.items():
            wanted = "a number" if name in numbers else "UTF-8 text"
            rows.refuse(wrong, lambda i, name=name, wanted=wanted: _unfit(name, columns[name][i].as_py(), wanted))
        return rows

    def _swallows(self, line, types):
        """Whether a line takes what follows into a field of its own. (A quote within a field does not.)"""
        try:
            table, cut = self._parsed(line + b"\n" + line + b"\n", types)
        except pyarrow().ArrowInvalid:
            return True
        return len(table) + len(cut) != 2

    def _closing(self, lines, open_quotes, types):
        """The lines that close an open quote: from the one to the other they are a row, with line breaks in a field."""
        odd = [i for i, line in enumerate(lines) if line.count(b'"') % 2]
        end_of_field = re.compile(rb'(?:[^"]|"")*"(?:%b|\r?\Z)' % self.delimiter.encode())
        closing = []
        for begin, end in zip(odd, odd[1:]):
            if begin in open_quotes and end not in open_quotes and end_of_field.match(lines[end]):
                with contextlib.suppress(pyarrow().ArrowInvalid):
                    table, cut = self._parsed(b"\n".join(lines[begin : end + 1]) + b"\n", types)
                    if len(table) == 1 and not cut:
                        closing.append(end)
        return closing

    def _parsed(self, content, types):
        """(Table of the columns in ``types``, pairs (row, what is wrong) of rows with too few or too many fields)."""
        csv, cut = pyarrow().csv, []

        def note(row):
            cut.append((row.number - 1, f"it has {row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        if not content.strip(b"\r\n"):
            return pyarrow().table({name: pyarrow().array([], kind) for name, kind in types.items()}), cut
        return csv.read_csv(
            pyarrow().BufferReader(content),
            # without threads it tells the rows' numbers, and a block is never cut into several; and no thread of
            # pyarrow's is left at the end, where it aborts a process that has imported paddle (2.6.2 and 3.3.1)
            csv.ReadOptions(use_threads=False, column_names=self.columns, block_size=len(content) + 1),
            csv.ParseOptions(delimiter=self.delimiter, invalid_row_handler=note),
            csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False),
        ), cut


class _CsvRange:
    """The lines of a plain file that begin within a range of bytes: a part, and its one block."""

    def __init__(self, file, begin, end):
        self.file, self.begin, self.end = file, begin, end
        self.columns = file.columns

    def blocks(self):
        yield self

    def read(self, numbers, categories):
        with _naming(self.file.path), open(self.file.path, "rb") as stream:
            begin = self.begin
            if begin > self.file.head_size:
                stream.seek(begin - 1)
                begin += len(_line(stream, self.file.path)) - 1  # the rest of a line that began before
            stream.seek(begin)
            content = stream.read(max(self.end - begin, 0))
            if content and not content.endswith(b"\n"):
                content += _line(stream, self.file.path)
        return self.file.rows(content, lambda: self._lines_before(begin), numbers, categories)

    def _lines_before(self, begin):
        with open(self.file.path, "rb") as stream:
            ends = range(BLOCK_BYTES, begin + BLOCK_BYTES, BLOCK_BYTES)
            return sum(stream.read(min(BLOCK_BYTES, begin - end + BLOCK_BYTES)).count(b"\n") for end in ends)


class _CsvStream:
    """All of a compressed file: a part."""

    def __init__(self, file):
        self.file = file

    def blocks(self):
        with _naming(self.file.path), self.file.stream() as stream:
            lines = _line(stream, self.file.path).count(b"\n")
            for content in _texts(stream, self.file.path):
                yield _CsvText(self.file, content, lines)
                lines += content.count(b"\n")


class _CsvText:
    """Lines of a file that have been read: a block."""

    def __init__(self, file, content, lines_before):
        self.file, self.content, self.lines_before = file, content, lines_before
        self.columns = file.columns

    def read(self, numbers, categories):
        return self.file.rows(self.content, lambda: self.lines_before, numbers, categories)


def _line(stream, path):
    """The rest of a line, with its end, off a binary stream."""
    line = stream.readline(LONGEST_LINE)
    if len(line) == LONGEST_LINE:
        raise ValueError(f"{path}: a line is longer than {LONGEST_LINE} bytes, so this is no table.")
    return line


def _texts(stream, path):
    """What is left of a stream in blocks of whole lines."""
    while True:
        content = stream.read(BLOCK_BYTES)
        if not content:
            return
        yield content if content.endswith(b"\n") else content + _line(stream, path)


def _row_num(content):
    """Lines that are not empty; pyarrow passes over the others."""
    lines = _line_num(content)
    if content[:1] in (b"\n", b"\r") or b"\n\n" in content or b"\n\r\n" in content:
        lines -= len(BLANK_LINE.findall(content))
    return lines


def _line_num(content):
    return content.count(b"\n") + (content[-1:] not in (b"", b"\n"))


def _line_of(content, row):
    """The line that a row is on, both from 0."""
    for line, text in enumerate(content.split(b"\n")):
        if text.rstrip(b"\r"):
            row -= 1
        if row < 0:
            return line
    raise IndexError("no such row")


def _unfit(name, value, wanted):
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            value = value.decode()
    return f"{name} is {value[:100]!r}, not {wanted}"


# ------------------------------------------------------------------------------------------- Parquet


class ParquetFile:
    """A Parquet file.

    Args:
        path: of the file.
    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path):
        self.path = path
        with _naming(path) as arrow, arrow.parquet.ParquetFile(path) as opened:
            self.columns = opened.schema_arrow.names
            metadata = opened.metadata
            self.group_sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def parts(self):
        """The row groups."""
        return [_RowGroup(self, i) for i in range(len(self.group_sizes))]

    def count(self):
        """The number of rows."""
        return sum(self.group_sizes)


class _RowGroup:
    """A row group: a part. Its blocks are of BLOCK_ROWS rows; nothing is read before one is asked for."""

    def __init__(self, file, number):
        self.file, self.number = file, number
        self.first, self.size = sum(file.group_sizes[:number]), file.group_sizes[number]
        self._begin_again(None, None)

    def blocks(self):
        for begin in range(0, self.size, BLOCK_ROWS):
            yield _Batch(self, begin)
        self._begin_again(None, None)

    def _begin_again(self, names, batches):
        self.names, self.batches = names, batches
        self.kept, self.reached = [], 0  # kept: (first row, record batch)

    def table(self, begin, names):
        """Columns of the block from row ``begin`` of the group on; cheap if asked for in order."""
        if self.names != names or (self.kept[0][0] if self.kept else self.reached) > begin:
            self._begin_again(names, self._opened(names))
        end = min(begin + BLOCK_ROWS, self.size)
        while self.reached < end:  # pyarrow's batches may be smaller
            batch = next(self.batches)
            self.kept.append((self.reached, batch))
            self.reached += len(batch)
            self.kept = [(first, one) for first, one in self.kept if first + len(one) > begin]
        table = pyarrow().Table.from_batches([batch for _, batch in self.kept])
        return table.slice(begin - self.kept[0][0], end - begin).unify_dictionaries()

    def _opened(self, names):
        with _naming(self.file.path) as arrow, arrow.parquet.ParquetFile(self.file.path) as opened:
            yield from opened.iter_batches(BLOCK_ROWS, [self.number], names, use_threads=False)


class _Batch:
    """A piece of a row group: a block."""

    def __init__(self, group, begin):
        self.group, self.begin = group, begin
        self.columns = group.file.columns

    def read(self, numbers, categories):
        path, first = self.group.file.path, self.group.first + self.begin
        with _naming(path) as arrow:
            table = self.group.table(self.begin, [*numbers, *categories])
            columns = {name: _whole(table.column(name)) for name in (*numbers, *categories)}
            made = {name: _number_column(arrow, columns[name], path, name) for name in numbers}
            made.update({name: _text_column(arrow, columns[name], path, name) for name in categories})
        read = [{name: made[name][0] for name in names} for names in (numbers, categories)]
        rows = Rows(lambda row: f"{path}, row {first + row + 1}", *read)
        for name, (_, wrong) in made.items():
            wanted = "a number" if name in numbers else "UTF-8 text"
            if wrong is not None:
                rows.refuse(wrong, lambda i, name=name, wanted=wanted: _unfit(name, columns[name][i].as_py(), wanted))
        return rows


def _number_column(arrow, column, path, name):
    """(Column as in ``Rows``, bad rows or None)."""
    kinds = arrow.types
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        return _column_of_texts(arrow, column.cast(arrow.binary()), True)
    is_number = kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null
    if not any(is_kind(column.type) for is_kind in is_number):
        raise ValueError(f"{path}: the column {name} is of type {column.type}, not of numbers.")
    return _numpy(arrow, column), None


def _text_column(arrow, column, path, name):
    """(Column as in ``Rows``, bad rows or None)."""
    kinds = arrow.types
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    is_plain = (
        kinds.is_binary, kinds.is_large_binary, kinds.is_string, kinds.is_large_string, kinds.is_integer,
        kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_temporal, kinds.is_null,
    )  # fmt: skip
    if not any(is_kind(kind) for is_kind in is_plain):
        raise ValueError(f"{path}: the column {name} is of type {kind}, not of texts or numbers.")
    if kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
        return _column_of_texts(arrow, column.cast(arrow.binary()), False)
    coded = column if kinds.is_dictionary(column.type) else column.dictionary_encode()
    values = coded.dictionary
    if kinds.is_floating(values.type):  # what pandas makes of whole numbers with gaps
        texts = ["" if x is None or x != x else f"{x:.0f}" if x.is_integer() else repr(x) for x in values.to_pylist()]
        values = arrow.array(texts, arrow.string())
    texts = _stripped(values.cast(arrow.string()))
    return (_codes(coded.indices, len(texts)), [*texts, ""]), None
