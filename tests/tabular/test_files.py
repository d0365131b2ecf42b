"""tabular/files.py: CSV as other programs write it, folders of parts, blocks."""

import csv
import gzip
import json
import logging
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tables import blocks, make_rows, read, write, write_files
from tabular import files as table_files
from tabular.files import check_columns, open_files


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many blocks a file, so that rows lie across their borders."""
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 150)
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 5)


# ----------------------------------------------------------------------------------------------- CSV

FIELD = st.text(st.sampled_from("ab\",\t é\u20ac;'0"), max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_quoting_is_read_as_python_reads_it(tmp_path_factory, fields, ending, blank):
    path = tmp_path_factory.mktemp("quoted") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=ending + (ending if blank else ""), quoting=csv.QUOTE_ALL)
        writer.writerows([("x", "y"), *fields])
    found, _, message = read(path, categories=["x", "y"])
    assert message is None
    assert list(zip(found["x"], found["y"])) == [tuple(field.strip() for field in row) for row in fields]
    assert open_files([str(path)])[0].count() == len(fields)


@pytest.mark.parametrize(
    "field",
    ['"C:\\"', "C:\\dir", '"C:\\dir\\"', '5" pipe', 'a "b" c', '"say ""hi"" "', json.dumps({"said": 'a "quote", "b"'})],
)
def test_backslashes_and_quotes_inside_fields_are_read_as_they_are(field, tmp_path):
    text = field
    if field.startswith("{"):
        field = '"' + text.replace('"', '""') + '"'
    elif field.startswith('"'):
        text = field[1:-1].replace('""', '"')
    (tmp_path / "a.csv").write_text(f"c,d\n{field},{field}\r\nlast,1\n")
    assert read(tmp_path / "a.csv", categories=["c", "d"])[0] == {"c": [text.strip(), "last"], "d": [text.strip(), "1"]}


ESCAPED = ['"say \\"hi\\"",1', '"5\\"",1', 'x\\"y,1', '5\\",1', '"5\\", wide",1', '"a","5\\", wide"', '"\\"",1']
AFTER_BLANK = ['first, "a"', '  "a",b', '"x, ""y"" ",\t"a"']


@pytest.mark.parametrize("line", [*ESCAPED, '"a\\"b\\\\",1', *AFTER_BLANK])
def test_a_quote_that_would_be_taken_into_the_value_is_refused_by_its_line(line, tmp_path):
    (tmp_path / "a.csv").write_text(f'c,d\n"first ""one""",1\n{line}\n"last, ""one""",1\n')
    what = "follows a blank" if line in AFTER_BLANK else "is escaped by a backslash"
    with pytest.raises(ValueError, match=f"a.csv, line 3: a quote {what}"):
        read(tmp_path / "a.csv", categories=["c"])


@pytest.mark.parametrize(
    "text,line",
    [
        ('1,"x\n2,y"\n3,z\n', 2), ('1,"x\n2,y\n3,5" z\n', 2), ('1,"x\n2,y', 2), ('\n1,x\n2,"y', 4),
            ("1,a\n" * 37 + '1,"x\n1,y"\n', 39),
        ("1,a\r2,b\r3,c\n", 2), ("1,a\n" * 200 + '1,"x\n2,y"\n', 202),
    ],
)  # fmt: skip
def test_a_row_of_several_lines_is_refused_by_its_line(text, line, tmp_path):
    (tmp_path / "a.csv").write_text("n,c\n" + text)
    with pytest.raises(ValueError, match=f"a.csv, line {line}: this line, or one below it"):
        read(tmp_path / "a.csv", ["n"], ["c"])


@pytest.mark.parametrize(
    "content,words",
    [
        *(("größe,x\n1,2\n".encode(name), "it is UTF-16, or not a text file") for name in ("utf-16", "utf-16-le")),
        *(("größe,x\n1,2\n".encode(name), "it is UTF-16, or not a text file") for name in ("utf-16-be", "utf-32")),
        ("größe,x\n1,2\n".encode("latin-1"), "it is not UTF-8; save it as UTF-8"),
        (b"x,y\r1,2\r3,4\r", "its lines end in \\r alone"),
        (b'"x \\"y\\"",c\n1,a\n', "its first line has a quote"),
        (b'"x\ny",c\n1,a\n', "its first line has a quote"),
        (b"\nx\n1\n", "its first line is empty"),
        (b"x" * (1 << 24), "a line is longer"),
        (gzip.compress(b"x\n1\n", mtime=0), "it is UTF-16, or not a text file"),
    ],
)
def test_a_file_without_a_readable_header_is_refused(content, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        open_files(write_files(tmp_path, {"a.csv": content}))
    assert f"a.csv: {words}" in str(caught.value) and "\n" not in str(caught.value)


def test_blanks_around_column_names_are_trimmed(tmp_path):
    write_files(tmp_path, {"a.csv": '\ufeff x , "c" \n1,a\n', "b.parquet": pa.table({" x": [2], "c ": ["b"]})})
    assert read(tmp_path / "a.csv", ["x"], ["c"])[0] == {"x": [1], "c": ["a"]}
    assert read(tmp_path / "b.parquet", ["x"], ["c"])[0] == {"x": [2], "c": ["b"]}
    with pytest.raises(ValueError, match="a.csv: there are two columns 'x'"):
        check_columns(open_files(write_files(tmp_path / "two", {"a.csv": " x,x \n1,a\n"}))[0], ["x"])


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_named(mark, tmp_path):
    paths = write_files(tmp_path, {"a.csv": f"x{mark}c\n1{mark}a\n"})
    with pytest.raises(ValueError, match="no column 'x'.*seem to be separated by"):
        check_columns(open_files(paths)[0], ["x"])


def test_a_blank_line_is_no_row_and_a_quoted_nothing_is_one(tmp_path):
    (tmp_path / "a.csv").write_text('x\n1\n\n""\n2\n')
    assert read(tmp_path / "a.csv", [], ["x"])[0]["x"] == ["1", "", "2"]
    np.testing.assert_equal(read(tmp_path / "a.csv", ["x"])[0]["x"], [1, np.nan, 2])
    assert open_files([str(tmp_path / "a.csv")])[0].count() == 3


def test_a_header_alone_is_a_table_of_no_rows(tmp_path):
    for name, content in {"a.csv": "x,c\n", "b.csv": "x,c", "c.csv": "x,c\n\n", "d.parquet": ROWS.slice(0, 0)}.items():
        write_files(tmp_path, {name: content})
        assert read(tmp_path / name, ["x"], ["c"]) == ({"x": [], "c": []}, [], None)
        assert open_files([str(tmp_path / name)])[0].count() == 0


def test_a_compressed_file_may_have_its_name_in_capitals(tmp_path):
    (tmp_path / "U.CSV.GZ").write_bytes(gzip.compress(b"x\n1\n2\n"))
    assert read(tmp_path / "U.CSV.GZ", ["x"])[0]["x"] == [1, 2]


@pytest.mark.parametrize(
    "name,damage",
    [("a.csv.gz", lambda data: data[:-12]), ("a.csv.gz", lambda data: b"x\n"), ("a.parquet", lambda data: data[:-30])],
)
def test_a_damaged_file_is_refused_by_its_name(name, damage, tmp_path, rng):
    write(tmp_path / name, make_rows(rng, 60))
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name}: it cannot be read") as caught:
        read(tmp_path / name, ["price"])
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_blocks_can_be_read_in_any_order(name, tmp_path, rng):
    """In order, each worker process skips the blocks of the others."""
    write(tmp_path / name, make_rows(rng, 90))
    columns = ["price", "spent"], ["shop"]

    def values(block):
        rows = block.read(*columns)
        codes, texts = rows.categories["shop"]
        return [*rows.numbers["price"], *rows.numbers["spent"]], [texts[code] for code in codes]

    expected = [values(block) for block in blocks(tmp_path / name)]
    assert len(expected) > 10
    for order in (range(0, len(expected), 3), random.Random(1).sample(range(len(expected)), len(expected))):
        found = blocks(tmp_path / name)
        np.testing.assert_equal([values(found[i]) for i in order], [expected[i] for i in order])


def test_a_bad_row_of_parquet_is_named_by_its_number_in_the_file(tmp_path):
    """Which is neither that in its row group nor that in its block."""
    pq.write_table(pa.table({"x": ["1"] * 19 + ["cheap"]}), tmp_path / "a.parquet", row_group_size=13)
    assert "a.parquet, row 20: x is 'cheap', not a number" in read(tmp_path / "a.parquet", ["x"])[2]


def test_blocks_of_parquet_are_whole_where_pyarrow_gives_smaller_pieces(tmp_path, monkeypatch):
    """It does where a dictionary has become too large and plain values follow."""
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 1000)
    texts = [f"text {i}" for i in range(2500)]
    table = pa.table({"c": pa.array(texts).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=1000, write_batch_size=100)
    assert [len(block.read([], ["c"]).good) for block in blocks(tmp_path / "a.parquet")] == [1000, 1000, 500]
    assert read(tmp_path / "a.parquet", [], ["c"])[0]["c"] == texts


# ------------------------------------------------------------------------------------ folders of parts

ROWS = pa.table({"x": [1.0, 2.0], "c": ["a", "b"]})


def test_folders_of_columns_and_of_parts_are_read(tmp_path):
    files = {
        "part.csv/part-0.csv": "x,c\n1,a\n", "part.csv/_SUCCESS": b"", "part.csv/.part-0.csv.crc": b"crc",
        "year=2026/month=__HIVE_DEFAULT_PARTITION__/a.parquet": ROWS, "year=2026/month=01%2F02/a.parquet": ROWS,
        "_SUCCESS": b"", "_metadata": b"", ".hidden/a.csv": "x\n1\n",
    }  # fmt: skip
    part, month, no_month = open_files(write_files(tmp_path, files))
    assert part.path.endswith("part-0.csv") and part.columns == ["x", "c"]
    for file, texts in ((month, ["01/02"] * 2), (no_month, ["", ""])):
        assert file.columns == ["x", "c", "year", "month"]
        (block,) = file.parts()[0].blocks()
        rows = block.read(["x", "year"], ["month"])
        assert rows.numbers["year"].tolist() == [2026, 2026] and rows.numbers["x"].tolist() == [1, 2]
        assert [rows.categories["month"][1][code] for code in rows.categories["month"][0]] == texts
        assert block.read([], ["year"]).categories["year"][0].tolist() == [0, 0], "no column of the file's own"


def test_a_files_own_column_takes_precedence_over_its_folders(tmp_path):
    write_files(tmp_path, {"c=z/a.csv": "x,c\n1,a\n"})
    (file,) = open_files([str(tmp_path / "c=z")])
    assert file.columns == ["x", "c"] and file.constants == {}


@pytest.mark.parametrize("number,words", [(True, "x is 'abc', not a number"), (False, "c is the float 1e\\+16")])
def test_a_folders_value_that_cannot_be_used_is_refused_with_its_path(number, words, tmp_path):
    write_files(tmp_path, {"x=abc/c=1e%2B16/a.parquet": pa.table({"l": [[1]]})})
    (file,) = open_files([str(tmp_path / "x=abc")])
    (block,) = file.parts()[0].blocks()
    with pytest.raises(ValueError, match=f"x=abc/c=1e%2B16/a.parquet, row 1: {words}"):
        raise ValueError(block.read(*(["x"], []) if number else ([], ["c"])).first_bad())


def test_links_to_a_parent_folder_are_not_followed(tmp_path, caplog):
    write_files(tmp_path, {"p=1/a.csv": "x\n1\n"})
    (tmp_path / "p=1" / "q=2").symlink_to(tmp_path)
    (tmp_path / "p=1" / "r=3").symlink_to(tmp_path / "p=1")
    assert len(open_files([str(tmp_path / "p=1")])) == 1
    assert "q=2" in caplog.text and "and 1 more" in caplog.text


def test_skipped_files_and_folders_are_named_by_the_first_and_counted(tmp_path, caplog):
    files = {
        "a.csv": "x\n1\n", "empty.csv": b"", "mark.csv": b"\xef\xbb\xbf", "empty.parquet": b"", "notes.txt": b"x",
        "2026-01-01/b.csv": "x\n2\n", "_temporary/c.csv": "x\n3\n", "x=1/_temporary/d.csv": "x\n4\n", "_e.csv": "x\n",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = open_files(write_files(tmp_path, files))
    assert [file.path for file in found] == [str(tmp_path / "a.csv")]
    others, empty = caplog.messages
    assert others.startswith(f"Skipped {tmp_path / '2026-01-01'}/ and 4 more: not a table")
    assert empty == f"Skipped {tmp_path / 'empty.csv'} and 2 more: empty."


def test_a_folder_without_a_table_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(ValueError, match="no table found. Skipped .*notes.txt: not a table .*a.csv: empty"):
        open_files(write_files(tmp_path, {"notes.txt": b"", "a.csv": b""}))
