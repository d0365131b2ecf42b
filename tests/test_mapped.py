"""Multi-MNIST as .npy parts: the examples of the same set in one file, and nothing in memory before it is used."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_reader import read, write

PARTS = (3, 1, 4)


def write_parts(folder, images, labels, sizes=PARTS):
    """images_000.npy and labels_000.npy, and so on; gives their paths."""
    begins, paths = np.cumsum([0, *sizes]), []
    for i, (begin, end) in enumerate(zip(begins, begins[1:])):
        for name, array in (("images", images), ("labels", labels)):
            paths.append(folder / f"{name}_{i:03}.npy")
            np.save(paths[-1], array[begin:end])
    return paths


@pytest.fixture
def examples(rng):
    return rng.randint(256, size=(sum(PARTS), 36, 36)).astype(np.uint8), rng.randint(10, size=(sum(PARTS), 2))


def test_parts_are_the_set_that_one_file_would_be(tmp_path, examples, rng):
    mapped, whole = read(*write_parts(tmp_path, *examples)), read(write(tmp_path / "a.pickle", examples))
    assert len(mapped) == len(whole) == 8
    for indices in (np.arange(8), rng.permutation(8)[:5], np.array([3]), np.array([7, 7, 0])):
        for ours, theirs in zip(mapped.gather(indices), whole.gather(indices)):
            np.testing.assert_array_equal(ours, theirs)
    assert all((a == b).all() for a, b in zip(mapped[6], whole[6]))
    one = read(*write_parts(tmp_path, *examples, sizes=[8])[:2])
    np.testing.assert_array_equal(one.gather(np.arange(8))[0], whole.gather(np.arange(8))[0])


def object_array(images):
    array = np.empty(len(images), object)
    array[:] = [print] * len(images)
    return array


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda images: images.astype("float32"), "images are float32"),
        (lambda images: images[:, :28, :28], r"images are \[3, 28, 28\] uint8"),
        (lambda images: np.asfortranarray(images), "Fortran"),
        (lambda images: images[:2], "2 images but 3 labels"),
        (lambda images: images[:0], "no image"),
        (object_array, "cannot be read as an .npy"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(tmp_path, examples, change, words):
    paths = write_parts(tmp_path, *examples)
    np.save(paths[0], change(examples[0][:3]), allow_pickle=True)
    with pytest.raises(ValueError, match=f"images_000.npy: .*{words}"):
        read(*paths)


def header(text):
    text = text.encode() + b" " * (-len(text) % 64)
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 36, 36)}") + bytes(99),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -36, 36)}") + bytes(3 * 36 * 36),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 36, 36)}") + bytes(3 * 36 * 36 + 1),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}") + b"cos\nsystem\n(S'true'\ntR.",
        header("__import__('os').mkdir('canary')"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + bytes(100),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path, monkeypatch, examples, content):
    monkeypatch.chdir(tmp_path)
    for place in (0, 1):
        paths = write_parts(tmp_path, *examples)
        paths[place].write_bytes(content)
        with pytest.raises(ValueError, match=paths[place].name):
            read(*paths)
    assert not (tmp_path / "canary").exists()


def test_parts_without_a_partner_or_beside_others_are_refused(tmp_path, examples):
    paths = write_parts(tmp_path, *examples)
    with pytest.raises(ValueError, match="images_000.npy: there is no labels_000.npy that goes with it"):
        read(*paths[:1], *paths[2:])
    with pytest.raises(ValueError, match="labels_002.npy: there is no images_002.npy"):
        read(*paths[:4], paths[5])
    np.save(tmp_path / "pixels.npy", examples[0])
    with pytest.raises(ValueError, match="pixels.npy: there is no images….npy or labels….npy"):
        read(tmp_path / "pixels.npy")
    with pytest.raises(ValueError, match="a.pickle: there are .npy files beside it"):
        read(*paths, write(tmp_path / "a.pickle", examples))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_set(tmp_path):
    """An epoch over 130 MB of images. What the system maps of the file is its own to drop, and is not counted."""
    grown = {}
    for size in (1000, 100_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        images = np.lib.format.open_memmap(folder / "images_0.npy", "w+", np.uint8, (size, 36, 36))
        images.flush()
        np.save(folder / "labels_0.npy", np.zeros([size, 2], np.uint8))
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np\n"
            "from multiMNIST_reader import RecDataset\n"
            "def anonymous(): return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0]) / 1024\n"
            "before = anonymous(); data = RecDataset(sys.argv[2:], config={}); most = 0\n"
            "for begin in range(0, len(data), 100):\n"
            "    batch = data.gather(np.arange(begin, begin + 100)); most = max(most, anonymous())\n"
            "print(most - before)"
        )
        command = [sys.executable, "-c", code, str(ROOT), str(folder / "images_0.npy"), str(folder / "labels_0.npy")]
        grown[size] = float(json.loads(subprocess.run(command, capture_output=True, text=True).stdout))
    assert grown[100_000] < grown[1000] + 10, f"MB: {grown}"
