"""tools/engine/checkpoints/weight_files.py: what is broken or does not fit is refused by name."""

import numpy as np
import pytest

from engine.checkpoints import weight_files
from engine.errors import UserError

NETWORK = {"a": np.zeros([2, 3], "float32"), "b": np.zeros([4], "int64")}
GOOD = {"a": np.ones([2, 3]), "b": np.ones([4], "int32")}


@pytest.mark.parametrize("raw", [b"", b"\x80\x04nonsense", b"<html>", b"\x80\x05K\x01."])
@pytest.mark.parametrize("name", ["rec.pdparams", "rec_static.pdparams"])
def test_a_broken_file_is_refused_by_name(tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=name):
        weight_files.read_weights(str(tmp_path))


def test_a_folder_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        weight_files.read_weights(str(tmp_path))


def test_arrays_take_the_dtype_of_the_network():
    chosen = weight_files.fit(NETWORK, GOOD, "file")
    assert chosen["a"].dtype == np.float32 and chosen["b"].dtype == np.int64


@pytest.mark.parametrize(
    "found,words",
    [
        ({"a": GOOD["a"]}, "no b"),
        ({**GOOD, "a": np.ones([3, 2])}, r"a is \[3, 2\]"),
        ({**GOOD, "b": np.ones([4])}, "b is .* float64"),
    ],
)
def test_an_array_that_does_not_fit_is_named(found, words):
    with pytest.raises(UserError, match=words):
        weight_files.fit(NETWORK, found, "file")


def test_a_warm_start_may_be_partial_but_not_empty(caplog):
    assert list(weight_files.fit(NETWORK, {"a": GOOD["a"], "c": np.ones(1)}, "file", partly=True)) == ["a"]
    assert "no b" in caplog.text and "not used: c" in caplog.text
    with pytest.raises(UserError):
        weight_files.fit(NETWORK, {"c": np.ones(1)}, "file", partly=True)
