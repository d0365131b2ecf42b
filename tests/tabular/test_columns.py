"""tabular/columns.py: Arrow columns as numbers and texts, and which rows are bad."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.tables import blocks, read, write_files


def test_old_parquet_has_every_year(tmp_path):
    """INT96, which Spark and Hive wrote, in nanoseconds would overflow outside of 1677 to 2262."""
    years = pa.array([datetime.datetime(year, 12, 31) for year in (1000, 2026, 9999)], pa.timestamp("us"))
    pq.write_table(pa.table({"c": years}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert read(tmp_path / "a.parquet", [], ["c"])[0] == {"c": ["1000-12-31", "2026-12-31", "9999-12-31"]}


@pytest.mark.parametrize(
    "kind,value",
    [
        (pa.duration("s"), 1),
        (pa.list_(pa.int64()), [1]),
        (pa.list_(pa.int64()), None),
        (pa.struct({"a": pa.int64()}), None),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_refused_by_the_type(kind, value, tmp_path):
    write_files(tmp_path, {"a.parquet": pa.table({"c": pa.array([value], kind)})})
    with pytest.raises(ValueError, match=r"a.parquet: the column c is of type .*, not of texts"):
        read(tmp_path / "a.parquet", [], ["c"])
    with pytest.raises(ValueError, match=r"a.parquet: the column c has no numbers: its type is"):
        read(tmp_path / "a.parquet", ["c"])


def test_an_empty_field_of_a_text_column_in_parquet_is_not_bad(tmp_path):
    columns = {"x": ["cheap", None, "1"], "nothing": pa.array([None] * 3, pa.string())}
    write_files(tmp_path, {"a.parquet": pa.table({**columns, "c": pa.array([b"\xff", None, b"a"])})})
    found, good, message = read(tmp_path / "a.parquet", ["x", "nothing"])
    np.testing.assert_equal(found, {"x": [np.nan, np.nan, 1], "nothing": [np.nan] * 3})
    assert good == [False, True, True] and "a.parquet, row 1: x is 'cheap'" in message
    found, good, message = read(tmp_path / "a.parquet", [], ["c"])
    assert found["c"] == ["", "a"] and good == [False, True, True] and "row 1: c is b'\\xff', not UTF-8" in message


def test_bytes_declared_as_text_are_bad_by_their_row(tmp_path):
    write_files(tmp_path, {"a.parquet": pa.table({"c": pa.array([b"a", b"\xff"]).view(pa.string())})})
    found, _, message = read(tmp_path / "a.parquet", [], ["c"])
    assert found["c"] == ["a"] and "row 2: c is b'\\xff', not UTF-8 text" in message


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_null_texts_are_empty_as_numbers_and_categories_as_texts(name, tmp_path):
    texts = ["NA", " n/a ", "nan", "NULL", " ", "", " 2.5 "]
    content = "x,c\n" + "".join(f"{text},{text}\n" for text in texts)
    write_files(tmp_path, {name: content if name == "a.csv" else pa.table({"x": texts, "c": texts})})
    found, good, _ = read(tmp_path / name, ["x"], ["c"])
    np.testing.assert_equal(found["x"], [np.nan] * 6 + [2.5])
    assert all(good) and found["c"] == [text.strip() for text in texts]


def test_a_column_without_any_number_is_reported_as_a_whole(tmp_path):
    files = {"a.csv": "x,y,z\nyes,1,3\nno,?,3\n,2,4\n", "b.parquet": pa.table({"x": ["yes", "no"]})}
    write_files(tmp_path, files)
    for name in files:
        (block,) = blocks(tmp_path / name)
        assert "the column x has no numbers: one field is 'yes', not a number" in str(
            block.read(["x"], []).without_numbers
        )
    rows = blocks(tmp_path / "a.csv")[0].read(["y"], [])
    assert rows.without_numbers is None and "a.csv, line 3: y is '?', not a number" in rows.first_bad()
