"""data/make_multi_mnist.py keeps to the recipe of the published images."""

import gzip
import hashlib
import pickle

import numpy as np
import pytest

import make_multi_mnist as maker
import mnist_files
from support import ROOT
from support.seeds import random_state
from support.toolbox import assert_refused, run_script

MNIST = ROOT.parent / "shared" / "mnist"  # the real files, where this workplace has them
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(),
    reason=f"NOT CHECKED against MNIST itself: its files are not in {MNIST}",
)


def write_source(folder, train_num=60000, test_num=40, compress=False, seed=0):
    """A small stand-in for MNIST: each image is one bright pixel at a place that tells its number."""
    rng = random_state(seed)
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


def source(number=300):
    rng = random_state(1)
    return rng.randint(0, 256, [number, 28, 28]).astype(np.uint8), rng.randint(0, 10, number).astype(np.uint8)


def load(path):
    return pickle.loads(path.read_bytes())


def test_each_image_is_the_clipped_sum_of_two_on_the_diagonal():
    images, labels = one = source()
    made, pairs = maker.compose(one, one, 600, random_state(2))
    assert made.dtype == np.uint8 and pairs.dtype == np.int32 and made.max() == 255
    for i in range(600):
        assert pairs[i, 0] == labels[i % 300] != pairs[i, 1]
        candidates = images[labels == pairs[i, 1]]
        assert any(is_sum(made[i], images[i % 300], a, candidates) for a in (1, 2, 3, 4)), i


def is_sum(made, left, a, candidates):
    for b in (5, 6, 7, 8):
        sums = np.zeros([len(candidates), 36, 36], int)
        sums[:, a : a + 28, a : a + 28] += left
        sums[:, b : b + 28, b : b + 28] += candidates
        if (np.minimum(sums, 255) == made).all(axis=(1, 2)).any():
            return True
    return False


def assert_uniform(counts, limit):
    """Chi-square against equal counts; ``limit`` lies far in its tail."""
    expected = np.mean(counts)
    assert ((counts - expected) ** 2 / expected).sum() < limit, counts


def test_places_and_partners_are_uniform():
    """One bright pixel per item shows both places."""
    images = np.zeros([10, 28, 28], np.uint8)
    images[:, 0, 0] = 100
    one = images, np.arange(10, dtype=np.uint8)
    made, pairs = maker.compose(one, one, 20000, random_state(3))
    places = np.argwhere(made == 100)
    assert (places[:, 1] == places[:, 2]).all()
    for allowed in ((1, 2, 3, 4), (5, 6, 7, 8)):
        counts = np.array([(places[:, 1] == c).sum() for c in allowed])
        assert counts.sum() == 20000
        assert_uniform(counts, 25)  # 3 degrees of freedom
    table = np.zeros([10, 10])
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    assert (np.diag(table) == 0).all()
    assert_uniform(table[~np.eye(10, dtype=bool)], 180)  # 80 degrees of freedom in the partners


@needs_mnist
def test_the_committed_sample_shows_mnists_digits_in_turn():
    """Against MNIST itself: at one of the four places the digit lies under the picture."""
    for name, part in (("train", "train"), ("test", "t10k")):
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(MNIST), part)
        made, pairs = load(ROOT / "data" / name / f"{name}.pickle")
        fits = [(made[:, a : a + 28, a : a + 28] >= images[: len(made)]).all(axis=(1, 2)) for a in (1, 2, 3, 4)]
        assert np.any(fits, axis=0).all() and (pairs[:, 0] == labels[: len(made)]).all()


def test_full_sets_have_their_sizes_sources_and_no_image_in_common(tmp_path):
    folder = write_source(tmp_path / "mnist", compress=True)
    result = run_script(maker, "--mnist", folder, "--out", tmp_path / "out", "--unchecked")
    assert result.returncode == 0, result.stderr
    _, labels = mnist_files.read_part(mnist_files.MNIST, str(folder), "train", unchecked=True)
    for name, number, first, count in (("train", 100000, 0, 50000), ("validation", 20000, 50000, 10000)):
        images, pairs = load(tmp_path / "out" / name / f"{name}.pickle")
        assert images.shape == (number, 36, 36) and pairs.shape == (number, 2)
        assert (pairs[:, 0] == labels[first + np.arange(number) % count]).all()
        digest = hashlib.sha256((tmp_path / "out" / name / f"{name}.pickle").read_bytes()).hexdigest()
        assert f"{number} examples, SHA-256 {digest}" in result.stdout
    assert len(load(tmp_path / "out" / "test" / "test.pickle")[0]) == 20000
    assert f"label 2: 0: {(pairs[:, 1] == 0).sum()}, " in result.stdout


@pytest.mark.parametrize("kind,differ", [("fashion", True), ("mixed", False)])
def test_the_other_kinds_draw_from_their_own_source(tmp_path, kind, differ):
    digits = write_source(tmp_path / "mnist", train_num=4000, compress=True, seed=0)
    fashion = write_source(tmp_path / "fashion", train_num=4000, compress=True, seed=1)
    options = ["--mnist", digits, "--fashion", fashion, "--kind", kind, "--unchecked", "--sample"]
    result = run_script(maker, *options, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    left = digits if kind == "mixed" else fashion
    _, pairs = load(tmp_path / "out" / "train" / "train.pickle")
    _, labels = mnist_files.read_part(mnist_files.MNIST, str(left), "train", unchecked=True)
    assert (pairs[:, 0] == labels).all()
    assert ((pairs[:, 0] == pairs[:, 1]).sum() == 0) == differ


def test_a_seed_gives_the_same_set_again_and_another_one_another():
    one = source()
    first, again, other = (maker.compose(one, one, 50, random_state(s))[0] for s in (4, 4, 5))
    assert (first == again).all() and (first != other).any()


@needs_mnist
def test_the_sets_come_out_of_mnist_as_data_readme_says(tmp_path):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for options, number in ((["--sample"], 2), ([], 3)):
        result = run_script(maker, "--mnist", MNIST, "--out", tmp_path, *options)
        digests = [line.split()[-1] for line in result.stdout.splitlines() if "SHA-256" in line]
        assert len(digests) == number and all(digest in readme for digest in digests), result.stderr


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "not the known one", "too few"])
def test_bad_source_files_are_refused_by_name(tmp_path, damage):
    folder = write_source(tmp_path / "mnist", train_num=100)
    path = folder / "train-images-idx3-ubyte"
    if damage == "missing":
        path.unlink()
    elif damage not in ("not the known one", "too few"):
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"<html>")
    options = [] if damage == "not the known one" else ["--unchecked"]
    result = run_script(maker, "--mnist", folder, "--out", tmp_path / "out", *options)
    assert_refused(result, "train has 100 images" if damage == "too few" else "train-images-idx3-ubyte")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_data_is_refused_and_left_alone(tmp_path):
    """The reader would read both as one set."""
    other = tmp_path / "out" / "train" / "part-0.pickle"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"old")
    folder = write_source(tmp_path / "mnist", train_num=100)
    result = run_script(maker, "--mnist", folder, "--out", tmp_path / "out", "--unchecked", "--sample")
    assert_refused(result, other)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]
