"""data/make_multi_mnist.py keeps to the recipe of the published images."""

import gzip
import pickle
import subprocess
import sys

import make_multi_mnist as maker
import numpy as np
import pytest
from conftest import ROOT

MNIST = ROOT.parent / "shared" / "mnist"  # the real files, where this workplace has them


def write_mnist(folder, train_num=60000, test_num=40, compress=False):
    """A small stand-in for MNIST: each image is one bright pixel at a place that tells its number."""
    rng = np.random.RandomState(0)
    folder.mkdir(exist_ok=True)
    for part, number in (("train", train_num), ("t10k", test_num)):
        images = np.zeros([number, 28, 28], np.uint8)
        index = np.arange(number)
        images[index, index // 28 % 28, index % 28] = 200
        labels = rng.randint(0, 10, number).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            path = folder / f"{part}-{name}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return folder


def digits(number=300):
    rng = np.random.RandomState(1)
    return rng.randint(0, 256, [number, 28, 28]).astype(np.uint8), rng.randint(0, 10, number).astype(np.uint8)


def test_each_image_is_the_clipped_sum_of_two_on_the_diagonal():
    images, labels = digits()
    made, pairs = maker.compose(images, labels, 600, np.random.RandomState(2))
    assert made.dtype == np.uint8 and pairs.dtype == np.int32 and made.max() == 255
    for i in range(600):
        assert pairs[i, 0] == labels[i % 300] != pairs[i, 1]
        assert any(decompose(made[i], images[i % 300], a, images[labels == pairs[i, 1]]) for a in (1, 2, 3, 4)), (
            f"image {i} is no sum of its top-left digit and one of the other label"
        )


def decompose(made, left, a, candidates):
    for b in (5, 6, 7, 8):
        sums = np.zeros([len(candidates), 36, 36], int)
        sums[:, a : a + 28, a : a + 28] += left
        sums[:, b : b + 28, b : b + 28] += candidates
        if (np.minimum(sums, 255) == made).all(axis=(1, 2)).any():
            return True
    return False


def test_places_and_partners_are_uniform():
    """One bright pixel per digit shows both places; chi-square with 3 degrees of freedom, far in its tail."""
    images = np.zeros([10, 28, 28], np.uint8)
    images[:, 0, 0] = 100
    labels = np.arange(10, dtype=np.uint8)
    made, pairs = maker.compose(images, labels, 20000, np.random.RandomState(3))
    places = np.argwhere(made == 100)
    assert (places[:, 1] == places[:, 2]).all()
    for allowed in ((1, 2, 3, 4), (5, 6, 7, 8)):
        counts = np.array([(places[:, 1] == c).sum() for c in allowed])
        assert counts.sum() == 20000 and ((counts - 5000) ** 2 / 5000).sum() < 25
    table = np.zeros([10, 10])
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    assert (np.diag(table) == 0).all()
    others = table[~np.eye(10, dtype=bool)]
    assert ((others - 20000 / 90) ** 2 / (20000 / 90)).sum() < 180  # 80 degrees of freedom


@pytest.mark.parametrize("compress", [False, True])
def test_full_sets_have_their_sizes_sources_and_no_image_in_common(tmp_path, compress):
    folder = write_mnist(tmp_path / "mnist", compress=compress)
    out = tmp_path / "out"
    maker.make(str(folder), str(out))
    source = maker.read_idx(str(folder), "train-labels-idx1-ubyte", 1)
    for name, number, first, count in (("train", 100000, 0, 50000), ("validation", 20000, 50000, 10000)):
        images, labels = pickle.loads((out / name / "multi_mnist.pickle").read_bytes())
        assert images.shape == (number, 36, 36) and labels.shape == (number, 2)
        assert (labels[:, 0] == source[first + np.arange(number) % count]).all()
    assert len(pickle.loads((out / "test" / "multi_mnist.pickle").read_bytes())[0]) == 20000


def test_a_seed_gives_the_same_set_again_and_another_one_another():
    images, labels = digits()
    first, again, other = (maker.compose(images, labels, 50, np.random.RandomState(s))[0] for s in (4, 4, 5))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_bad_mnist_files_are_refused_by_name(tmp_path, damage):
    folder = write_mnist(tmp_path / "mnist", train_num=100)
    path = folder / "train-images-idx3-ubyte"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"<html>")
    command = [sys.executable, ROOT / "data" / "make_multi_mnist.py", "--mnist", folder, "--out", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "train-images-idx3-ubyte" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the real MNIST files")
def test_the_sample_comes_out_of_mnist_as_data_readme_says(tmp_path, capsys):
    maker.make(str(MNIST), str(tmp_path), sample=True)
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    digests = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(digests) == 2 and all(digest in readme for digest in digests)
