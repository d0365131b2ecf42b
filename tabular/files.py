"""CSV, Parquet and slot files -> blocks of rows, read by pyarrow. Knows neither the vocabulary nor the network.

A file is never in memory as a whole: a block is a few megabytes of it. The parts of a file can be read in any order.
They are ranges of bytes of a plain text file, and row groups of a Parquet file; a compressed one is a single part.

The first line of a CSV file has the names of the columns. Every other line is one row, so a field has no line break in
it. A folder such as date=2026-01-01 between the data folder and a file is a column with the same value in every row.

A slot file (.txt) has a row in each line, of fields "slot:value", as PaddleRec's do. A slot is a column. It may be
missing in a row, and may have several values: those of a list; slot.0, slot.1, ... are columns of one value each.
"""

import codecs
import contextlib
import csv
import io
import logging
import math
import os
import pathlib
import re
import urllib.parse

import numpy as np

from tabular.columns import Rows, list_column, number_column, pyarrow, text_column

LOG = logging.getLogger("dselect_k")
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # suffix of a text file -> pyarrow's name
TABLES = "*.csv, *.tsv, *.txt (also compressed), *.parquet, or a folder such as x.parquet or date=1"
BLOCK_BYTES = 1 << 23  # of text; a block goes on to the end of its last line
BLOCK_ROWS = 1 << 15  # of Parquet
LONGEST_LINE = 1 << 24
# A quote after a backslash, or after blanks at the beginning of a field: pyarrow would read the field with its quotes.
ODD_QUOTE = re.compile(rb'(?m)(?:\\|[,\t][ \t]+|^[ \t]+)"')
SLOT, SLOT_NAME = re.compile(rb"\s*[^\s:]+:[^\s:]+\s"), re.compile(rb"(?<!\S)([^\s:]+):")
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # the first bytes of UTF-16 and UTF-32
OTHER_DELIMITERS = (";", "\t", "|")
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"  # in the name of a folder: an empty field


# --------------------------------------------------------------------------------------- the data folder


def open_files(paths):
    """Open the tables among some paths, in the order of their names.

    A folder is read as a table in parts if it is named like one (x.parquet), or for a column's value
    (date=2026-01-01). A warning names what is skipped: other files and folders, and empty files. Hidden files, and
    markers such as Spark's _SUCCESS, are skipped silently.

    Args:
        paths: the entries of a data folder.
    Returns:
        Objects of the file classes below: ``columns``, the names of the columns; ``count()``, the number of rows;
        ``parts()``, each with ``blocks()``, each with ``columns`` and ``read(numbers, categories, lists)`` -> Rows.
    Raises:
        ValueError: there is no table, or one cannot be read.
    """
    tables, others = _find_tables(paths)
    files, empty = [], []
    for path, folders in tables:
        kind = {".parquet": ParquetFile, ".txt": SlotFile}.get(os.path.splitext(_uncompressed_name(path))[1], CsvFile)
        if _is_empty(path):
            empty.append(path)
        else:
            files.append(kind(path, _folder_columns(folders)))
    skipped = [*_skipped(others, f"not a table ({TABLES})"), *_skipped(empty, "empty")]
    if not files:
        where = os.path.dirname(paths[0]) if paths else "the data folder"
        raise ValueError(f"{where}: no table found. {' '.join(skipped) or f'A table is {TABLES}.'}")
    for message in skipped:
        LOG.warning(message)
    return files


def _find_tables(paths, folders=()):
    """(Pairs of a table's path and the names of the folders it is in, other paths)."""
    tables, others = [], []
    for path in sorted(paths):
        name, is_folder = os.path.basename(path), os.path.isdir(path)
        is_named_as_table = _uncompressed_name(path).endswith(SUFFIXES)
        if name.startswith(".") or (name.startswith("_") and not is_named_as_table and not is_folder):
            continue
        is_table = not name.startswith("_") and (is_named_as_table or (is_folder and "=" in name))
        is_table = is_table and (is_folder or not _uncompressed_name(path).endswith(".txt") or _has_slots(path))
        if not is_table or (is_folder and _is_link_to_parent(path)):
            others.append(path + os.sep * is_folder)
        elif is_folder:
            inside = _find_tables([os.path.join(path, each) for each in os.listdir(path)], (*folders, name))
            tables, others = tables + inside[0], others + inside[1]
        else:
            tables.append((path, folders))
    return tables, others


def _has_slots(path):
    """Whether a text file begins with a field of a slot."""
    with _naming(path), _stream(path) as stream:
        return SLOT.match(stream.read(1000).removeprefix(codecs.BOM_UTF8)) is not None


def _is_link_to_parent(path):
    return any(os.path.samefile(path, parent) for parent in pathlib.Path(path).absolute().parents)


def _skipped(paths, why):
    """A list with the sentence that names the first path and counts the others; an empty list without paths."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return [f"Skipped {path}{more}: {why}." for path in paths[:1]]


def _folder_columns(folders):
    """The columns that folders such as date=2026-01-01 add to their files: name -> text."""
    pairs = [folder.partition("=") for folder in folders if "=" in folder]
    return {name: "" if text == NULL_FOLDER else urllib.parse.unquote(text) for name, _, text in pairs}


def _uncompressed_name(path):
    """The path in lower case, without .gz and the like."""
    stem, suffix = os.path.splitext(path.lower())
    return stem if suffix in CODECS and not stem.endswith(".parquet") else path.lower()


def _is_empty(path):
    """Whether a file has no bytes, or none but the mark of UTF-8."""
    with _naming(path), _stream(path) as stream:
        return stream.read(len(codecs.BOM_UTF8) + 1) in (b"", codecs.BOM_UTF8)


def check_columns(file, names):
    """Raise ValueError if a file lacks one of the columns ``names``, or has it twice; warn of a slot without a row."""
    for name in names:
        if isinstance(file, SlotFile):
            if file.slot_of(name)[0] not in file.columns:
                LOG.warning("%s: no row has the slot %s: it is empty", file.path, name)
        elif file.columns.count(name) != 1:
            wrong = "there are two columns" if name in file.columns else "there is no column"
            columns = f"Its columns: {', '.join(file.columns)}."
            marks = [mark for mark in OTHER_DELIMITERS if len(file.columns) == 1 and mark in file.columns[0]]
            hint = f" Its fields seem to be separated by {marks[0]!r}; write it with commas." if marks else ""
            raise ValueError(f"{file.path}: {wrong} {name!r}. {columns}{hint}")


@contextlib.contextmanager
def _naming(path):
    """Turn an error of pyarrow or the system into a ValueError that names the file."""
    arrow = pyarrow()
    try:
        yield arrow
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: this system cannot represent the file's name; rename it.") from error
    except UnicodeError as error:
        raise ValueError(f"{path}: it is not UTF-8; save it as UTF-8.") from error
    except (arrow.ArrowException, OSError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: it cannot be read ({reason[0]}). Make the file again, or remove it.") from error


class _File:
    """What all kinds of files have.

    Args:
        path: of the file.
        own_columns: names of the columns in it.
        constants: columns that its folders add, name -> text. The file's own columns take precedence.
    """

    def __init__(self, path, own_columns, constants):
        self.path, self.own_columns = path, own_columns
        self.constants = {name: text for name, text in constants.items() if name not in own_columns}
        self.columns = [*own_columns, *self.constants]


class _Block:
    """A piece of a file that is read at once.

    Subclasses have ``file``; ``place(row)``, where a row is, for a message; and ``table(numbers, categories, lists)``
    for columns of the file's own: (Arrow table, pairs (row, what is wrong) of rows that are not in it).
    """

    @property
    def columns(self):
        return self.file.columns

    def read(self, numbers, categories, lists=()):
        """Rows of columns.

        Args:
            numbers, categories: names of columns, read as numbers and as texts.
            lists: pairs (name of a column of lists, what separates the parts of a text, or "").
        """
        path, constants = self.file.path, self.file.constants
        names = numbers, categories, [name for name, _ in lists]
        with _naming(path) as arrow:
            table, cut = self.table(*([name for name in of_kind if name not in constants] for of_kind in names))
            same = {name: arrow.repeat(text, len(table)) for name, text in constants.items()}

            def column(name):
                return same[name] if name in same else table.column(name)

            return Rows(
                self.place,
                {name: number_column(column(name), path, name) for name in numbers},
                {name: text_column(column(name), path, name) for name in categories},
                {name: list_column(column(name), path, name, separator) for name, separator in lists},
                cut,
            )


# -------------------------------------------------------------------------------------------- text files


class _TextFile(_File):
    """A file of lines, compressed or not. Subclasses have ``block``, the class of a block, made of a piece of it.

    Args:
        head_size: bytes before the first row.
    """

    def __init__(self, path, own_columns, constants, head_size):
        super().__init__(path, own_columns, constants)
        self.head_size = head_size

    def parts(self):
        """Ranges of bytes; of a compressed file, the whole."""
        if _codec(self.path):
            return [_TextRange(self, self.head_size, math.inf)]
        begins = range(self.head_size, os.path.getsize(self.path), BLOCK_BYTES)
        return [_TextRange(self, begin, begin + BLOCK_BYTES) for begin in begins]

    def count(self):
        """The number of rows, bad ones included."""
        return sum(_row_num(content) for _, content in _lines(self.path, self.head_size, math.inf))


class _TextRange:
    """The lines that begin within a range of an unpacked file's bytes: a part."""

    def __init__(self, file, begin, end):
        self.file, self.begin, self.end = file, begin, end

    def blocks(self):
        for begin, content in _lines(self.file.path, self.begin, self.end):
            yield self.file.block(self.file, begin, content)


class _TextBlock(_Block):
    """Lines of a file: ``content``, from the byte ``begin`` of the unpacked file on."""

    def __init__(self, file, begin, content):
        self.file, self.begin, self.content = file, begin, content

    def place(self, row):
        """Where a row is. The file is read up to here, which only a message is worth."""
        lines = [i for i, line in enumerate(self.content.split(b"\n")) if not _is_blank(line)]
        return f"{self.file.path}, line {_lines_before(self.file.path, self.begin) + lines[row] + 1}"


class _CsvBlock(_TextBlock):
    def table(self, numbers, categories, lists):
        """The fastest way first. It fails if a field is not a number or not UTF-8: ``number_column`` and
        ``text_column`` find that field in what the other ways read.
        """
        self._check_quotes()
        arrow = pyarrow()
        texts, raw = (arrow.dictionary(arrow.int32(), kind) for kind in (arrow.string(), arrow.binary()))
        row_num, first_column = _row_num(self.content), {self.file.own_columns[0]: raw}
        last = self.content[self.content.rfind(b"\n", 0, -1) + 1 :]
        is_open = last.count(b'"') % 2 and len(self._parsed(last + last, first_column)[0]) < 2  # its row goes on
        for number, text in ((arrow.float64(), texts), (raw, texts), (raw, raw)):
            with contextlib.suppress(arrow.ArrowInvalid):
                types = {**dict.fromkeys(numbers, number), **dict.fromkeys([*categories, *lists], text)}
                table, cut = self._parsed(self.content, types or first_column)
                if len(table) + len(cut) == row_num and not is_open:
                    return table, cut
        lines = [line.rstrip(b"\r") for line in self.content.split(b"\n") if not _is_blank(line)]
        first = next((i for i, line in enumerate(lines) if line.count(b'"') % 2 or b"\r" in line), 0)
        raise ValueError(
            f"{self.place(first)}: this line, or one below it, has a quote that is not closed, or ends in \\r alone. "
            "Write each row as one line, without line breaks inside fields."
        )

    def _check_quotes(self):
        """Refuse quotes that pyarrow would take into the value, such as those that Spark escapes by a backslash."""
        content, end = self.content, 0
        # which is faster to see: first whether there is such a byte at all, for most bytes may be quotes
        if not any(mark in content and mark + b'"' in content for mark in (b"\\", b" ", b"\t")):
            return
        for found in ODD_QUOTE.finditer(content):
            if found.start() < end:
                continue
            begin, end = content.rfind(b"\n", 0, found.start() + 1) + 1, content.find(b"\n", found.start() + 1)
            if not self.file.well_formed.fullmatch(content, begin, end):
                what = "is escaped by a backslash" if found.group().startswith(b"\\") else "follows a blank"
                raise ValueError(
                    f"{self.place(_row_num(content[:begin]))}: a quote {what}. Quote whole fields, without blanks "
                    "before the quotes, and write two quotes for one inside a field."
                )

    def _parsed(self, content, types):
        csv, cut = pyarrow().csv, []

        def note(row):
            cut.append((row.number - 1, f"it has {row.actual_columns} columns, not {row.expected_columns}"))
            return "skip"

        if not content.strip(b"\r\n"):
            return pyarrow().table({name: pyarrow().array([], kind) for name, kind in types.items()}), cut
        return csv.read_csv(
            pyarrow().BufferReader(content),
            # With threads, rows would have no numbers and a block several chunks. And a thread of pyarrow's that is
            # left at exit aborts a process that has imported paddle (2.6.2 and 3.3.1).
            csv.ReadOptions(use_threads=False, column_names=self.file.own_columns, block_size=len(content) + 1),
            csv.ParseOptions(delimiter=self.file.delimiter, invalid_row_handler=note),
            csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False),
        ), cut


class CsvFile(_TextFile):
    """A file of delimited text, compressed or not; .tsv is delimited by tabs.

    Raises:
        ValueError: it cannot be read.
    """

    block = _CsvBlock

    def __init__(self, path, constants):
        self.delimiter = "\t" if _uncompressed_name(path).endswith(".tsv") else ","
        with _naming(path), _stream(path) as stream:
            head = _line(stream, path)
            if head.startswith(UTF16) or b"\0" in head:
                raise ValueError(f"{path}: it is UTF-16, or not a text file; save it as UTF-8.")
            if not head.strip():
                raise ValueError(f"{path}: its first line is empty; it must have the names of the columns.")
            if b"\r" in head.rstrip(b"\r\n"):
                raise ValueError(f"{path}: its lines end in \\r alone; save it with line ends \\n or \\r\\n.")
            if b'\\"' in head or head.count(b'"') % 2:
                raise ValueError(
                    f"{path}: its first line has a quote that is not closed, or is escaped by a backslash. "
                    "Write the names of the columns in one line, with two quotes for one inside a name."
                )
            text = head.decode("utf-8-sig").strip("\r\n")
        (names,) = csv.reader([text], delimiter=self.delimiter, skipinitialspace=True)
        delimiter = re.escape(self.delimiter.encode())
        field = rb'(?:"(?:[^"]|"")*"|[^"%b]*)' % delimiter
        self.well_formed = re.compile(rb"%b(?:%b%b)*\r?" % (field, delimiter, field))
        columns = [name.strip().strip("\ufeff").strip() for name in names]
        super().__init__(path, columns, constants, len(head))


def _codec(path):
    """How a file is compressed, in pyarrow's words; None: it is not."""
    return CODECS.get(os.path.splitext(path.lower())[1])


def _stream(path):
    """A file's bytes from its beginning, unpacked."""
    return io.BufferedReader(pyarrow().input_stream(path, compression=_codec(path)), BLOCK_BYTES)


def _line(stream, path):
    """The rest of a line, with its end."""
    line = stream.readline(LONGEST_LINE)
    if len(line) == LONGEST_LINE:
        raise ValueError(f"{path}: a line is longer than {LONGEST_LINE} bytes, so this is not a table.")
    return line


def _lines(path, begin, end):
    """The lines that begin within a range of an unpacked file's bytes, in pieces of some BLOCK_BYTES.

    Yields:
        (where the lines begin, their bytes with the line end of each, the last one too).
    """
    with _naming(path), _stream(path) as stream:
        if begin:
            (stream.read if _codec(path) else stream.seek)(begin - 1)
            begin += len(_line(stream, path)) - 1  # a line that began before the range
        while begin < end and (content := stream.read(min(BLOCK_BYTES, end - begin))):
            if not content.endswith(b"\n"):
                content += _line(stream, path)
            yield begin, content if content.endswith(b"\n") else content + b"\n"
            begin += len(content)


def _is_blank(line):
    return line in (b"", b"\r")


def _row_num(content):
    """How many lines are not blank; pyarrow skips blank ones."""
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    if (np.diff(ends, prepend=-1) > 2).all():  # no line is short enough to be blank
        return len(ends)
    return sum(not _is_blank(line) for line in content.split(b"\n"))


def _lines_before(path, begin):
    """How many lines of an unpacked file end before a byte."""
    with _stream(path) as stream:
        sizes = [BLOCK_BYTES] * (begin // BLOCK_BYTES) + [begin % BLOCK_BYTES]
        return sum(stream.read(size).count(b"\n") for size in sizes)


# ------------------------------------------------------------------------------------------------- slots


class _SlotBlock(_TextBlock):
    def table(self, numbers, categories, lists):
        """Each slot's values, found among the fields of all rows at once."""
        arrow = pyarrow()
        rows, names, values, cut = self.fields()
        row_num, codes = _row_num(self.content), names.indices.to_numpy()
        place_of = {name.as_py(): i for i, name in enumerate(names.dictionary)}
        slots, columns = {}, {}  # column -> (its fields, how many each row has, which of a row's; None: the only one)
        for name in [*numbers, *categories, *lists]:
            slot, number = self.file.slot_of(name)
            fields = np.flatnonzero(codes == place_of.get(slot, -1))
            slots[name] = fields, np.bincount(rows[fields], minlength=row_num), number
        for name in [*numbers, *categories]:
            _, lengths, number = slots[name]
            for row in np.flatnonzero(lengths > 1).tolist() if number is None else ():
                cut.setdefault(row, f"it has several values of {name}: name {name} in --lists, or {name}.0")
        kept = np.setdiff1d(np.arange(row_num), list(cut))
        for name, (fields, lengths, number) in slots.items():
            begins = np.cumsum(lengths) - lengths
            if name in lists:
                of_kept = fields[np.isin(rows[fields], kept)]
                ends = arrow.array(np.append(0, np.cumsum(lengths[kept])), arrow.int32())
                columns[name] = arrow.ListArray.from_arrays(ends, values.take(arrow.array(of_kept)))
                continue
            is_there = lengths[kept] > (number or 0)
            places = np.where(is_there, begins[kept] + (number or 0), 0)
            found = arrow.array(fields[places] if len(fields) else places, arrow.int64(), mask=~is_there)
            columns[name] = values.take(found)
        return arrow.table(columns), sorted(cut.items())

    def fields(self):
        """(Row of each field, names as a dictionary, values, row -> what is wrong of rows left out)."""
        arrow = pyarrow()
        compute = arrow.compute
        content = _without_mark(self.begin, self.content)
        lines = arrow.array([line for line in content.split(b"\n") if not _is_blank(line)], arrow.binary())
        fields = compute.utf8_split_whitespace(compute.utf8_trim_whitespace(lines.cast(arrow.string())))
        rows = np.repeat(np.arange(len(lines)), compute.list_value_length(fields).to_numpy())
        fields = fields.flatten()
        is_whole = compute.match_substring_regex(fields, "^[^:]+:[^:]+$").to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~is_whole)[::-1]
        cut = {int(rows[i]): f"it has {fields[int(i)].as_py()[:100]!r}, not slot:value" for i in wrong}
        if cut:
            kept = ~np.isin(rows, list(cut))
            rows, fields = rows[kept], fields.filter(arrow.array(kept))
        pairs = compute.split_pattern(fields, ":").flatten()
        return rows, pairs[::2].dictionary_encode(), pairs[1::2], cut


def _without_mark(begin, content):
    """A piece of a file, from the byte ``begin`` on, without the mark of UTF-8 at the beginning of the file."""
    return content if begin else content.removeprefix(codecs.BOM_UTF8)


class SlotFile(_TextFile):
    """A file of slots, compressed or not. It is read through for the names of its slots, which are its columns.

    Raises:
        ValueError: it cannot be read.
    """

    block = _SlotBlock

    def __init__(self, path, constants):
        names = {}
        with _naming(path):
            for begin, content in _lines(path, 0, math.inf):
                names.update(dict.fromkeys(SLOT_NAME.findall(_without_mark(begin, content))))
        super().__init__(path, [name.decode() for name in names], constants, 0)

    def slot_of(self, column):
        """(Slot, which of its values; None: the only one) of a column: price.1 is the second value of price."""
        slot, _, number = column.rpartition(".")
        is_numbered = column not in self.columns and number.isdecimal()
        return (slot, int(number)) if is_numbered else (column, None)


# ----------------------------------------------------------------------------------------------- Parquet


class ParquetFile(_File):
    """A Parquet file.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path, constants):
        with _naming(path), _open_parquet(path) as opened:
            names, metadata = opened.schema_arrow.names, opened.metadata
            self.group_sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if not names:
            raise ValueError(f"{path}: it has no columns.")
        super().__init__(path, [name.strip() for name in names], constants)
        self.stored_names = dict(zip(self.own_columns, names))

    def parts(self):
        """The row groups."""
        return [_RowGroup(self, i) for i in range(len(self.group_sizes))]

    def count(self):
        """The number of rows."""
        return sum(self.group_sizes)


def _open_parquet(path):
    # Old files count nanoseconds, in which the year 9999 would overflow to another date without an error.
    return pyarrow().parquet.ParquetFile(path, coerce_int96_timestamp_unit="us")


class _RowGroup:
    """A row group: a part. Its blocks have BLOCK_ROWS rows; nothing is read before one is asked for."""

    def __init__(self, file, number):
        self.file, self.number = file, number
        self.first, self.size = sum(file.group_sizes[:number]), file.group_sizes[number]
        self.names = self.tables = None
        self.reached = 0

    def blocks(self):
        for begin in range(0, self.size, BLOCK_ROWS):
            yield _ParquetBlock(self, begin)
        self.names = self.tables = None

    def table(self, begin, names):
        """Columns of the block from row ``begin`` of the group on. Asked for in order, the group is read once."""
        if self.names != names or begin < self.reached:
            self.names, self.tables, self.reached = names, self._tables(names), 0
        while self.reached <= begin:
            table = next(self.tables)
            self.reached += BLOCK_ROWS
        return table

    def _tables(self, names):
        from_batches, kept = pyarrow().Table.from_batches, []
        stored = [self.file.stored_names[name] for name in names]
        with _open_parquet(self.file.path) as opened:
            for batch in opened.iter_batches(BLOCK_ROWS, [self.number], stored, use_threads=False):
                kept.append(batch)  # which may have fewer rows
                if sum(map(len, kept)) >= BLOCK_ROWS:
                    table = from_batches(kept)
                    yield table.slice(0, BLOCK_ROWS)
                    kept = table.slice(BLOCK_ROWS).to_batches()
            if kept:
                yield from_batches(kept)


class _ParquetBlock(_Block):
    """The rows of a row group from ``begin`` on."""

    def __init__(self, group, begin):
        self.file, self.group, self.begin = group.file, group, begin

    def place(self, row):
        return f"{self.file.path}, row {self.group.first + self.begin + row + 1}"

    def table(self, numbers, categories, lists):
        names = [*numbers, *categories, *lists] or self.file.own_columns[:1]
        return self.group.table(self.begin, names).unify_dictionaries().rename_columns(names), ()
