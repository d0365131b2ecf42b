"""tabular/values.py: a field is the same value from CSV, from Parquet of any type, and from a Python object."""

import csv
import datetime
import decimal
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from support.tables import read, write_vocabulary
from tabular import values

MOMENT = datetime.datetime(2026, 3, 4, 5, 6, 7, 500000)
BERLIN = datetime.timezone(datetime.timedelta(hours=1))
BIG = 2**53 + 1  # of a float64 there is none


def arrow(values, kind):
    return pa.array(values, kind)


def timestamps(unit, zone=None):
    seconds = pa.array([datetime.datetime(2026, 3, 4), None], pa.timestamp("us"))
    return seconds.cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone)) if zone else seconds.cast(pa.timestamp(unit))


# the text of a category -> the ways to write it: texts in a CSV, Arrow arrays, Python objects
CATEGORIES = {
    "true": (["true", "True", "TRUE", " true "], [arrow([True, None], pa.bool_())], [True, np.bool_(True), "True"]),
    "false": (["false", "False"], [arrow([False], pa.bool_())], [False, "FALSE"]),
    "3": (
        ["3", "3.0", "3.00"],
        [arrow([3, None], kind) for kind in (pa.int8(), pa.uint64(), pa.float64(), pa.float32())]
        + [arrow([np.float16(3)], pa.float16()), arrow([decimal.Decimal("3.00")], pa.decimal128(9, 2))],
        [3, 3.0, np.int64(3), np.float32(3), decimal.Decimal(3), "3.0", pa.scalar(3)],
    ),
    "-7": (["-7", "-7.0"], [arrow([-7], pa.int64()), arrow([-7.0], pa.float64())], [-7, -7.0]),
    "0": (["0", "-0", "-0.0", "0.0"], [arrow([-0.0], pa.float64())], [0, -0.0]),
    str(BIG): (
        [str(BIG)],
        [arrow([BIG, None], pa.int64()), arrow([BIG], pa.uint64()), arrow([str(BIG)], pa.string())],
        [BIG, np.int64(BIG), str(BIG)],
    ),
    str(2**64 - 1): ([str(2**64 - 1)], [arrow([2**64 - 1], pa.uint64())], [2**64 - 1, np.uint64(2**64 - 1)]),
    "0.1": (
        ["0.1", "1e-01", "1.0E-1"],
        [arrow([0.1], pa.float64()), arrow([0.1], pa.float32())],
        [0.1, np.float32(0.1), np.float64(0.1), decimal.Decimal("0.1")],
    ),
    "0.0000001": (["1e-07", "1.0E-7"], [arrow([1e-7], pa.float64()), arrow([1e-7], pa.float32())], [1e-7]),
    "12345678": (["12345678", "1.2345678E7"], [arrow([12345678.0], pa.float64())], [12345678.0]),
    "2026-03-04": (
        ["2026-03-04", "2026-03-04 00:00:00", "2026-03-04T00:00:00.000", "2026-03-04T00:00:00Z"],
        [timestamps(unit) for unit in ("s", "ms", "us", "ns")]
        + [arrow([datetime.date(2026, 3, 4)], pa.date32()), arrow([datetime.date(2026, 3, 4)], pa.date64())],
        [datetime.date(2026, 3, 4), datetime.datetime(2026, 3, 4), np.datetime64("2026-03-04T00:00", "ns")]
        + [np.datetime64("2026-03-04T00", "h"), np.datetime64("2026-03-04")],
    ),
    "2026-03-04 05:06:07.5": (
        ["2026-03-04 05:06:07.5", "2026-03-04T05:06:07.500000"],
        [arrow([MOMENT], pa.timestamp(unit)) for unit in ("ms", "us", "ns")],
        [MOMENT, np.datetime64(MOMENT)],
    ),
    "2026-03-04 04:06:07.5": (
        ["2026-03-04 04:06:07.5Z", "2026-03-04T04:06:07.500+00:00", "2026-03-04 05:06:07.5+01:00"]
        + ["2026-03-04 04:06:07.5+00", "2026-03-04 01:06:07.5-03"],
        [
            arrow([MOMENT.replace(tzinfo=BERLIN)], pa.timestamp("us", "UTC")),
            arrow([MOMENT.replace(tzinfo=BERLIN)], pa.timestamp("ms", "Europe/Berlin")),
        ],
        [MOMENT.replace(tzinfo=BERLIN)],
    ),
    "-0.0000000250": (  # a decimal keeps its digits
        ["-0.0000000250", "-2.50E-8"],
        [arrow([decimal.Decimal("-0.0000000250")], pa.decimal128(12, 10))],
        [decimal.Decimal("-0.0000000250")],
    ),
    "05:06:07": (
        ["05:06:07", "05:06:07.000"],
        [arrow([datetime.time(5, 6, 7)], kind) for kind in (pa.time32("ms"), pa.time64("ns"))],
        [datetime.time(5, 6, 7)],
    ),
    "ein Café": (
        ["ein Café", " ein Café "],
        [arrow(["ein Café"], kind) for kind in (pa.string(), pa.large_string())]
        + [arrow(["ein Café".encode()], kind) for kind in (pa.binary(), pa.large_binary())]
        + [arrow(["ein Café", None, "x"], pa.string()).dictionary_encode()],
        ["ein Café", "ein Café".encode(), np.str_("ein Café")],
    ),
    "12345678-1234-5678-1234-567812345678": (
        ["12345678-1234-5678-1234-567812345678"],
        [],
        [uuid.UUID("12345678-1234-5678-1234-567812345678")],
    ),
    # texts that only look like one of these
    "007": (["007"], [arrow(["007"], pa.string())], ["007"]),
    "1.10": (["1.10"], [arrow(["1.10"], pa.string())], ["1.10", decimal.Decimal("1.10")]),
    "1e5": (["1e5"], [arrow(["1e5"], pa.string())], ["1e5"]),
    "16:10": (["16:10"], [arrow(["16:10"], pa.string())], ["16:10"]),
    "2026-99-99 00:00:00Z": (["2026-99-99 00:00:00Z"], [], ["2026-99-99 00:00:00Z"]),
    "١": (["١"], [arrow(["١"], pa.string())], ["١"]),
}
if hasattr(pa, "string_view"):
    CATEGORIES["ein Café"][1].append(arrow(["ein Café"], pa.string_view()))
    CATEGORIES["ein Café"][1].append(arrow(["ein Café".encode()], pa.binary_view()))
    CATEGORIES["true"][1].append(pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())))
    CATEGORIES["3"][1].append(pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([3.0])))


@pytest.mark.parametrize("text", CATEGORIES)
def test_a_value_is_one_category_from_any_source(text, tmp_path):
    in_csv, arrays, objects = CATEGORIES[text]
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["c", "x"], *([each, 1] for each in in_csv)])
    found, _, message = read(tmp_path / "a.csv", [], ["c"])
    assert found == {"c": [text] * len(in_csv)} and message is None
    vocabulary = write_vocabulary(tmp_path, c=["another", text])
    for i, array in enumerate(arrays):
        expected = ["" if value is None else text if value != "x" else "x" for value in array.to_pylist()]
        table = pa.table({"c": array})
        assert vocabulary.encode(table)[0] == 2
        if "run_end" not in str(array.type):  # which Parquet does not store
            pq.write_table(table, tmp_path / f"{i}.parquet")
            found, _, message = read(tmp_path / f"{i}.parquet", [], ["c"])
            assert found == {"c": expected} and message is None, array.type
    assert vocabulary.encode({"c": objects})[:, 0].tolist() == [2] * len(objects)
    assert write_vocabulary(tmp_path, c=["another", in_csv[-1]]).encode({"c": [text]}) == 2  # made by hand


def test_pyarrows_csv_and_parquet_of_a_table_are_read_alike(tmp_path):
    """Each type that both can store, with gaps and the ends of ranges."""
    columns = {
        "int": arrow([1, None, -(2**63), 2**63 - 1], pa.int64()),
        "float": arrow([1.0, None, 0.1, 1e-300], pa.float64()),
        "single": arrow([1.0, None, 0.1, 3e-5], pa.float32()),
        "bool": arrow([True, None, False, True], pa.bool_()),
        "decimal": arrow(
            [decimal.Decimal("1.50"), None, decimal.Decimal("2.00"), decimal.Decimal("-0.25")], pa.decimal128(9, 2)
        ),
        "s": arrow([0, None, 1, 86400], pa.timestamp("s")),
        "ns": arrow([0, None, 1, 86400 * 10**9], pa.timestamp("ns")),
        "zone": arrow([0, None, 1, 86400 * 10**3], pa.timestamp("ms", "America/New_York")),
        "date": arrow([0, None, 1, 20000], pa.date32()),
        "time": arrow([0, None, 1, 86399999], pa.time32("ms")),
        "text": arrow(["a,b", None, 'say "hi"', "3.0"], pa.string()),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    from_csv, from_parquet = (read(tmp_path / name, [], [*columns]) for name in ("a.csv", "a.parquet"))
    assert from_csv == from_parquet and from_csv[2] is None


@pytest.mark.parametrize(
    "array,text",
    [
        (arrow([1.0, float(BIG)], pa.float64()), f"{float(BIG)}"),
        (arrow([1.0, 2.0**24], pa.float32()), "16777216.0"),
        (arrow([1.0, 1e300], pa.float64()), "1e+300"),
    ],
)
def test_a_float_too_large_to_be_exact_is_refused_as_a_category(array, text, tmp_path):
    pq.write_table(pa.table({"c": array}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(f"c,x\n1,1\n{text},1\n")
    words = f"c is the float {text}, too large to be an exact whole number"
    assert words in read(tmp_path / "a.parquet", [], ["c"])[2]
    if array.type == pa.float64():  # a text does not show that it was a float32
        assert words in read(tmp_path / "a.csv", [], ["c"])[2]
    with pytest.raises(ValueError, match="row 1: c is the float"):
        write_vocabulary(tmp_path, c=["1"]).encode({"c": array.to_numpy()})


NUMBERS = {  # number -> texts of a CSV, Arrow arrays, Python objects
    1.0: (
        ["1", "1.0", "true", "True", "TRUE", " 1 "],
        [arrow([True], pa.bool_()), arrow(["True"], pa.string())],
        [True, "true"],
    ),
    0.0: (
        ["0", "false", "False"],
        [arrow([False], pa.bool_()), arrow([b"false"], pa.binary())],
        [False, np.bool_(False)],
    ),
    -2.5: (
        ["-2.5", "-2.50", "-25e-1"],
        [arrow([decimal.Decimal("-2.5")], pa.decimal128(9, 3)), arrow(["-2.5"], pa.string())]
        + [arrow([-2.5], pa.float32()), arrow([-2.5], pa.float64()).dictionary_encode()],
        [-2.5, "-2.5", " -2.5 ", decimal.Decimal("-2.50"), np.float32(-2.5)],
    ),
    np.nan: (
        ['""', " ", "NA", "null", "#N/A", "NAN", "+nan", "Nan", "nan(0)"],
        [arrow([None], pa.float64()), arrow([None], pa.int8()), arrow(["n/a"], pa.string()), arrow([np.nan], None)],
        [None, np.nan, "", "  ", "NA", "null", "NAN", "+nan", "nan(0)", np.datetime64("NaT"), pa.scalar(None)],
    ),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_value_is_one_number_from_any_source(number, tmp_path):
    in_csv, arrays, objects = NUMBERS[number]
    for more in ([], ["true"]):  # which pyarrow itself does not read as a number
        (tmp_path / "a.csv").write_text("x,c\n" + "".join(f"{text},1\n" for text in in_csv + more))
        found, _, message = read(tmp_path / "a.csv", ["x"], ["c"])
        np.testing.assert_equal(found["x"], [number] * len(in_csv) + [1.0] * len(more))
        assert message is None
    for array in arrays:
        pq.write_table(pa.table({"x": array}), tmp_path / "a.parquet")
        np.testing.assert_equal(read(tmp_path / "a.parquet", ["x"])[0]["x"], [number])
    vocabulary, expected = write_vocabulary(tmp_path), 0.0 if np.isnan(number) else number
    for given in (objects, np.array(objects, object)):
        assert vocabulary.dense({"x": given})[:, 0].tolist() == [expected] * len(objects)


def test_a_timedelta64_is_neither_a_category_nor_a_number(tmp_path):
    """NumPy counts it among the whole numbers."""
    vocabulary, durations = write_vocabulary(tmp_path, c=["1"]), np.array([1], "m8[s]")
    for function, column in ((vocabulary.encode, "c"), (vocabulary.dense, "x")):
        with pytest.raises(ValueError, match=f"row 0: {column} is a timedelta64, not a"):
            function({column: durations})


def test_the_null_texts_are_pyarrows():
    assert values.NULL_TEXTS == {*pyarrow.csv.ConvertOptions().null_values}
