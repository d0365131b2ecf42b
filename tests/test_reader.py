"""multiMNIST_reader.py: what it reads, what it refuses, and how."""

import gc
import gzip
import hashlib
import io
import os
import pathlib
import pickle
import signal
import tracemalloc

import fuzz_data
import numpy as np
import pytest
from conftest import ROOT
from toolbox import cost_of_reading

import make_multi_mnist
from multiMNIST_reader import FOUR, PAIR, RecDataset

GOOD_IMAGES = np.arange(4 * 36 * 36, dtype=np.uint8).reshape(4, 36, 36)
GOOD_LABELS = np.array([[0, 9], [1, 2], [3, 4], [5, 5]], np.int32)


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def read(*paths):
    return RecDataset([str(p) for p in paths], config={"runner.inference": True})


def test_an_item_is_image_left_right(tmp_path):
    data = read(write(tmp_path / "a.pickle", (GOOD_IMAGES, GOOD_LABELS)))
    assert len(data) == 4
    image, left, right = data[1]
    assert image.shape == (1, 36, 36) and image.dtype == np.float32
    assert (image[0] == GOOD_IMAGES[1].astype(np.float32) / np.float32(255)).all()
    assert (left, right) == (1, 2) and left.dtype == right.dtype == np.int64
    assert data.images.dtype == np.uint8


def test_files_are_one_set_in_sorted_order_and_others_are_passed_over(tmp_path):
    b = write(tmp_path / "b ü 数据.pickle", (GOOD_IMAGES[:1], GOOD_LABELS[:1]))
    a = tmp_path / "a.pickle.gz"
    a.write_bytes(gzip.compress(pickle.dumps((GOOD_IMAGES[1:], GOOD_LABELS[1:]), protocol=4)))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "folder.pickle").mkdir()
    write(tmp_path / ".hidden.pickle", "broken")
    data = read(b, tmp_path / "README.md", tmp_path / "folder.pickle", tmp_path / ".hidden.pickle", a)
    assert data.labels.tolist() == [[1, 2], [3, 4], [5, 5], [0, 9]]


def wrong_label(value=10, index=3):
    labels = GOOD_LABELS.astype(float if isinstance(value, float) else np.int64)
    labels[index, 1] = value
    return labels


def wrong_pixel(value, index=3):
    images = GOOD_IMAGES.astype(np.float32)
    images[index, 35, 35] = value
    return images


@pytest.mark.parametrize(
    "content,words",
    [
        ((GOOD_IMAGES[:, :28, :28], GOOD_LABELS), ["[4, 28, 28] uint8", "plain MNIST"]),
        ((np.zeros((4, 784), np.uint8), GOOD_LABELS), ["[4, 784] uint8", "plain MNIST"]),
        ((GOOD_IMAGES[:, :, :, None].repeat(3, 3), GOOD_LABELS), ["[4, 36, 36, 3]", "one channel"]),
        ((GOOD_IMAGES[:, None].repeat(3, 1), GOOD_LABELS), ["[4, 3, 36, 36]", "one channel"]),
        ((GOOD_IMAGES[0], GOOD_LABELS), ["[36, 36]"]),
        ((wrong_pixel(np.nan), GOOD_LABELS), ["image 3", "nan"]),
        ((wrong_pixel(np.inf, 0), GOOD_LABELS), ["image 0", "inf"]),
        ((wrong_pixel(-1), GOOD_LABELS), ["image 3", "-1"]),
        ((wrong_pixel(256), GOOD_LABELS), ["image 3", "256"]),
        ((GOOD_IMAGES.astype(np.int16) - 1, GOOD_LABELS), ["image 0", "-1"]),
        ((GOOD_IMAGES > 9, GOOD_LABELS), ["image_scale"]),
        ((GOOD_IMAGES.astype(complex), GOOD_LABELS), ["images are complex128"]),
        ((GOOD_IMAGES, GOOD_LABELS[:3]), ["4 images", "3 labels"]),
        ((GOOD_IMAGES, GOOD_LABELS[:, 0]), ["labels are [4]"]),
        ((GOOD_IMAGES, wrong_label(10)), ["example 3", "[5, 10]"]),
        ((GOOD_IMAGES, wrong_label(-1, 0)), ["example 0", "[0, -1]"]),
        ((GOOD_IMAGES, wrong_label(2.5)), ["example 3", "2.5"]),
        ((GOOD_IMAGES, wrong_label(np.nan)), ["example 3", "nan"]),
        ((GOOD_IMAGES, np.eye(10)[GOOD_LABELS] * 2), ["example 0", "one-hot"]),
        ((GOOD_IMAGES[:0], GOOD_LABELS[:0]), ["no image"]),
        ((GOOD_IMAGES, GOOD_LABELS, 3), ["tuple of 3"]),
        ((GOOD_IMAGES, "labels"), ["labels is a str"]),
        ({"images": GOOD_IMAGES}, ["dict"]),
        (GOOD_IMAGES, ["ndarray"]),
        (3, ["int"]),
        ((GOOD_IMAGES.astype(object), GOOD_LABELS), ["O8"]),
    ],
)
def test_other_contents_are_refused_by_name(tmp_path, content, words):
    path = write(tmp_path / "x.pickle", content)
    with pytest.raises(ValueError) as caught:
        read(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


BROKEN = [b"", b"<!DOCTYPE html>", b"\x80\x04", pickle.dumps((1, 2))[:-4], b"\x80\x05K\x01.", b"PK\x03\x04"]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("suffix", [".pickle", ".pickle.gz", ".npz"])
def test_broken_files_are_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.pickle|x.npz"):
        read(path)


def test_a_page_of_html_is_called_one_and_says_how_to_get_the_data(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\n <html><body>404</body></html>")
    with pytest.raises(ValueError, match="HTML.*make_multi_mnist"):
        read(path)


# ------------------------------------------------------------------- forms x writers x roles


def as_python_2(array):
    """The array as Python 2's protocol 0 wrote it, by hand: names and raw data are byte strings."""
    raw = "".join(f"\\x{byte:02x}" for byte in array.tobytes()).encode()
    shape = b"".join(b"I%d\n" % n for n in array.shape)
    order, kind = array.dtype.newbyteorder("<").str[0].encode(), array.dtype.str[1:].encode()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(" + shape
        + b"tcnumpy\ndtype\n(S'" + kind + b"'\nI0\nI1\ntR(I3\nS'" + order
        + b"'\nNNNI-1\nI-1\nI0\ntbI00\nS'" + raw + b"'\ntb"
    )  # fmt: skip


def by_python_2(content):
    return b"(" + b"".join(map(as_python_2, content)) + b"t."


def by_other_numpy(content):
    raw = pickle.dumps(content, protocol=3)
    names = b"numpy._core.", b"numpy.core."
    return raw.replace(*names) if names[0] in raw else raw.replace(*reversed(names))


def as_npz(content, save=np.savez):
    file = io.BytesIO()
    save(file, **dict(zip(PAIR if len(content) == 2 else FOUR, content)))
    return file.getvalue()


def our_own(content):
    file = io.BytesIO()
    make_multi_mnist._Pickler(file, protocol=3).dump(content)
    return file.getvalue()


WRITERS = {f"protocol {p}": (".pickle", lambda c, p=p: pickle.dumps(c, protocol=p)) for p in range(6)}
WRITERS.update(
    {
        "other NumPy": (".pkl", by_other_numpy),
        "Python 2": (".pickle", by_python_2),
        "make_multi_mnist": (".pickle", our_own),
        "gzip": (".pickle.gz", lambda c: gzip.compress(pickle.dumps(c, protocol=4))),
        "gzip of Python 2": (".gz", lambda c: gzip.compress(by_python_2(c))),
        "list": (".pickle", lambda c: pickle.dumps(list(c))),
        "dict": (".pickle", lambda c: pickle.dumps(dict(zip(PAIR if len(c) == 2 else FOUR, c)))),
        "npz": (".npz", as_npz),
        "compressed npz": (".npz", lambda c: as_npz(c, np.savez_compressed)),
    }
)
IMAGES = {
    "uint8": GOOD_IMAGES,
    "int32": GOOD_IMAGES.astype(np.int32),
    "big endian": GOOD_IMAGES.astype(">i2"),
    "float 0..255": GOOD_IMAGES.astype(np.float32),
    "float 0..1": GOOD_IMAGES / 255.0,
    "float16 0..1": (GOOD_IMAGES / 255.0).astype(np.float16),
    "channel first": GOOD_IMAGES[:, None],
    "channel last": GOOD_IMAGES[..., None],
    "flattened": GOOD_IMAGES.reshape(4, -1),
    "Fortran order": np.asfortranarray(GOOD_IMAGES),
}
LABELS = {
    "int32": GOOD_LABELS,
    "uint8": GOOD_LABELS.astype(np.uint8),
    "whole floats": GOOD_LABELS.astype(np.float64),
    "one-hot": np.eye(10, dtype=np.float32)[GOOD_LABELS],
    "one-hot, flat": np.eye(10, dtype=bool)[GOOD_LABELS].reshape(4, 20),
}


def check(path, part=None):
    config = {} if part is None else {"runner.data_part": part}
    data = RecDataset([str(path)], config=config)
    chosen = slice(0, 3) if part == "train" else slice(3, 4) if part == "test" else slice(0, 4)
    assert (data.images == GOOD_IMAGES[chosen]).all() and data.images.dtype == np.uint8
    assert (data.labels == GOOD_LABELS[chosen]).all() and data.labels.dtype == np.int64


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writers_pairs_and_four_arrays_are_read(tmp_path, writer):
    suffix, dump = WRITERS[writer]
    pair = (GOOD_IMAGES, GOOD_LABELS)
    (tmp_path / f"pair{suffix}").write_bytes(dump(pair))
    check(tmp_path / f"pair{suffix}")
    four = (GOOD_IMAGES[:3], GOOD_LABELS[:3], GOOD_IMAGES[3:], GOOD_LABELS[3:])
    (tmp_path / f"four{suffix}").write_bytes(dump(four))
    check(tmp_path / f"four{suffix}", "train")
    check(tmp_path / f"four{suffix}", "test")


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("writer", ["protocol 2", "protocol 5", "compressed npz"])
def test_every_form_of_images_and_labels_is_read(tmp_path, images, labels, writer):
    suffix, dump = WRITERS[writer]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(dump((IMAGES[images], LABELS[labels])))
    check(path)


LISTS = {
    "lists": (GOOD_IMAGES.tolist(), GOOD_LABELS.tolist()),
    "tuples": (tuple(GOOD_IMAGES.tolist()), [tuple(pair) for pair in GOOD_LABELS.tolist()]),
    "floats": ((GOOD_IMAGES / 255.0).tolist(), GOOD_LABELS.tolist()),
    "ints among floats": ([[[1, *row[1:]] for row in one] for one in (GOOD_IMAGES / 1.0).tolist()], GOOD_LABELS),
    "channel first": (GOOD_IMAGES[:, None].tolist(), np.eye(10, dtype=int)[GOOD_LABELS].tolist()),
    "flattened": (GOOD_IMAGES.reshape(4, -1).tolist(), np.eye(10)[GOOD_LABELS].tolist()),
    "arrays": (list(GOOD_IMAGES), tuple(GOOD_LABELS)),
    "rows": ([list(image) for image in GOOD_IMAGES], GOOD_LABELS),
    "NumPy's numbers": (GOOD_IMAGES, [tuple(pair) for pair in GOOD_LABELS]),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", LISTS)
def test_lists_of_numbers_and_of_arrays_are_data(tmp_path, form, protocol):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(LISTS[form], protocol=protocol))
    images = RecDataset([str(path)], config={}).images
    expected = GOOD_IMAGES.copy()
    if form == "ints among floats":
        expected[:, :, 0] = 1
    assert (images == expected).all() and images.dtype == np.uint8
    assert (RecDataset([str(path)], config={}).labels == GOOD_LABELS).all()


def holding_itself():
    images = []
    images.append(images)
    return images


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "images,words",
    [
        ([[[1, 2], [3]]], "ragged"),
        ([[1, 2], 3], "ragged"),
        ([[[[[[1]]]]]], "deeper than 5"),
        (holding_itself(), "deeper than 5"),
        ([[["1"]]], "str, not numbers"),
        ([[None, 1]], "NoneType, int, not numbers"),
        ([[True]], "bool"),
        ([GOOD_IMAGES[0], GOOD_IMAGES[1, :35]], "not of one shape"),
        ([GOOD_IMAGES[0], GOOD_IMAGES[1].astype(float)], "not of one shape"),
        ([[1 << 70]], "too large"),
        ([[[[7] * 1000] * 1000] * 1000], "repeat each other"),
        ([GOOD_IMAGES[0]] * 1000, "repeat an array"),
    ],
)
def test_lists_that_are_no_arrays_are_refused_by_file_and_reason(tmp_path, images, words, protocol):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps((images, GOOD_LABELS), protocol=protocol))
    with pytest.raises(ValueError, match=words) as caught:
        RecDataset([str(path)], config={})
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_lists_are_read_fast_and_in_bounded_memory(tmp_path, protocol):
    rng = np.random.RandomState(0)
    images, labels = rng.randint(0, 256, [300, 36, 36]).tolist(), rng.randint(0, 10, [300, 2]).tolist()
    small = [np.zeros([1, 36, 36], np.uint8), [tuple(pair) for pair in rng.randint(0, 10, [100_000, 2]).tolist()]]
    for content in ((images, labels), small):
        path = tmp_path / "x.pickle"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        seconds, grown = cost_of_reading(path)
        assert seconds < 10 and grown < 40 * path.stat().st_size, (seconds, grown)


def test_the_scale_can_be_said_where_the_pixels_do_not_tell(tmp_path):
    path = write(tmp_path / "x.pickle", ((GOOD_IMAGES > 9).astype(np.float32), GOOD_LABELS))
    for scale, white in (("1", 255), (1, 255), (255, 1)):
        assert RecDataset([str(path)], config={"runner.image_scale": scale}).images.max() == white
    with pytest.raises(ValueError, match="image_scale"):
        RecDataset([str(path)], config={"runner.image_scale": 2})


def test_a_white_of_1_may_be_rounded_but_not_more(tmp_path):
    for white, words in ((1.0000002, None), (1.5, "image_scale")):
        images = (GOOD_IMAGES / 255.0 * white).astype(np.float32)
        path = write(tmp_path / "x.pickle", (images, GOOD_LABELS))
        if words is None:
            assert (read(path).images == GOOD_IMAGES).all()
        else:
            with pytest.raises(ValueError, match=words):
                read(path)


def test_labels_beyond_the_configs_classes_are_refused(tmp_path):
    path = write(tmp_path / "x.pickle", (GOOD_IMAGES, GOOD_LABELS))
    with pytest.raises(ValueError, match="class_num is 9"):
        RecDataset([str(path)], config={"hyper_parameters.class_num": 9})


def test_the_role_of_a_four_array_file_is_told_or_asked_for(tmp_path):
    four = (GOOD_IMAGES[:3], GOOD_LABELS[:3], GOOD_IMAGES[3:], GOOD_LABELS[3:])
    path = write(tmp_path / "x.pickle", four)
    base = {"config_abs_dir": str(tmp_path.parent)}
    folder, other = tmp_path.name, "elsewhere"
    for config, length in (
        ({"runner.data_part": "train", "runner.job": "infer"}, 3),
        ({"runner.job": "train"}, 3),
        ({"runner.job": "infer"}, 1),
        ({"runner.train_data_dir": folder, "runner.test_data_dir": other}, 3),
        ({"runner.train_data_dir": other, "runner.test_data_dir": folder + "/"}, 1),
    ):
        assert len(RecDataset([str(path)], config={**base, **config})) == length
    for config in ({}, {"runner.train_data_dir": folder, "runner.test_data_dir": folder}, {"runner.inference": True}):
        with pytest.raises(ValueError, match="data_part"):
            RecDataset([str(path)], config={**base, **config})


def test_mixed_forms_in_one_folder_are_refused(tmp_path):
    a = write(tmp_path / "a.pickle", (GOOD_IMAGES, GOOD_LABELS))
    b = write(tmp_path / "b.pickle", (GOOD_IMAGES / 255.0, GOOD_LABELS))
    with pytest.raises(ValueError) as caught:
        read(a, b)
    assert str(a) in str(caught.value) and str(b) in str(caught.value)


# ------------------------------------------------------------------------------ hostile files


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_file_runs(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path / "x.pickle", Canary(canary))
    with pytest.raises(ValueError, match="open"):
        read(path)
    assert not canary.exists()


def test_the_fuzzer_finds_nothing_in_a_short_run(tmp_path):
    """tests/stress/fuzz_data.py, which runs for long outside the suite."""
    fuzz_data.fuzz(files=60, seed=1, folder=tmp_path)


@pytest.mark.parametrize("name", fuzz_data.HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    fuzz_data.check(fuzz_data.HOSTILE[name](tmp_path / "canary"), tmp_path, must_fail=True)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("not data")
    with pytest.raises(ValueError, match="make_multi_mnist"):
        read(tmp_path / "README.md")


def test_the_sample_is_what_data_readme_says():
    """The two committed files, against the digests in data/README.md."""
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for part, number in (("train", 4000), ("test", 1000)):
        (path,) = (ROOT / "data" / part).iterdir()
        assert path.name == f"{part}.pickle" and len(read(path)) == number
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme, path


def private_bytes():
    """Memory of this process alone, that which it shares with its parent not counted (Linux)."""
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="only Linux tells what processes share")
def test_workers_share_the_images(tmp_path):
    """A forked worker reads the whole set, item by item and in batches, and its own memory hardly grows."""
    number = 20000
    images = np.arange(number, dtype=np.uint8)[:, None, None].repeat(36, 1).repeat(36, 2)  # 26 MB
    data = read(write(tmp_path / "x.pickle", (images, np.zeros([number, 2], np.int32))))
    del images
    answer, says = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # a hang is a failure
        before = private_bytes()
        seen = sum(int(data[i][0][0, 0, 0] * 255 + 0.5) for i in range(number))
        for begin in range(0, number if hasattr(data, "gather") else 0, 100):
            data.gather(np.arange(begin, begin + 100))
        os.write(says, f"{seen} {private_bytes() - before}".encode())
        os._exit(0)
    os.close(says)
    with open(answer) as pipe:
        seen, grown = map(int, pipe.read().split())
    os.waitpid(child, 0)
    assert seen == sum(i % 256 for i in range(number)) and grown < 5e6, f"{grown / 1e6:.1f} MB of 26"


def test_the_set_is_kept_once_as_bytes(tmp_path):
    """While it is there, memory holds one copy of the pixels, a byte each."""
    path = write(tmp_path / "x.pickle", (np.zeros([5000, 36, 36], np.uint8), np.zeros([5000, 2], np.int32)))
    tracemalloc.start()
    data = read(path)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == 5000 and 5000 * 36 * 36 <= kept < 1.1 * 5000 * 36 * 36
