"""The ids of categories."""

import numpy as np
import pyarrow as pa
import pytest

from tabular import categories
from tabular.columns import Texts


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
