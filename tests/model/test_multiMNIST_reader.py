"""multiMNIST_reader.py: what it reads, what it refuses, and how much memory it takes."""

import gc
import hashlib
import math
import pickle
import tracemalloc

import numpy as np
import pytest

from multiMNIST_reader import FOUR, PAIR, RecDataset, _transformed
from support import ROOT
from support.memory import peak_of

IMAGES = np.arange(4 * 36 * 36, dtype=np.uint8).reshape(4, 36, 36)
LABELS = np.array([[0, 9], [1, 2], [3, 4], [5, 5]], np.int32)
FOUR_ARRAYS = (IMAGES[:3], LABELS[:3], IMAGES[3:], LABELS[3:])


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def read(*paths, **runner):
    return RecDataset([str(path) for path in paths], config={f"runner.{key}": value for key, value in runner.items()})


def test_an_item_is_image_left_right(tmp_path):
    data = read(write(tmp_path / "a.pickle", (IMAGES, LABELS)))
    assert len(data) == 4
    image, left, right = data[1]
    assert image.shape == (1, 36, 36) and image.dtype == np.float32
    assert (image[0] == IMAGES[1].astype(np.float32) / np.float32(255)).all()
    assert (left, right) == (1, 2) and left.dtype == right.dtype == np.int64
    assert data.images.dtype == np.uint8


def test_files_are_one_set_in_sorted_order_and_others_are_skipped_with_a_warning(tmp_path, caplog):
    b = write(tmp_path / "b ü 数据.pickle", (IMAGES[:1], LABELS[:1]))
    a = write(tmp_path / "a.pkl", (IMAGES[1:] / 255.0, LABELS[1:]))  # each in a form of its own
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "folder.pickle").mkdir()
    hidden = write(tmp_path / ".hidden.pickle", "broken")
    data = read(b, tmp_path / "README.md", tmp_path / "folder.pickle", hidden, a)
    assert data.labels.tolist() == [[1, 2], [3, 4], [5, 5], [0, 9]]
    assert (data.images == IMAGES[[1, 2, 3, 0]]).all()
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'README.md'} (and 1 more) is not *.pickle") and "skipped" in message


FORMS = {
    "int32": IMAGES.astype(np.int32),
    "big endian": IMAGES.astype(">i2"),
    "float 0..255": IMAGES.astype(np.float32),
    "float 0..1": IMAGES / 255.0,
    "float16 0..1": (IMAGES / 255.0).astype(np.float16),
    "white rounded": (IMAGES / 255.0 * 1.0000002).astype(np.float32),
    "channel first": IMAGES[:, None],
    "channel last": IMAGES[..., None],
    "flat": IMAGES.reshape(4, -1),
    "Fortran order": np.asfortranarray(IMAGES),
}


@pytest.mark.parametrize("images", FORMS)
def test_every_form_of_images_gives_the_same_pixels(tmp_path, images):
    data = read(write(tmp_path / "x.pickle", (FORMS[images], LABELS)))
    assert (data.images == IMAGES).all() and data.images.dtype == np.uint8


def with_label(value, index=3):
    labels = LABELS.astype(float if isinstance(value, float) else np.int64)
    labels[index, 1] = value
    return labels


@pytest.mark.parametrize(
    "labels,expected",
    [
        (LABELS.astype(np.uint8), LABELS),
        (LABELS.astype(np.float64), LABELS),
        (np.eye(10, dtype=np.float32)[LABELS], LABELS),
        (np.eye(10, dtype=bool)[LABELS].reshape(4, 20), LABELS),
        (with_label(-1), with_label(-1)),  # missing
        (with_label(-1.0), with_label(-1)),
    ],
)
def test_every_form_of_labels_gives_the_same_digits(tmp_path, labels, expected):
    data = read(write(tmp_path / "x.pickle", (IMAGES, labels)))
    assert (data.labels == expected).all() and data.labels.dtype == np.int64


@pytest.mark.parametrize("kind", ["tuple", "dict", "npz"])
def test_a_pair_or_half_of_four_arrays_is_read(tmp_path, kind):
    for names, content, runner in (
        (PAIR, (IMAGES, LABELS), {}),
        (FOUR, FOUR_ARRAYS, {"data_part": "train"}),
        (FOUR, FOUR_ARRAYS, {"data_part": "test"}),
    ):
        path = tmp_path / ("x.npz" if kind == "npz" else "x.pickle")
        if kind == "npz":
            np.savez(path, **dict(zip(names, content)))
        else:
            write(path, dict(zip(names, content)) if kind == "dict" else content)
        chosen = {None: slice(4), "train": slice(3), "test": slice(3, 4)}[runner.get("data_part")]
        data = read(path, **runner)
        assert (data.images == IMAGES[chosen]).all() and (data.labels == LABELS[chosen]).all()


def test_the_half_of_four_arrays_is_what_the_config_means(tmp_path):
    path = write(tmp_path / "x.pickle", FOUR_ARRAYS)
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


def test_image_scale_decides_what_white_is_where_the_pixels_leave_it_open(tmp_path):
    path = write(tmp_path / "x.pickle", ((IMAGES > 9).astype(np.float32), LABELS))
    for scale, white in (("1", 255), (1, 255), (255, 1)):
        assert read(path, image_scale=scale).images.max() == white
    with pytest.raises(ValueError, match="image_scale is 2"):
        read(path, image_scale=2)


def with_pixel(value, index=3):
    images = IMAGES.astype(np.float32)
    images[index, 35, 35] = value
    return images


@pytest.mark.parametrize(
    "content,words",
    [
        ((IMAGES[:, :28, :28], LABELS), ["[4, 28, 28] uint8", "plain MNIST"]),
        ((np.zeros((4, 784), np.uint8), LABELS), ["[4, 784] uint8", "plain MNIST"]),
        ((IMAGES[:, :, :, None].repeat(3, 3), LABELS), ["[4, 36, 36, 3]", "one channel"]),
        ((IMAGES[0], LABELS), ["[36, 36]"]),
        ((with_pixel(np.nan), LABELS), ["image 3", "nan"]),
        ((with_pixel(np.inf, 0), LABELS), ["image 0", "inf"]),
        ((with_pixel(-1), LABELS), ["image 3", "-1"]),
        ((with_pixel(256), LABELS), ["image 3", "256"]),
        ((IMAGES > 9, LABELS), ["image_scale"]),
        (((IMAGES / 255.0 * 1.5).astype(np.float32), LABELS), ["image_scale"]),
        ((IMAGES.astype(complex), LABELS), ["images are complex128"]),
        ((IMAGES, LABELS[:3]), ["4 images", "3 labels"]),
        ((IMAGES, LABELS[:, 0]), ["labels are [4]"]),
        ((IMAGES, with_label(10)), ["example 3", "[5, 10]"]),
        ((IMAGES, with_label(-2, 0)), ["example 0", "[0, -2]"]),
        ((IMAGES, with_label(2.5)), ["example 3", "2.5"]),
        ((IMAGES, with_label(np.nan)), ["example 3", "nan"]),
        ((IMAGES, np.eye(10)[LABELS] * 2), ["example 0", "one-hot"]),
        ((IMAGES[:0], LABELS[:0]), ["no image"]),
        ((IMAGES, LABELS, 3), ["tuple of 3"]),
        ((IMAGES, "labels"), ["labels is a str"]),
        ({"images": IMAGES}, ["dict of 1"]),
        (IMAGES, ["ndarray"]),
        (3, ["int"]),
    ],
)
def test_other_content_is_refused_by_file_and_reason(tmp_path, content, words):
    path = write(tmp_path / "x.pickle", content)
    with pytest.raises(ValueError) as caught:
        read(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_labels_beyond_the_configs_classes_are_refused(tmp_path):
    path = write(tmp_path / "x.pickle", (IMAGES, LABELS))
    with pytest.raises(ValueError, match="class_num is 9"):
        RecDataset([str(path)], config={"hyper_parameters.class_num": 9})


def test_a_folder_without_data_and_a_broken_file_say_how_to_get_the_data(tmp_path):
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "x.pickle").write_bytes(b"\n <html><body>404</body></html>")
    for name, words in (("README.md", "no Multi-MNIST file"), ("x.pickle", "x.pickle.*HTML")):
        with pytest.raises(ValueError, match=f"{words}.*make_multi_mnist"):
            read(tmp_path / name)


def test_the_sample_is_what_data_readme_says():
    """The two committed files, against the digests in data/README.md."""
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for part, number in (("train", 4000), ("test", 1000)):
        (path,) = (ROOT / "data" / part).iterdir()
        assert path.name == f"{part}.pickle" and len(read(path)) == number
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme, path


# ---------------------------------------------------------------------------- memory-mapped parts

PARTS = (3, 1, 4)


def write_parts(folder, images, labels, sizes=PARTS):
    """Write images_000.npy and labels_000.npy, and so on; gives their paths."""
    begins, paths = np.cumsum([0, *sizes]), []
    for i, (begin, end) in enumerate(zip(begins, begins[1:])):
        for name, array in (("images", images), ("labels", labels)):
            paths.append(folder / f"{name}_{i:03}.npy")
            np.save(paths[-1], array[begin:end])
    return paths


@pytest.fixture
def examples(rng):
    return rng.randint(256, size=(sum(PARTS), 36, 36)).astype(np.uint8), rng.randint(10, size=(sum(PARTS), 2))


@pytest.mark.parametrize("sizes", [PARTS, [8]])
def test_mapped_parts_are_the_set_that_one_file_would_be(tmp_path, examples, rng, sizes):
    mapped, whole = read(*write_parts(tmp_path, *examples, sizes)), read(write(tmp_path / "a.pickle", examples))
    assert len(mapped) == len(whole) == 8
    for indices in (np.arange(8), rng.permutation(8)[:5], np.array([3]), np.array([7, 7, 0])):
        for ours, theirs in zip(mapped.gather(indices), whole.gather(indices)):
            np.testing.assert_array_equal(ours, theirs)
    assert all((a == b).all() for a, b in zip(mapped[6], whole[6]))


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda images: images.astype("float32"), "images are float32"),
        (lambda images: images[:, :28, :28], r"images are \[3, 28, 28\] uint8"),
        (lambda images: np.asfortranarray(images), "Fortran"),
        (lambda images: images[:2], "2 images but 3 labels"),
        (lambda images: images[:0], "no image"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(tmp_path, examples, change, words):
    paths = write_parts(tmp_path, *examples)
    np.save(paths[0], change(examples[0][:3]))
    with pytest.raises(ValueError, match=f"images_000.npy: .*{words}"):
        read(*paths)


def test_parts_without_a_partner_or_beside_other_files_are_refused(tmp_path, examples):
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


# ---------------------------------------------------------------------------------------- memory


def test_memory_does_not_grow_with_a_mapped_set(tmp_path):
    """An epoch over 26 MB of images, of which a batch is in memory at a time, and all labels."""
    size = 20_000
    np.lib.format.open_memmap(tmp_path / "images_0.npy", "w+", np.uint8, (size, 36, 36)).flush()
    np.save(tmp_path / "labels_0.npy", np.zeros([size, 2], np.uint8))

    def read_an_epoch():
        data = read(*tmp_path.iterdir())
        for begin in range(0, size, 100):
            data.gather(np.arange(begin, begin + 100))

    assert peak_of(read_an_epoch) < size * 36 * 36 / 4


def test_memory_has_one_copy_of_the_pixels_a_byte_each(tmp_path):
    """After an epoch too. Forked worker processes share an array; objects would be copied as their counts change."""
    path = write(tmp_path / "x.pickle", (np.zeros([5000, 36, 36], np.uint8), np.zeros([5000, 2], np.int32)))
    tracemalloc.start()
    data = read(path)
    for begin in range(0, 5000, 100):
        data[begin], data.gather(np.arange(begin, begin + 100))
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert type(data.images) is np.ndarray and 5000 * 36 * 36 <= kept < 1.1 * 5000 * 36 * 36


def shifted(image, down, right):
    """An image [36, 36] shifted pixel by pixel; what moves in is 0."""
    made = np.zeros_like(image)
    for y in range(36):
        for x in range(36):
            if 0 <= y - down < 36 and 0 <= x - right < 36:
                made[y, x] = image[y - down, x - right]
    return made


def test_training_shifts_each_image_by_seed_epoch_and_example_alone(tmp_path):
    data = read(write(tmp_path / "a.pickle", (IMAGES, LABELS)), augment_shift=2, job="train")

    def augmented(indices, epoch=0, seed=1):
        images, *labels = data.augment(data.gather(np.array(indices)), np.array(indices), epoch, seed)
        assert images.shape == (len(indices), 1, 36, 36) and images.dtype == np.float32
        assert np.stack(labels, axis=1).tolist() == LABELS[indices].tolist()
        return images[:, 0]

    possible = {i: [shifted(data[i][0][0], dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)] for i in range(4)}
    found = set()
    for epoch in range(40):
        for i, image in enumerate(augmented([0, 1, 2, 3], epoch)):
            found.add(next(number for number, other in enumerate(possible[i]) if (image == other).all()))
    assert found == {*range(25)}, "every shift of up to two pixels occurs"
    whole = augmented([0, 1, 2, 3], epoch=5)
    assert (augmented([3, 1], epoch=5) == whole[[3, 1]]).all(), "a batch's other examples decide nothing"
    assert not all(
        (augmented([0, 1, 2, 3], **other) == whole).all() for other in ({"epoch": 6}, {"epoch": 5, "seed": 2})
    )


def test_training_turns_and_zooms_within_the_limits(tmp_path):
    """A spot 10 pixels to the right of the centre is found again where its turn and its distance are allowed."""
    y, x = np.indices([36, 36]) - 17.5
    spot = np.rint(255 * np.exp(-(y**2 + (x - 10) ** 2) / 8)).astype("uint8")
    path = write(tmp_path / "a.pickle", (np.stack([spot] * 200), np.zeros([200, 2], "int64")))
    data = read(path, augment_turn=20.0, augment_zoom=0.25, job="train")
    indices = np.arange(200)
    images = data.augment(data.gather(indices), indices, 3, 1)[0][:, 0]
    total = images.sum((1, 2))
    down, right = (images * y).sum((1, 2)) / total, (images * x).sum((1, 2)) / total
    turns, distances = np.degrees(np.arctan2(down, right)), np.hypot(down, right)
    assert -20.2 < turns.min() < -18 and 18 < turns.max() < 20.2
    assert 7.95 < distances.min() < 8.4 and 12 < distances.max() < 12.55
    assert abs(np.corrcoef(turns, distances)[0, 1]) < 0.3, "the one says nothing of the other"
    enlarged = np.corrcoef(total, distances)[0, 1]
    assert enlarged > 0.99, "what moves outwards grows"


def moved_by(y, x, bends):
    """How far a pixel of a bent image moves, down and to the right: the sum over the 25 points, one after the other."""
    total = np.zeros(2)
    for i in range(5):
        for j in range(5):
            near = [max(0, 1 - abs(place - point * 8.75) / 8.75) for place, point in ((y, i), (x, j))]
            total += bends[:, 5 * i + j] * math.prod(3 * t**2 - 2 * t**3 for t in near)
    return total


@pytest.mark.parametrize("bend", [0.0, 3.0])
def test_a_turned_and_bent_image_is_what_a_loop_over_its_pixels_gives(bend):
    random = np.random.RandomState(0)
    image, angle, zoom = random.rand(36, 36).astype("float32"), np.radians(30), 1.1
    bends = random.uniform(-bend, bend, [2, 25]).astype("float32")
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    expected = np.zeros([36, 36])
    for y in range(36):
        for x in range(36):
            down, right = turn @ [y - 17.5, x - 17.5] + 17.5 + moved_by(y, x, bends)
            for row in (int(np.floor(down)), int(np.floor(down)) + 1):
                for column in (int(np.floor(right)), int(np.floor(right)) + 1):
                    if 0 <= row < 36 and 0 <= column < 36:
                        expected[y, x] += image[row, column] * (1 - abs(row - down)) * (1 - abs(column - right))
    found = _transformed(image[None], turn[None].astype("float32"), bends[None])
    # places within 36 have an error of a few of float32's steps there (2 ** -19), which moves a value as much
    assert found.dtype == np.float32 and np.abs(found[0] - expected).max() < 5 * 2**-18
    quarter = np.array([[[0, 1], [-1, 0]]], "float32")
    assert (_transformed(image[None], quarter, np.zeros([1, 2, 0], "float32"))[0] == np.rot90(image)).all()


def test_training_bends_each_image_by_as_many_pixels_as_said(tmp_path):
    """A spot at one of the points moves by as much as the point; one at another point, otherwise."""
    y, x = np.indices([36, 36])
    spots = [np.exp(-((y - down) ** 2 + (x - right) ** 2) / 4) for down, right in ((8.75, 8.75), (26.25, 17.5))]
    path = write(tmp_path / "a.pickle", (np.rint([255 * spots[0]] * 400 + [255 * spots[1]] * 400), np.zeros([800, 2])))
    data = read(path, augment_bend=2.0, image_scale="255", job="train")
    indices = np.arange(800)
    images = data.augment(data.gather(indices), indices, 3, 1)[0][:, 0]
    total = images.sum((1, 2))
    moved = np.stack([(images * y).sum((1, 2)) / total, (images * x).sum((1, 2)) / total], 1).reshape(2, 400, 2)
    moved -= np.array([[8.75, 8.75], [26.25, 17.5]])[:, None]
    for of_spot in moved:
        # the spot's edges go with the points around it, which are bent too: hence the wide limits
        assert 1.5 < of_spot.max() < 2.8 and -2.8 < of_spot.min() < -1.5
        assert 0.8 < of_spot.std() < 1.5 and abs(of_spot.mean()) < 0.2
        assert abs(np.corrcoef(of_spot.T)[0, 1]) < 0.3, "down says nothing of right"


def test_a_share_of_the_images_may_be_shifted_alone(tmp_path):
    """The changed images are as without a share, and other ones in each epoch."""
    images = np.random.RandomState(0).randint(0, 256, [500, 36, 36]).astype("uint8")
    path, indices = write(tmp_path / "a.pickle", (images, np.zeros([500, 2], "int64"))), np.arange(500)
    options = {"augment_turn": 10.0, "augment_zoom": 0.1, "augment_bend": 1.0, "job": "train"}
    part, whole = read(path, augment_share=0.3, **options), read(path, **options)
    batch, changed = part.gather(indices), []
    for epoch in (0, 1):
        found, of_all = (data.augment(batch, indices, epoch, 1)[0] for data in (part, whole))
        is_changed = (found != batch[0]).any((1, 2, 3))
        assert (found[is_changed] == of_all[is_changed]).all() and (of_all != batch[0]).any((1, 2, 3)).all()
        assert 100 < is_changed.sum() < 200  # 150 expected, with a deviation of 10
        changed.append(is_changed)
    assert 150 < (changed[0] != changed[1]).sum() < 270, "210 expected, with a deviation of 11"
    shifting = {**options, "augment_shift": 35, "augment_share": 0.3}
    assert (read(path, **shifting).augment(batch, indices, 0, 1)[0] != batch[0]).any((1, 2, 3)).mean() > 0.99
    with pytest.raises(ValueError, match="runner.augment_share is 0.3, but nothing turns, zooms or bends the images"):
        read(path, augment_shift=2, augment_share=0.3, job="train")


def test_the_last_epochs_may_be_left_as_they_are(tmp_path):
    path = write(tmp_path / "a.pickle", (IMAGES, LABELS))
    data = read(path, augment_turn=10.0, augment_epochs=3, job="train")
    batch = data.gather(np.arange(4))
    changed = [data.augment(batch, np.arange(4), epoch, 1) is not batch for epoch in range(5)]
    assert changed == [True, True, True, False, False]
    with pytest.raises(ValueError, match="runner.augment_epochs is 3, but nothing changes the images"):
        read(path, augment_epochs=3, job="train")


def test_without_the_key_nothing_is_shifted_and_other_tools_are_told_that_they_cannot(tmp_path):
    path = write(tmp_path / "a.pickle", (IMAGES, LABELS))
    batch = read(path).gather(np.arange(4))
    assert read(path).augment(batch, np.arange(4), 0, 1) is batch
    with pytest.raises(ValueError, match="runner.augment_shift is 2, but only this project's tools"):
        read(path, augment_shift=2)
    with pytest.raises(ValueError, match="runner.augment_shift is 36, but must be a whole number >= 0 and <= 35"):
        read(path, augment_shift=36, job="train")
