"""Multi-MNIST files -> examples (image, left label, right label). Knows no network.

A data file is a pickle, a gzip of one, or an .npz (see dselect_k_model/array_files.py). It holds either

- the pair (images, labels), as data/make_multi_mnist.py writes it, or a dict of these names;
- or the four arrays (trainX, trainLabel, testX, testLabel) of the Pareto-MTL data sets, or a dict of these names. The
  config says which half is read.

A large set can also be images_000.npy (uint8) and labels_000.npy, images_001.npy and so on. These images are
memory-mapped. Images may be [N, 36, 36], have one channel, or be flat; pixels are 0..255 or 0..1. Labels are two digits
for each image or two one-hot vectors, and -1 where one is missing.

Files may come from strangers. Their code never runs. What makes no sense is refused with file, index and reason.
"""

import collections
import functools
import logging
import math
import os

import numpy as np
from paddle.io import Dataset

from dselect_k_model import array_files
from dselect_k_model.config_key import STEP, Key

LOG = logging.getLogger("dselect_k")
IMAGE_SIZE = 36  # pixels a side
CLASS_NUM = 10
MISSING = -1  # a missing label: its task's loss and metrics skip the example
SUFFIXES = (".pickle", ".pkl", ".npz", ".gz", ".npy")
PAIR = ("images", "labels")
FOUR = ("trainX", "trainLabel", "testX", "testLabel")
HOW_TO_GET = "python data/make_multi_mnist.py --download --out data/full"
ACCEPTED = (
    f"expected images of {IMAGE_SIZE} x {IMAGE_SIZE} and one channel, 0..255 or 0..1, "
    f"and two labels 0..{CLASS_NUM - 1} for each, -1 where one is missing"
)
CHUNK = 4096  # images converted at a time
WHITE_1 = 1.001  # the most that rounding makes of a white of 1
BEND_POINTS = 5  # in a row of the points that augment_bend moves, and in a column

KEYS = {  # of runner
    "data_part": Key(
        "choice",
        None,
        "The half of a four-array file to read; without it, the tool's job or the folder decides.",
        choices=("train", "test"),
    ),
    "augment_shift": Key(
        int,
        0,
        "The most pixels by which training shifts an image, in each direction, anew in each epoch.",
        low=0,
        high=IMAGE_SIZE - 1,
        job="train",
        decides=STEP,
    ),
    "augment_turn": Key(
        float,
        0.0,
        "The most degrees by which training turns an image, to either side, anew in each epoch.",
        low=0,
        high=180,
        job="train",
        decides=STEP,
    ),
    "augment_zoom": Key(
        float,
        0.0,
        "The most by which training enlarges or shrinks an image, anew in each epoch: 0.1 is from 1/1.1 to 1.1 times.",
        low=0,
        high=1,
        job="train",
        decides=STEP,
    ),
    "augment_bend": Key(
        float,
        0.0,
        "The most pixels by which training moves each of 5 x 5 points of an image, in each direction, anew in each "
        "epoch; what is between the points moves with them.",
        low=0,
        high=IMAGE_SIZE,
        job="train",
        decides=STEP,
    ),
    "augment_share": Key(
        float,
        1.0,
        "The share of the images that training turns, zooms and bends, drawn anew in each epoch; all are shifted.",
        low=0.001,
        high=1,
        job="train",
        decides=STEP,
    ),
    "augment_epochs": Key(
        int,
        None,
        "The number of epochs, from the first, in which images are shifted, turned, zoomed and bent; without it, all.",
        low=1,
        job="train",
        decides=STEP,
    ),
    "image_scale": Key("choice", None, "The value of white, where the pixels leave it open.", choices=("255", "1")),
}
Set = collections.namedtuple("Set", "images labels")  # uint8 [N, 36, 36], int64 [N, 2]
Most = collections.namedtuple("Most", "shift turn zoom bend")  # augment_shift, augment_turn and so on
Changes = collections.namedtuple("Changes", "shifts matrices bends")  # see _changes


class RecDataset(Dataset):
    """A map-style dataset that can be shuffled, sharded and read by worker processes.

    The images stay uint8. Worker processes are forked, so they share them.

    Args:
        file_list: paths; the files whose names end in one of ``SUFFIXES`` are read in sorted order, as one set. A
            warning names others, unless they are hidden.
        config: flat config dict. Of ``runner.*`` the keys in ``KEYS`` are read.
    Raises:
        ValueError: there is no data file, or one cannot be read or means something else.
    """

    config_keys = KEYS  # for tools that ask
    how_to_get_data = HOW_TO_GET

    def __init__(self, file_list, config):
        super().__init__()
        paths = _data_files(file_list)
        folder = os.path.dirname(paths[0])
        scale = _choice(config, "image_scale")
        self.most = Most(*(_choice(config, f"augment_{name}") for name in Most._fields))
        for name, most in self.most._asdict().items():
            if most and config.get("runner.job") is None:  # our tools set it
                raise ValueError(
                    f"runner.augment_{name} is {most}, but only this project's tools augment images. Set it to 0."
                )
        self.interpolates = any([self.most.turn, self.most.zoom, self.most.bend])  # a shift is by whole pixels
        self.share = _choice(config, "augment_share")
        if self.share < 1 and not self.interpolates:
            raise ValueError(
                f"runner.augment_share is {self.share}, but nothing turns, zooms or bends the images. Set "
                "augment_turn, augment_zoom or augment_bend, or remove it."
            )
        self.augmented_epochs = _choice(config, "augment_epochs")
        if self.augmented_epochs is not None and not any(self.most):
            raise ValueError(
                f"runner.augment_epochs is {self.augmented_epochs}, but nothing changes the images. Set augment_shift, "
                "augment_turn, augment_zoom or augment_bend, or remove it."
            )
        are_mapped = [path.lower().endswith(".npy") for path in paths]
        if any(are_mapped) and not all(are_mapped):
            other = paths[are_mapped.index(False)]
            raise ValueError(f"{other}: there are .npy files beside it. Keep files of one form in a folder.")
        part = _part(config, folder)
        sets = _map_sets(paths, scale) if any(are_mapped) else [read_set(path, part, scale) for path in paths]
        images, labels = zip(*sets)
        join = Joined if any(are_mapped) else np.concatenate
        self.images = images[0] if len(sets) == 1 else join(images)
        self.labels = np.concatenate(labels)
        class_num = config.get("hyper_parameters.class_num", CLASS_NUM)
        if type(class_num) is int and 1 <= class_num <= self.labels.max():  # the network refuses other values
            raise ValueError(
                f"{folder}: there are labels up to {self.labels.max()}, but hyper_parameters.class_num is {class_num}. "
                f"Set it to {CLASS_NUM}."
            )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """[image float32 [1, 36, 36] in 0..1, left label int64, right label int64]; a missing label is -1."""
        return [item[0] for item in self.gather(np.array([index]))]

    def gather(self, indices):
        """A whole batch at once, with the same values as example by example.

        Args:
            indices: whole numbers [B].
        Returns:
            [images float32 [B, 1, 36, 36] in 0..1, left labels int64 [B], right labels int64 [B]].
        """
        images = self.images[indices][:, None].astype(np.float32)
        images /= np.float32(255)
        return [images, self.labels[indices, 0], self.labels[indices, 1]]

    def augment(self, batch, indices, epoch, seed):
        """Turn and enlarge each image of a training batch about its centre, bend and shift it; what moves in is black.

        Args:
            batch: of ``gather``.
            indices: of its examples.
            epoch, seed: decide, with an example's index, how its image is changed.
        """
        if not any(self.most) or (self.augmented_epochs is not None and epoch >= self.augmented_epochs):
            return batch
        images, *labels = batch
        changes = _changes(len(self), self.most, self.share, seed, epoch)
        moved = _shifted(images[:, 0], changes.shifts[indices])
        if self.interpolates:
            moved = _transformed(moved, changes.matrices[indices], changes.bends[indices])
        return [moved[:, None], *labels]


# --------------------------------------------------------------------------------- augmentation


@functools.lru_cache(maxsize=1)
def _changes(number, most, share, seed, epoch):
    """How an epoch changes each example's image.

    Returns:
        ``Changes``: by how many pixels it is shifted, down and to the right: int64 [number, 2]; the matrix that takes a
        place of the new image, seen from its centre, to that of the old one: float32 [number, 2, 2]; and how many
        pixels further, for each of the points of ``_point_weights``: float32 [number, 2, points].
    """
    random = np.random.default_rng([seed, epoch, number])
    shifts = random.integers(-most.shift, most.shift, [number, 2], endpoint=True)
    angle = np.radians(random.uniform(-most.turn, most.turn, number))
    zoom = (1 + most.zoom) ** random.uniform(-1, 1, number)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrices = np.stack([cos, sin, -sin, cos], -1).reshape(number, 2, 2).astype(np.float32)
    points = BEND_POINTS**2 if most.bend else 0
    bends = np.float32(most.bend) * (2 * random.random([number, 2, points], np.float32) - 1)
    others = random.random(number) >= share
    matrices[others], bends[others] = np.eye(2), 0
    return Changes(shifts, matrices, bends)


def _shifted(images, shifts):
    """Images [B, 36, 36], each moved down and to the right by shifts [B, 2]."""
    most = np.abs(shifts).max()
    padded = np.pad(images, [(0, 0), (most, most), (most, most)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, [IMAGE_SIZE] * 2, axis=(1, 2))
    down, right = shifts.T
    return windows[np.arange(len(images)), most - down, most - right]


@functools.lru_cache(maxsize=1)
def _point_weights():
    """How much each point moves each pixel, float32 [points, 36 * 36]: from 1 at the point to 0 at its neighbours.

    The points are a square grid from corner to corner of the image, row by row. The weights of a pixel sum to 1.
    """
    points = np.linspace(0, IMAGE_SIZE - 1, BEND_POINTS)
    near = np.maximum(1 - np.abs(np.arange(IMAGE_SIZE) - points[:, None]) / points[1], 0)
    weights = near * near * (3 - 2 * near)
    return np.kron(weights, weights).astype(np.float32)


def _transformed(images, matrices, bends):
    """Images [B, 36, 36] at the places that matrices [B, 2, 2] and bends [B, 2, points] say, by linear interpolation.

    Bends may have no points: then nothing is bent.
    """
    middle, side = (IMAGE_SIZE - 1) / 2, IMAGE_SIZE + 3  # with a black border: one pixel before, two after
    grid = np.indices([IMAGE_SIZE] * 2, np.float32).reshape(2, -1) - middle
    places = matrices @ grid + (middle + 1)
    if bends.size:
        places += bends @ _point_weights()
    places = np.clip(places, 0, IMAGE_SIZE + 1)
    lower = np.floor(places)
    down, right = (places - lower).transpose(1, 0, 2)
    pixels = np.pad(images, [(0, 0), (1, 2), (1, 2)]).reshape(-1)
    row, column = lower.astype(np.int64).transpose(1, 0, 2)
    corner = (np.arange(len(images))[:, None] * side + row) * side + column
    upper, under = (pixels[at] * (1 - right) + pixels[at + 1] * right for at in (corner, corner + side))
    return (upper * (1 - down) + under * down).reshape(images.shape)


class Joined:
    """Arrays one after another, without a copy of them all.

    Args:
        arrays: of one shape, except for the first dimension.
    """

    def __init__(self, arrays):
        self.arrays, self.ends = arrays, np.cumsum([len(array) for array in arrays])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, indices):
        """The examples of an array of indices >= 0, as an array."""
        part_of = np.searchsorted(self.ends, indices, side="right")
        found = np.empty([len(indices), *self.arrays[0].shape[1:]], self.arrays[0].dtype)
        for part in np.unique(part_of):
            array, chosen = self.arrays[part], part_of == part
            found[chosen] = array[indices[chosen] - (self.ends[part] - len(array))]
        return found


def _data_files(file_list):
    visible = sorted(path for path in {*file_list} if not os.path.basename(path).startswith("."))
    paths = [path for path in visible if path.lower().endswith(SUFFIXES) and not os.path.isdir(path)]
    others = [path for path in visible if path not in paths]
    if not paths:
        folder = os.path.dirname(file_list[0]) if file_list else "the data folder"
        raise ValueError(f"{folder}: no Multi-MNIST file (*{', *'.join(SUFFIXES)}). Make the data: {HOW_TO_GET}")
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        LOG.warning("%s%s is not *%s: skipped.", others[0], more, ", *".join(SUFFIXES))
    return paths


def _choice(config, name):
    value = config.get(f"runner.{name}")
    return KEYS[name].default if value is None else KEYS[name].check(f"runner.{name}", value)


def _part(config, folder):
    """Which half of a four-array file is meant: "train", "test", or None if the config leaves it open."""
    chosen = _choice(config, "data_part")
    if chosen is not None:
        return chosen
    if config.get("runner.job") is not None:  # our tools set it
        return "train" if config["runner.job"] == "train" else "test"
    folders = {part: config.get(f"runner.{part}_data_dir") for part in ("train", "test")}
    base = config.get("config_abs_dir", "")
    parts = [
        part
        for part, path in folders.items()
        if path is not None and os.path.normpath(os.path.join(base, path)) == os.path.normpath(folder)
    ]
    return parts[0] if len(parts) == 1 else None


def read_set(path, part=None, scale=None):
    """Read one data file.

    Args:
        path: of the file.
        part: "train" or "test", the half of a four-array file.
        scale: "255" or "1", the value of white; None: as the pixels show.
    Returns:
        A ``Set``.
    Raises:
        ValueError: naming the file, what was found and what is accepted.
    """
    try:
        content = array_files.read(path)
    except ValueError as error:
        raise ValueError(f"{error} Or make the data again: {HOW_TO_GET}") from error
    if isinstance(content, (tuple, list)) and len(content) in (2, 4):
        content = dict(zip(PAIR if len(content) == 2 else FOUR, content))
    if not isinstance(content, dict) or set(content) not in (set(PAIR), set(FOUR)):
        size = f" of {len(content)}" if isinstance(content, (tuple, list, dict)) else ""
        wanted = f"a pair (images, labels) nor four arrays ({', '.join(FOUR)})"
        raise _refusal(path, f"it holds a {type(content).__name__}{size}, neither {wanted}")
    for name, value in content.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            raise _refusal(path, f"{name} is a {type(value).__name__}, not an array")
    if set(content) == set(PAIR):
        return _checked_set(path, content["images"], path, content["labels"], scale)
    if part is None:
        raise ValueError(f"{path}: it holds a train and a test half. Set runner.data_part to train or test.")
    return _checked_set(path, content[f"{part}X"], path, content[f"{part}Label"], scale)


def _map_sets(paths, scale):
    """``read_set`` of images….npy and labels….npy, pair by pair. The images are memory-mapped."""
    by_name = {os.path.basename(path): path for path in paths}
    sets = []
    for name, path in sorted(by_name.items()):
        begin = next((begin for begin in PAIR if name.startswith(begin)), None)
        other = None if begin is None else PAIR[1 - PAIR.index(begin)] + name[len(begin) :]
        if other not in by_name:
            raise _refusal(path, f"there is no {other or 'images….npy or labels….npy'} that goes with it")
        if begin == "labels":
            continue
        images, labels = array_files.map_npy(path), array_files.map_npy(by_name[other])
        if images.dtype != np.uint8 or scale == "1":
            scaled = ", and runner.image_scale is 1" if scale == "1" else ""
            raise _refusal(path, f"images are {images.dtype}{scaled}", "A mapped .npy must hold uint8, 0..255.")
        if not images.flags.c_contiguous:
            hint = "Write it by np.save(path, np.ascontiguousarray(x))."
            raise _refusal(path, "the array is in Fortran order", hint)
        sets.append(_checked_set(path, images, by_name[other], labels, scale))
    return sets


def _checked_set(path, images, labels_path, labels, scale):
    if not len(images):
        raise _refusal(path, "there is no image in it")
    images, labels = _pixels(path, images, scale), _digits(labels_path, labels)
    if len(images) != len(labels):
        raise _refusal(path, f"there are {len(images)} images but {len(labels)} labels")
    return Set(images, labels)


def _refusal(path, found, hint=""):
    return ValueError(f"{path}: {found}; {ACCEPTED}.{hint and ' ' + hint}")


def _pixels(path, images, scale):
    """Images of any accepted layout and range as uint8 [N, 36, 36]."""
    side = IMAGE_SIZE
    if images.dtype.kind not in "iufb":
        raise _refusal(path, f"images are {images.dtype}")
    if images.shape[1:] not in ((side, side), (1, side, side), (side, side, 1), (side * side,)):
        hint = "Convert it to one channel." if 3 in images.shape[1:] else ""
        if math.prod(images.shape[1:]) == 28 * 28:
            hint = f"This looks like plain MNIST. Make the data: {HOW_TO_GET}"
        raise _refusal(path, f"images are {list(images.shape)} {images.dtype}", hint)
    images = images.reshape(-1, side, side)
    if images.dtype == np.uint8 and scale != "1":
        return images
    white = _white(path, images, scale)
    result = np.empty(images.shape, np.uint8)
    for begin in range(0, len(images), CHUNK):
        part = images[begin : begin + CHUNK].astype(np.float64)
        result[begin : begin + CHUNK] = np.rint(np.minimum(part, white) * (255.0 / white))
    return result


def _white(path, images, scale):
    """The value of white, 1 or 255."""
    low, high = float(images.min()), float(images.max())
    limit = 255 if scale != "1" else WHITE_1
    if not (low >= 0 and high <= limit):  # nan fails too
        bad = ~((images >= 0) & (images <= limit))
        i = int(bad.any(axis=(1, 2)).argmax())
        raise _refusal(path, f"image {i} has a pixel of {images[i][bad[i]][0]}")
    if scale is not None:
        return int(scale)
    if images.dtype.kind in "iu" or high >= 2:
        return 255
    if high <= WHITE_1 and ((images > 0) & (images < 1)).any():
        return 1
    found = f"the {images.dtype} images have pixels up to {high:.6g}, which may mean 0..1 or nearly black"
    raise _refusal(path, found, "Set runner.image_scale to 1 or 255.")


def _digits(path, labels):
    """Labels as whole numbers or one-hot -> int64 [N, 2]."""
    if labels.dtype.kind not in "iufb":
        raise _refusal(path, f"labels are {labels.dtype}")
    if labels.shape[1:] in ((2, CLASS_NUM), (2 * CLASS_NUM,)):
        labels = labels.reshape(-1, 2, CLASS_NUM)
        _check_each(
            path, labels, ((labels == 0) | (labels == 1)).all(axis=2) & (labels.sum(axis=2) == 1), "not one-hot"
        )
        labels = labels.argmax(axis=2)
    if labels.shape[1:] != (2,):
        raise _refusal(path, f"labels are {list(labels.shape)} {labels.dtype}")
    _check_each(path, labels, (labels >= MISSING) & (labels < CLASS_NUM) & (labels == np.floor(labels)))
    return labels.astype(np.int64)


def _check_each(path, labels, is_good, what=None):
    if not is_good.all():
        i = int((~is_good).any(axis=1).argmax())
        raise _refusal(path, f"the labels of example {i} are {what or labels[i].tolist()}")
