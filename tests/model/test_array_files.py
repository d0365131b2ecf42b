"""dselect_k_model/array_files.py: what it reads from data files and checkpoints, and what it refuses.

tests/stress/fuzz_data.py and fuzz_files.py run for longer.
"""

import gzip
import io
import pickle

import fuzz_data
import fuzz_files
import numpy as np
import paddle
import pytest

import make_multi_mnist
from dselect_k_model import array_files
from dselect_k_model.array_files import Unreadable, loads
from engine.checkpoints import weight_files
from engine.errors import UserError
from support.memory import peak_of
from support.seeds import random_state

BYTES = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
NUMBERS = np.array([[0, 9], [1, 2], [3, -4]], np.int32)


# ----------------------------------------------------------------------------------------- read


def as_python_2(array):
    """The array as Python 2's protocol 0 wrote it, by hand: names and raw data are byte strings."""
    raw = "".join(f"\\x{byte:02x}" for byte in array.tobytes()).encode()
    shape = b"".join(b"I%d\n" % n for n in array.shape)
    order, kind = array.dtype.newbyteorder("<").str[0].encode(), array.dtype.str[1:].encode()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        + shape
        + b"tcnumpy\ndtype\n(S'"
        + kind
        + b"'\nI0\nI1\ntR(I3\nS'"
        + order
        + b"'\nNNNI-1\nI-1\nI0\ntbI00\nS'"
        + raw
        + b"'\ntb"
    )


def by_python_2(content):
    return b"(" + b"".join(map(as_python_2, content)) + b"t."


def by_other_numpy(content):
    raw = pickle.dumps(content, protocol=3)
    names = b"numpy._core.", b"numpy.core."
    return raw.replace(*names) if names[0] in raw else raw.replace(*reversed(names))


def as_npz(content, save=np.savez):
    file = io.BytesIO()
    save(file, *content)
    return file.getvalue()


def by_make_multi_mnist(content):
    file = io.BytesIO()
    make_multi_mnist._Pickler(file, protocol=3).dump(content)
    return file.getvalue()


WRITERS = {f"protocol {p}": lambda content, p=p: pickle.dumps(content, protocol=p) for p in range(6)}
WRITERS |= {
    "the other NumPy": by_other_numpy,
    "Python 2": by_python_2,
    "make_multi_mnist": by_make_multi_mnist,
    "gzip": lambda content: gzip.compress(by_python_2(content)),
    "npz": as_npz,
    "compressed npz": lambda content: as_npz(content, np.savez_compressed),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_arrays_of_every_writer_are_read(tmp_path, writer):
    path = tmp_path / "x"
    content = (BYTES, NUMBERS)
    if writer not in ("Python 2", "gzip", "make_multi_mnist"):
        content += (np.asfortranarray(NUMBERS), NUMBERS.astype(">i2"), NUMBERS / 3, NUMBERS > 0)
    path.write_bytes(WRITERS[writer](content))
    found = array_files.read(path)
    assert type(found) is tuple and len(found) == len(content)
    for array, expected in zip(found, content):
        np.testing.assert_array_equal(array, expected)
        assert type(array) is np.ndarray and array.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")


LISTS = {
    "lists": NUMBERS.tolist(),
    "tuples": tuple(map(tuple, NUMBERS.tolist())),
    "floats": (NUMBERS / 1.0).tolist(),
    "ints among floats": [[int(a), float(b)] for a, b in NUMBERS],
    "arrays": list(NUMBERS),
    "NumPy's numbers": [tuple(pair) for pair in NUMBERS],
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", LISTS)
def test_lists_of_numbers_and_of_arrays_are_arrays(tmp_path, form, protocol):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps({"a": LISTS[form]}, protocol=protocol))
    found = array_files.read(path)["a"]
    assert found.tolist() == NUMBERS.tolist() and found.dtype.kind == ("f" if "floats" in form else "i")


def holding_itself():
    images = []
    images.append(images)
    return images


@pytest.mark.parametrize(
    "value,words",
    [
        ([[[1, 2], [3]]], "ragged"),
        ([[1, 2], 3], "ragged"),
        ([[[[[[1]]]]]], "too deep"),
        (holding_itself(), "too deep"),
        ([[["1"]]], "str, not only numbers"),
        ([[None, 1]], "NoneType, int, not only numbers"),
        ([[True]], "bool"),
        ([BYTES[0], BYTES[1, :5]], "differ in shape"),
        ([BYTES[0], NUMBERS[0]], "differ in shape or type"),
        ([[1 << 70]], "too large"),
        ([[[[7] * 1000] * 1000] * 1000], "repeat each other"),
        ([np.zeros(1000)] * 1000, "repeat an array"),
    ],
)
def test_lists_that_are_no_arrays_are_refused_by_file_and_reason(tmp_path, value, words):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps((value, NUMBERS), protocol=2))
    with pytest.raises(ValueError, match=words) as caught:
        array_files.read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content", [b"\x80\x04", pickle.dumps((1, 2))[:-4], b"PK\x03\x04", gzip.compress(b"x", mtime=0)[:-3]]
)
def test_a_broken_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.gz: "):
        array_files.read(path)


# -------------------------------------------------------------------------------------- map_npy


def npy(text):
    text = text.encode() + b" " * (-len(text) % 64)
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 36, 36)}") + bytes(99),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -36, 36)}") + bytes(3 * 36 * 36),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 36, 36)}") + bytes(3 * 36 * 36 + 1),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}") + b"cos\nsystem\n(S'true'\ntR.",
        npy("__import__('os').mkdir('canary')"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_an_npy_that_cannot_be_mapped_is_refused_by_name(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.npy: "):
        array_files.map_npy(path)
    assert not (tmp_path / "canary").exists()


# ---------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_is_read_to_the_bit(tmp_path, rng, protocol):
    content = {
        "w": paddle.to_tensor(rng.rand(3, 4).astype("float32")),
        "step": paddle.to_tensor([3]),
        "scalar": np.float64(0.1),
        "none": np.zeros((0, 3), "float32"),
        "columns": np.asfortranarray(rng.rand(2, 3)),
        "half": np.ones(2, "float16"),
        "truth": np.array([True]),
        "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.1},
    }
    path = str(tmp_path / "rec.pdopt")
    paddle.save(content, path, protocol=protocol)
    found = weight_files.read_optimizer_state(str(tmp_path), weight_files.DYNAMIC)[1]
    assert found.pop("LR_Scheduler") == content.pop("LR_Scheduler") and set(found) == set(content)
    for name, value in content.items():
        want = np.asarray(value)
        assert found[name].dtype == want.dtype and found[name].shape == want.shape
        assert found[name].tobytes() == want.tobytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    paddle.disable_static()
    yield fuzz_files.Files(str(tmp_path_factory.mktemp("files")))
    paddle.disable_static()


@pytest.mark.parametrize("graph,file", [("dynamic", "rec.pdopt"), ("static", "rec_static.pdopt")])
@pytest.mark.parametrize(
    "change,word",
    [
        (lambda name, value: {}, "moment1"),
        (lambda name, value: {name.replace("moment1", "velocity"): value}, "velocity"),
        (lambda name, value: {name: np.zeros(np.shape(value) + (2,), "float32")}, "moment1"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_refused_before_a_step(files, graph, file, change, word):
    one = files.trained[graph]
    state = pickle.loads(one.good[file])
    name = next(name for name in state if name.endswith("w_0_moment1_0"))
    changed = {**{key: value for key, value in state.items() if key != name}, **change(name, state[name])}
    with pytest.raises(UserError, match=f"{file}.*{word}"):
        one.take(file, pickle.dumps(changed))
    one.take(file, one.good[file])


# -------------------------------------------------------------------------------- hostile files


def test_hostile_data_is_refused(tmp_path):
    assert fuzz_data.check_hostile(tmp_path) > 35


def test_mutated_data_is_read_or_refused(tmp_path):
    fuzz_data.fuzz(60, 1, tmp_path)


def test_hostile_checkpoints_and_configs_are_refused(files):
    assert fuzz_files.check_hostile(files) > 250


def test_mutated_checkpoints_and_configs_are_accepted_or_refused(files):
    fuzz_files.fuzz(60, 1, files)


TEXT = b"X" + (1 << 16).to_bytes(4, "little") + b"x" * (1 << 16) + b"q\x00"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(J\x00\x00\x01\x00\x85cnumpy\ndtype\nX\x02\x00\x00\x00%s\x85R\x89%stb"


@pytest.mark.parametrize(
    "content,words",
    [
        (b"\x80\x02cos\nsystem\n.", "asks for os.system"),
        (b"\x80\x02" + TEXT + (ARRAY % (b"u1", b"h\x00")) * 9 + b".", "more memory"),  # encoded for each
        (b"\x80\x02" + ARRAY % (b"O8", b"U\x00") + b".", "not a plain number"),
        (b"\x80\x02" + b"K\x01" * 1001, "more than 1000 opcodes"),
        (b"\x80\x04\x8f.", "the opcode EMPTY_SET"),
        (b"\x80\x02}K\x01K\x02s.", "not text"),
    ],
)
def test_a_refusal_says_what_no_arrays_need(content, words, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_OPCODES", 1000)
    with pytest.raises(Unreadable, match=words):
        loads(content)


def test_a_large_checkpoint_is_read_in_less_than_three_times_its_memory(tmp_path):
    paddle.save({f"w{i}": np.zeros([1 << 18], "float32") for i in range(50)}, str(tmp_path / "rec.pdparams"))
    assert peak_of(array_files.read, tmp_path / "rec.pdparams") < 3 * 50 * (1 << 20)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_lists_are_read_in_bounded_memory(tmp_path, protocol):
    rng = random_state(0)
    path = tmp_path / "x.pickle"
    for content in (rng.randint(0, 256, [20, 36, 36]).tolist(), [tuple(pair) for pair in rng.rand(8000, 2).tolist()]):
        path.write_bytes(pickle.dumps([content], protocol=protocol))
        assert peak_of(array_files.read, path) < 40 * path.stat().st_size
