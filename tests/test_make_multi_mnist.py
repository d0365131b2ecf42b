"""data/make_multi_mnist.py keeps to the recipe of the published images, and data/show.py shows them."""

import gzip
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import make_multi_mnist as maker
import mnist_files

MNIST = ROOT.parent / "shared" / "mnist"  # the real files, where this workplace has them
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="needs the real MNIST files")


def write_source(folder, train_num=60000, test_num=40, compress=False, seed=0):
    """A small stand-in for MNIST: each image is one bright pixel at a place that tells its number."""
    rng = np.random.RandomState(seed)
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
    rng = np.random.RandomState(1)
    return rng.randint(0, 256, [number, 28, 28]).astype(np.uint8), rng.randint(0, 10, number).astype(np.uint8)


def load(path):
    return pickle.loads(path.read_bytes())


def run(script, *arguments, cwd=None):
    command = [sys.executable, str(ROOT / "data" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_each_image_is_the_clipped_sum_of_two_on_the_diagonal():
    images, labels = one = source()
    made, pairs = maker.compose(one, one, 600, np.random.RandomState(2))
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
    made, pairs = maker.compose(one, one, 20000, np.random.RandomState(3))
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
def test_a_large_set_of_real_digits_keeps_to_every_line_of_the_recipe():
    """From the made images alone: top-left digit in turn, places, sum clipped at 255, other label."""
    images, labels = one = mnist_files.read_part(mnist_files.MNIST, str(MNIST), "t10k")
    made, pairs = maker.compose(one, one, 20000, np.random.RandomState(6))
    assert (pairs[:, 0] == labels[np.arange(20000) % 10000]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    canvas = made.astype(int)
    left_place, clipped = np.zeros(20000, int), 0
    rest = np.zeros_like(canvas)
    for a in (1, 2, 3, 4):  # the place at which the known left digit lies under the image everywhere
        under = np.zeros_like(canvas)
        under[:, a : a + 28, a : a + 28] = images[np.arange(20000) % 10000]
        fits = (canvas >= under).all(axis=(1, 2))
        free = fits & (left_place == 0)
        left_place[free] = a
        rest[free] = canvas[free] - under[free]
        clipped += int(((canvas == 255) & (under > 0) & (under < 255)).any(axis=(1, 2)).sum())
    assert (left_place > 0).all() and clipped > 1000
    assert_uniform(np.bincount(left_place)[1:], 60)  # a digit may fit at two places: the first is taken
    rows = rest.max(axis=(1, 2)) > 0
    first = np.argmax(rest.max(axis=2) > 0, axis=1)  # the top row of what is left of the right digit
    assert rows.all() and first.min() >= 5 and (first[:100] <= 8 + 27).all()


@needs_mnist
def test_the_four_mnist_files_are_known():
    for part, number in (("train", 60000), ("t10k", 10000)):
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(MNIST), part)
        assert images.shape == (number, 28, 28) and labels.shape == (number,)


@pytest.mark.parametrize("compress", [False, True])
def test_full_sets_have_their_sizes_sources_and_no_image_in_common(tmp_path, compress):
    folder = write_source(tmp_path / "mnist", compress=compress)
    result = run("make_multi_mnist.py", "--mnist", folder, "--out", tmp_path / "out", "--unchecked")
    assert result.returncode == 0, result.stderr
    _, labels = mnist_files.read_part(mnist_files.MNIST, str(folder), "train", unchecked=True)
    for name, number, first, count in (("train", 100000, 0, 50000), ("validation", 20000, 50000, 10000)):
        images, pairs = load(tmp_path / "out" / name / "part-0.pickle")
        assert images.shape == (number, 36, 36) and pairs.shape == (number, 2)
        assert (pairs[:, 0] == labels[first + np.arange(number) % count]).all()
        digest = hashlib.sha256((tmp_path / "out" / name / "part-0.pickle").read_bytes()).hexdigest()
        assert f"{number} examples, SHA-256 {digest}" in result.stdout
    assert len(load(tmp_path / "out" / "test" / "part-0.pickle")[0]) == 20000
    assert f"label 2: 0: {(pairs[:, 1] == 0).sum()}, " in result.stdout


@pytest.mark.parametrize("kind,differ", [("fashion", True), ("mixed", False)])
def test_the_other_kinds_draw_from_their_own_source(tmp_path, kind, differ):
    digits = write_source(tmp_path / "mnist", compress=True, seed=0)
    fashion = write_source(tmp_path / "fashion", compress=True, seed=1)
    options = ["--mnist", digits, "--fashion", fashion, "--kind", kind, "--unchecked", "--sample"]
    result = run("make_multi_mnist.py", *options, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    left = digits if kind == "mixed" else fashion
    pairs = np.concatenate([load(tmp_path / "out" / "train" / f"part-{i}.pickle")[1] for i in range(4)])
    _, labels = mnist_files.read_part(mnist_files.MNIST, str(left), "train", unchecked=True)
    assert (pairs[:, 0] == labels[:4000]).all()
    assert ((pairs[:, 0] == pairs[:, 1]).sum() == 0) == differ


def test_a_seed_gives_the_same_set_again_and_another_one_another():
    one = source()
    first, again, other = (maker.compose(one, one, 50, np.random.RandomState(s))[0] for s in (4, 4, 5))
    assert (first == again).all() and (first != other).any()


@needs_mnist
def test_the_sets_come_out_of_mnist_as_data_readme_says(tmp_path):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for options, number in ((["--sample"], 5), ([], 3)):
        result = run("make_multi_mnist.py", "--mnist", MNIST, "--out", tmp_path, *options)
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
    result = run("make_multi_mnist.py", "--mnist", folder, "--out", tmp_path / "out", *options)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert ("train has 100 images" if damage == "too few" else "train-images-idx3-ubyte") in result.stderr
    assert not (tmp_path / "out").exists()


def test_show_counts_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("show.py", ROOT / "data" / "sample" / "test", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1000 examples" in result.stdout and "label 2: 0: 96" in result.stdout
    from PIL import Image

    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png").convert("L"))
    assert min(sheet.shape) > 300 and 0.1 < (sheet < 50).mean() < 0.9


def test_show_refuses_a_folder_without_data(tmp_path):
    result = run("show.py", tmp_path)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
