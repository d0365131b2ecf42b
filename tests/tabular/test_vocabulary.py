"""tabular/vocabulary.py: its file, and columns of a user's program."""

import datetime

import numpy as np
import pytest

from support.tables import COLUMNS, DENSE, Folder, make_rows, write_vocabulary
from tabular.vocabulary import Vocabulary

BIG = 2**53 + 1  # which float64 does not have


@pytest.mark.parametrize(
    "content,words",
    [
        ("", "Expecting value"),
        ("[]", "indices"),
        ("{}", "it has no 'numbers'"),
        ('{"numbers": [], "categories": []}', "it has no column, or a column twice"),
        ('{"numbers": 1}', "iterable"),
        ("[" * 9999, "recursion"),
    ],
)
def test_a_file_that_is_not_a_vocabulary_is_refused(content, words, tmp_path):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match="v.json: this is not a vocabulary") as caught:
        Vocabulary(str(tmp_path / "v.json"))
    assert words in str(caught.value) and "Error(" not in str(caught.value)


def test_two_spellings_of_a_value_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a value of c is empty or a duplicate: 'true'"):
        write_vocabulary(tmp_path, c=["true", "True"])


def test_lists_become_what_the_reader_makes_of_their_texts(tmp_path, rng):
    folder = Folder(tmp_path, ["a.csv"], make_rows(rng, 90))
    vocabulary = Vocabulary(folder.vocabulary_path)
    columns = {
        name: [(float(x) if x else None) if name in DENSE else x or None for x in column]
        for name, column in zip(COLUMNS[:3], zip(*folder.rows))
    }
    products = [int(row[3]) if row[3] else None for row in folder.rows]
    np.testing.assert_allclose(vocabulary.dense(columns), folder.expected()[0], rtol=1e-6, atol=1e-6)
    assert (vocabulary.encode({**columns, "product": products}) == folder.expected()[1]).all()


WRONG = {
    "a missing column": ({"c": ["a"]}, "there is no column 'x'; the columns are: c"),
    "lengths": ({"x": [1, 2], "y": [1]}, "different lengths: x 2, y 1"),
    "infinity": ({"x": [1, float("inf")], "y": [1, 1]}, "row 1: x is infinite"),
    "a text of infinity": ({"x": ["1e999"], "y": [1]}, "row 0: x is infinite"),
    "too large for float32": ({"x": [1, 1e39], "y": [1, 1]}, "row 1: x is 1e\\+39, which does not fit float32"),
    "no number": ({"x": ["cheap"], "y": [1]}, "row 0: x is 'cheap', not a number"),
    "a list": ({"x": [[1]], "y": [1]}, "row 0: x is a list, not a number"),
    "a bare text": ({"x": "12", "y": [1]}, "the column x must be a list"),
    "a bare number": ({"x": 12, "y": [1]}, "the column x must be a list"),
    "two dimensions": ({"x": np.ones([2, 1]), "y": [1, 1]}, "the column x must be a list"),
}


@pytest.mark.parametrize("columns,words", WRONG.values(), ids=WRONG)
def test_a_programs_mistake_is_named_by_its_column(columns, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_vocabulary(tmp_path, numbers="xy", c=["a"]).dense(columns)


def test_inputs_are_those_that_there_are_columns_for(tmp_path):
    columns = {"x": [1, 2], "c": ["a", "b"]}
    for numbers, categories, expected in (("x", {}, [[[1], [2]]]), ("", {"c": ["b"]}, [[[0], [1]]])):
        inputs, unknown = write_vocabulary(tmp_path, numbers, **categories).inputs_of(columns)
        assert [array.tolist() for array in inputs] == expected
        assert unknown == ({"c": (1, 2, ["a"])} if categories else {})


@pytest.mark.parametrize("values,ids", [(["3.5", "4"], [1, 0, 0]), (["a", "4"], [0, 0, 0]), ([], [0, 0, 0])])
def test_a_fraction_may_be_a_category_where_not_all_are_whole_numbers(values, ids, tmp_path):
    vocabulary, columns = write_vocabulary(tmp_path, c=values), {"x": [1, 1, 1], "c": [3.5, 3.7, None]}
    (_, found), unknown = vocabulary.inputs_of(columns)
    assert found[:, 0].tolist() == ids and unknown["c"][:2] == (2 - sum(ids), 2)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_of_a_library_is_read(library, tmp_path):
    module = pytest.importorskip(library)  # pandas and polars are no part of a core install
    make = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "table"}[library]
    vocabulary, table = write_vocabulary(tmp_path, c=["3"]), getattr(module, make)({"x": [1.5, None], "c": [3.0, None]})
    assert vocabulary.dense(table)[:, 0].tolist() == [1.5, 0] and vocabulary.encode(table)[:, 0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="there is no column 'x'; the columns are: c"):
        vocabulary.dense(getattr(module, make)({"c": [1]}))
    for wrong, words in (("cheap", "x is 'cheap', not a number"), ("inf", "x is infinite")):
        with pytest.raises(ValueError, match=f"row 1: {words}"):
            vocabulary.dense(getattr(module, make)({"x": ["1", wrong]}))


def test_columns_of_pandas_types_are_categories(tmp_path):
    pandas = pytest.importorskip("pandas")
    vocabulary = write_vocabulary(tmp_path, c=["true", "3", "0.1", "2026-03-04", str(BIG)])
    for column, ids in (
        (pandas.Series([0.1], dtype="float32"), [3]),
        (pandas.Categorical([3, None]), [2, 0]),
        (pandas.to_datetime(["2026-03-04", None]), [4, 0]),
        (pandas.array([True, None], dtype="boolean"), [1, 0]),
        (pandas.array([3, None], dtype="Int64"), [2, 0]),
        (pandas.array(["0.1", None], dtype="string"), [3, 0]),
        (pandas.array([BIG, None], dtype="Int64"), [5, 0]),
    ):
        assert vocabulary.encode(pandas.DataFrame({"c": column}))[:, 0].tolist() == ids


def test_columns_of_polars_types_are_categories(tmp_path):
    polars = pytest.importorskip("polars")
    vocabulary = write_vocabulary(tmp_path, c=["true", "3", "0.1", "2026-03-04"])
    for column, ids in (
        (polars.Series([0.1], dtype=polars.Float32), [3]),
        (polars.Series(["true", None], dtype=polars.Categorical), [1, 0]),
        (polars.Series([datetime.date(2026, 3, 4), None]), [4, 0]),
    ):
        assert vocabulary.encode(polars.DataFrame({"c": column}))[:, 0].tolist() == ids
