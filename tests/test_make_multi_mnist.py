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
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(),
    reason=f"NOT CHECKED against MNIST itself: its files are not in {MNIST}",
)


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


def handwriting():
    """(images [5000, 28, 28], labels) with strokes of real digits, cut out of the sample: a picture's middle 20 x 20.

    They lie in the canvas as MNIST's digits do, but for their margin, which is exactly 4 on every side.
    """
    parts = [load(ROOT / "data" / part / f"{part}.pickle") for part in ("test", "train")]
    images = np.zeros([sum(len(images) for images, _ in parts), 28, 28], np.uint8)
    images[:, 4:24, 4:24] = np.concatenate([images for images, _ in parts])[:, 8:28, 8:28]
    return images, np.concatenate([labels for _, labels in parts])[:, 0].astype(np.uint8)


def test_a_large_set_of_handwriting_keeps_to_every_line_of_the_recipe():
    """From the made images alone: top-left item in turn, places, sum clipped at 255, other label."""
    images, labels = one = handwriting()
    made, pairs = maker.compose(one, one, 20000, np.random.RandomState(6))
    turn = np.arange(20000) % len(images)
    assert len(images) == 5000 and (pairs[:, 0] == labels[turn]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    canvas = made.astype(int)
    left_place, clipped = np.zeros(20000, int), 0
    rest = np.zeros_like(canvas)
    for a in (1, 2, 3, 4):  # the place at which the known left item lies under the image everywhere
        under = np.zeros_like(canvas)
        under[:, a : a + 28, a : a + 28] = images[turn]
        free = (canvas >= under).all(axis=(1, 2)) & (left_place == 0)
        left_place[free] = a
        rest[free] = canvas[free] - under[free]
        clipped += int(((canvas == 255) & (under > 0) & (under < 255)).any(axis=(1, 2)).sum())
    assert (left_place > 0).all() and clipped > 1000
    assert_uniform(np.bincount(left_place)[1:], 60)  # an item may fit at two places: the first is taken
    assert (rest.max(axis=(1, 2)) > 0).all()
    rows, columns = ((rest.max(axis=axis) > 0).any(axis=0).nonzero()[0] for axis in (2, 1))
    for seen in (rows, columns):  # what is left of the right items: from 5 + margin to 8 + 28 - margin
        assert (seen.min(), seen.max()) == (5 + 4, 8 + 28 - 4 - 1)


@needs_mnist
def test_the_four_mnist_files_are_mnist():
    """By what is published of it: number of each digit, the first labels, mean and deviation of the pixels."""
    of_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    of_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for part, counts, first, mean, deviation in (
        ("train", of_train, [5, 0, 4, 1, 9, 2, 1, 3], 0.1307, 0.3081),
        ("t10k", of_test, [7, 2, 1, 0, 4, 1, 4, 9], 0.1325, 0.3105),
    ):
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(MNIST), part)
        assert images.shape == (sum(counts), 28, 28) and images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == counts and labels[:8].tolist() == first
        assert images.mean() / 255 == pytest.approx(mean, abs=5e-5)
        assert images.std() / 255 == pytest.approx(deviation, abs=5e-5)


@needs_mnist
def test_the_committed_sample_shows_mnists_digits_in_turn():
    """Against MNIST itself: at one of the four places the digit lies under the picture."""
    for name, part in (("train", "train"), ("test", "t10k")):
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(MNIST), part)
        made, pairs = load(ROOT / "data" / name / f"{name}.pickle")
        fits = [(made[:, a : a + 28, a : a + 28] >= images[: len(made)]).all(axis=(1, 2)) for a in (1, 2, 3, 4)]
        assert np.any(fits, axis=0).all() and (pairs[:, 0] == labels[: len(made)]).all()


def test_small_idx_files_are_read_byte_by_byte(tmp_path):
    """Written here by hand from the format's description: big-endian sizes, then rows from the top left."""
    for part in ("train", "t10k"):
        pixels = bytes(range(256)) * 7  # 1792 = 2 x 28 x 32, too many for two images of 28 x 28
        header = b"\0\0\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x1c" * 2
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + pixels[: 2 * 28 * 28])
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\x07\x03")
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(tmp_path), part, unchecked=True)
        assert images.shape == (2, 28, 28) and labels.tolist() == [7, 3]
        assert (images[0, 0, 5], images[0, 1, 0], images[1, 0, 0]) == (5, 28, 28 * 28 % 256)


@pytest.mark.parametrize("compress", [False, True])
def test_full_sets_have_their_sizes_sources_and_no_image_in_common(tmp_path, compress):
    folder = write_source(tmp_path / "mnist", compress=compress)
    result = run("make_multi_mnist.py", "--mnist", folder, "--out", tmp_path / "out", "--unchecked")
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
    digits = write_source(tmp_path / "mnist", compress=True, seed=0)
    fashion = write_source(tmp_path / "fashion", compress=True, seed=1)
    options = ["--mnist", digits, "--fashion", fashion, "--kind", kind, "--unchecked", "--sample"]
    result = run("make_multi_mnist.py", *options, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    left = digits if kind == "mixed" else fashion
    _, pairs = load(tmp_path / "out" / "train" / "train.pickle")
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
    for options, number in ((["--sample"], 2), ([], 3)):
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


def test_a_folder_with_other_data_is_refused_and_left_alone(tmp_path):
    """The reader would take both as one set."""
    other = tmp_path / "out" / "train" / "part-0.pickle"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"old")
    folder = write_source(tmp_path / "mnist")
    result = run("make_multi_mnist.py", "--mnist", folder, "--out", tmp_path / "out", "--unchecked", "--sample")
    assert result.returncode == 2 and str(other) in result.stderr and "Traceback" not in result.stderr
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [other]


def test_show_counts_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("show.py", ROOT / "data" / "test", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1000 examples" in result.stdout and "label 2: 0: 96" in result.stdout
    from PIL import Image

    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png").convert("L"))
    assert min(sheet.shape) > 300 and 0.1 < (sheet < 50).mean() < 0.9


def test_show_refuses_a_folder_without_data(tmp_path):
    result = run("show.py", tmp_path)
    assert result.returncode == 2 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
