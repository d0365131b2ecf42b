"""multiMNIST_reader.py: what it reads, what it refuses, and how."""

import gzip
import pickle
import sys

import numpy as np
import pytest
from conftest import ROOT

from multiMNIST_reader import RecDataset

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


def wrong_label():
    labels = GOOD_LABELS.copy()
    labels[3, 1] = 10
    return labels


@pytest.mark.parametrize(
    "content,words",
    [
        ((GOOD_IMAGES[:, :28, :28], GOOD_LABELS), ["[4, 28, 28] uint8", "plain MNIST"]),
        ((GOOD_IMAGES.astype(float), GOOD_LABELS), ["float64"]),
        ((GOOD_IMAGES, GOOD_LABELS[:3]), ["[3, 2]", "4 images"]),
        ((GOOD_IMAGES, GOOD_LABELS.astype(float)), ["float64"]),
        ((GOOD_IMAGES, wrong_label()), ["example 3", "[5, 10]"]),
        ((GOOD_IMAGES, GOOD_LABELS - 1), ["example 0", "[-1, 8]"]),
        ((GOOD_IMAGES[:0], GOOD_LABELS[:0]), ["no image"]),
        ((GOOD_IMAGES, GOOD_LABELS, 3), ["tuple of 3"]),
        ((GOOD_IMAGES, "labels"), ["labels are a str"]),
        ({"images": GOOD_IMAGES}, ["dict"]),
    ],
)
def test_other_contents_are_refused_by_name(tmp_path, content, words):
    path = write(tmp_path / "x.pickle", content)
    with pytest.raises(ValueError) as caught:
        read(path)
    for word in [str(path), "uint8 [N, 36, 36]"] + words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"\x80\x04", pickle.dumps((1, 2))[:-4], b"\x80\x05K\x01."]
)
@pytest.mark.parametrize("suffix", [".pickle", ".pickle.gz"])
def test_broken_files_are_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.pickle"):
        read(path)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_file_runs(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path / "x.pickle", Canary(canary))
    with pytest.raises(ValueError, match="io.open"):
        read(path)
    assert not canary.exists()


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("not data")
    with pytest.raises(ValueError, match="make_multi_mnist"):
        read(tmp_path / "README.md")


def test_files_of_numpy_1_and_2_are_read(tmp_path):
    raw = pickle.dumps((GOOD_IMAGES, GOOD_LABELS), protocol=2)
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    for name, text in (("old", raw.replace(new, old)), ("new", raw.replace(new, old).replace(old, new))):
        path = tmp_path / f"{name}.pickle"
        path.write_bytes(text)
        assert (read(path).images == GOOD_IMAGES).all()


def test_the_sample_is_read_and_is_what_data_readme_says():
    """The committed files, against the digests in data/README.md."""
    import hashlib

    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for part, number in (("train", 4000), ("test", 1000)):
        data = read(*(ROOT / "data" / "sample" / part).iterdir())
        assert len(data) == number
        digest = hashlib.sha256(data.images.tobytes() + data.labels.astype("<i4").tobytes()).hexdigest()
        assert digest in readme, part


def test_workers_share_the_images():
    """The set holds one array; a worker is forked and reads it in place (Linux)."""
    data = read(*(ROOT / "data" / "sample" / "test").iterdir())
    owners = [v for v in vars(data).values() if isinstance(v, np.ndarray)]
    assert sum(v.nbytes for v in owners) <= 1000 * (36 * 36 + 16)
    assert sys.getsizeof(data[0][0]) < 10000
