"""The ids of categories."""

import numpy as np
import pyarrow as pa
import pytest

from tabular import categories
from tabular.columns import Texts, text_column, texts_at


@pytest.mark.parametrize("few_for_arrow", [0, 1, 10**6])
def test_a_known_value_has_its_place_in_the_list_as_its_id(few_for_arrow, rng, monkeypatch):
    """Looked up by pyarrow or by Python, the ids are the same."""
    monkeypatch.setattr(categories, "FEW_FOR_ARROW", few_for_arrow)
    values = [f"v{i}" for i in range(100)] + ["größe", "a b", "7"]
    ids = categories.KnownIds("c", values)
    texts = [*rng.permutation(values), "", "not known", *values[:60], "v"]
    expected = [values.index(text) + 1 if text in values else 0 for text in texts]
    for form in (texts, Texts(pa.array(texts)), Texts(pa.array(texts)[:7]), Texts(pa.array([], pa.string()))):
        found = ids.of(form)
        assert found.dtype == np.int32 and found.tolist() == expected[: len(form)]


def test_texts_are_those_of_their_array(rng):
    texts = [*rng.permutation(["a", "", "größe", "7"])]
    late = Texts(pa.array(["x", *texts])[1:])
    assert [*late] == texts == [late[i] for i in range(4)] and len(late) == 4
    assert texts_at(late, np.array([2, 0])) == texts_at(texts, [2, 0]) == [texts[2], texts[0]]


def test_a_dictionary_whose_codes_have_no_room_for_an_empty_field():
    values = [f"v{i}" for i in range(128)]
    column = pa.DictionaryArray.from_arrays(pa.array([127, None, 0], pa.int8()), values)
    codes, texts = text_column(column, "a.parquet", "c").values
    assert texts_at(texts, codes) == ["v127", "", "v0"]
