"""Multi-MNIST files -> examples (image, left label, right label). Knows no network.

A data file holds arrays, or lists of numbers, and nothing else: a pickle of any protocol, written by
Python 2 or 3 and NumPy 1 or 2, a gzip of one, or an .npz. array_files.py reads it. Two forms are known:

- the pair (images, labels), as data/make_multi_mnist.py writes it; large sets also as images_000.npy (uint8) and
  labels_000.npy, images_001.npy and so on, of which the images are memory-mapped, not read;
- the four arrays (trainX, trainLabel, testX, testLabel) of the Pareto-MTL data sets, of which
  the half is taken that the config's role asks for.

Files may come from strangers. Their code never runs, and content that makes no sense is refused, naming file,
index and reason.
"""

import math
import os

import numpy as np
from paddle.io import Dataset

import array_files

IMAGE_SIZE = 36  # pixels a side
CLASS_NUM = 10
SUFFIXES = (".pickle", ".pkl", ".npz", ".gz", ".npy")
PAIR = ("images", "labels")
FOUR = ("trainX", "trainLabel", "testX", "testLabel")
SYNONYMS = {"x": "images", "y": "labels", "x_train": "trainX", "y_train": "trainLabel", "x_test": "testX"}
SYNONYMS["y_test"] = "testLabel"
HOW_TO_GET = "python data/make_multi_mnist.py --download --out data/full"
ACCEPTED = (
    f"expected images of {IMAGE_SIZE} x {IMAGE_SIZE} and one channel, 0..255 or 0..1, "
    f"and two labels 0..{CLASS_NUM - 1} for each"
)
CHUNK = 4096  # images converted at a time
WHITE_1 = 1.001  # the most that rounding makes of a white of 1


class RecDataset(Dataset):
    """A map-style set: shuffling, sharding and worker processes all work on it.

    The images stay uint8. Worker processes are forked, so they share them.

    Args:
        file_list: paths; those whose names do not end in one of ``SUFFIXES``, hidden files and
            folders are passed over, the others read in sorted order, as one set.
        config: flat config dict. Read are ``runner.data_part`` (train or test: the half of a
            four-array file), or failing that ``runner.job`` or the folder it lies in; and
            ``runner.image_scale`` (255 or 1: what white is, where the pixels do not tell).
    Raises:
        ValueError: there is no data file, or one cannot be read or means something else.
    """

    config_keys = ("data_part", "image_scale")  # runner.* keys of this reader, for tools that ask
    how_to_get_data = HOW_TO_GET  # likewise: for the message about missing data

    def __init__(self, file_list, config):
        super().__init__()
        paths = sorted(path for path in file_list if _is_data_file(path))
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: no Multi-MNIST file (*{', *'.join(SUFFIXES)}). Make the data: {HOW_TO_GET}")
        scale = _choice(config, "image_scale", ("255", "1"))
        part = _part(config, os.path.dirname(paths[0]))
        are_mapped = [path.lower().endswith(".npy") for path in paths]
        if any(are_mapped) and not all(are_mapped):
            other = paths[are_mapped.index(False)]
            raise ValueError(f"{other}: there are .npy files beside it. Keep files of one form in a folder.")
        sets = _read_sets(paths, part, scale) if not any(are_mapped) else map_sets(paths, scale)
        join = Joined if any(are_mapped) else np.concatenate
        self.images = sets[0].images if len(sets) == 1 else join([one.images for one in sets])
        self.labels = np.concatenate([one.labels for one in sets])
        class_num = _class_num(config)
        if self.labels.max() >= class_num:
            raise ValueError(
                f"{os.path.dirname(paths[0])}: there are labels up to {self.labels.max()}, but "
                f"hyper_parameters.class_num is {class_num}. Set it to {CLASS_NUM}."
            )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """[image float32 [1, 36, 36] in 0..1, left label int64, right label int64]."""
        return [item[0] for item in self.gather(np.array([index]))]

    def gather(self, indices):
        """A whole batch at once, for tools that ask for one; the same numbers as example by example.

        Args:
            indices: whole numbers [B].
        Returns:
            [images float32 [B, 1, 36, 36] in 0..1, left labels int64 [B], right labels int64 [B]].
        """
        images = self.images[indices][:, None].astype(np.float32)
        images /= np.float32(255)
        return [images, self.labels[indices, 0], self.labels[indices, 1]]


def _is_data_file(path):
    name = os.path.basename(path)
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and not os.path.isdir(path)


def _choice(config, key, choices):
    value = config.get(f"runner.{key}")
    if value is not None and str(value) not in choices:
        raise ValueError(f"runner.{key} is {value!r}, but must be {' or '.join(choices)}.")
    return None if value is None else str(value)


def _class_num(config):
    """The number of classes; infinite if the value is not one, for it is the network that refuses it."""
    value = config.get("hyper_parameters.class_num", CLASS_NUM)
    return value if type(value) is int and value >= 1 else math.inf


def _part(config, folder):
    """Which half of a four-array file is meant: "train", "test", or None if nothing tells."""
    chosen = _choice(config, "data_part", ("train", "test"))
    if chosen is not None:
        return chosen
    if config.get("runner.job") is not None:  # our tools say what they are doing
        return "train" if config["runner.job"] == "train" else "test"
    base = config.get("config_abs_dir", "")
    roles = [
        part
        for part in ("train", "test")
        if config.get(f"runner.{part}_data_dir") is not None
        and os.path.normpath(os.path.join(base, config[f"runner.{part}_data_dir"])) == os.path.normpath(folder)
    ]
    return roles[0] if len(roles) == 1 else None


# ------------------------------------------------------------------------- what the arrays mean


class _Set:
    """Images uint8 [N, 36, 36], labels int64 [N, 2], and in words the form they had in the file."""

    def __init__(self, images, labels, form):
        self.images, self.labels, self.form = images, labels, form


def read_set(path, part=None, scale=None):
    """Read one data file.

    Args:
        path: of the file.
        part: "train" or "test", the half of a four-array file.
        scale: "255" or "1", what white is; None: as the pixels tell.
    Returns:
        An object with images uint8 [N, 36, 36], labels int64 [N, 2], form.
    Raises:
        ValueError: naming the file, what was found and what is accepted.
    """
    try:
        content = array_files.read(path)
    except ValueError as error:
        raise ValueError(f"{error} Or make the data again: {HOW_TO_GET}") from error
    arrays = _named_arrays(path, content)
    if set(arrays) == set(FOUR):
        if part is None:
            raise ValueError(
                f"{path}: it holds a train and a test half, and nothing tells which is meant. "
                "Set runner.data_part to train or test."
            )
        images, labels, form = arrays[f"{part}X"], arrays[f"{part}Label"], "four arrays"
    else:
        images, labels, form = arrays["images"], arrays["labels"], "a pair"
    return _checked_set(path, images, labels, scale, form, path)


def _checked_set(path, images, labels, scale, form, labels_path):
    if not len(images):
        raise _refusal(path, "there is no image in it")
    pixels, kind = _pixels(path, images, scale)
    numbers = _class_numbers(labels_path, labels)
    if len(pixels) != len(numbers):
        raise _refusal(path, f"there are {len(pixels)} images but {len(numbers)} labels")
    return _Set(pixels, numbers, f"{form}, pixels {kind}")


def _read_sets(paths, part, scale):
    """``read_set`` of each file, which all must have one form."""
    sets = [read_set(path, part, scale) for path in paths]
    for path, one in zip(paths, sets):
        if one.form != sets[0].form:
            raise ValueError(
                f"{path}: this holds {one.form}, but {paths[0]} holds {sets[0].form}. "
                "Keep files of one form in a folder."
            )
    return sets


def map_sets(paths, scale=None):
    """The sets of images….npy and labels….npy, pair by pair, the images memory-mapped.

    Args:
        paths: of .npy files.
        scale: as for ``read_set``; "1" is refused, for mapped pixels are taken as they are.
    Returns:
        Objects as ``read_set`` gives them.
    Raises:
        ValueError: naming the file, what was found and what is accepted.
    """
    by_name = {os.path.basename(path): path for path in paths}
    sets = []
    for name, path in sorted(by_name.items()):
        begin = next((begin for begin in PAIR if name.startswith(begin)), None)
        other = None if begin is None else PAIR[1 - PAIR.index(begin)] + name[len(begin) :]
        if other not in by_name:
            raise _refusal(path, f"there is no {other or 'images….npy or labels….npy'} that goes with it")
        if begin == PAIR[0]:
            sets.append(_mapped_set(path, by_name[other], scale))
    return sets


def _mapped_set(path, labels_path, scale):
    images, labels = array_files.map_npy(path), array_files.map_npy(labels_path)
    if images.dtype != np.uint8 or scale == "1":
        scaled = f", and runner.image_scale is {scale}" if scale == "1" else ""
        raise _refusal(path, f"images are {images.dtype}{scaled}", "A mapped .npy must hold uint8, 0..255.")
    if not images.flags.c_contiguous:
        raise _refusal(path, "the array is in Fortran's order", "Write it by np.save(path, np.ascontiguousarray(x)).")
    return _checked_set(path, images, labels, scale, "a mapped pair", labels_path)


class Joined:
    """Arrays one behind the other, without a copy of all of them.

    Args:
        arrays: of one shape, but for the first dimension.
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


def _refusal(path, found, hint=""):
    return ValueError(f"{path}: {found}; {ACCEPTED}.{hint and ' ' + hint}")


def _named_arrays(path, content):
    """The file's content as {name: array}, with the names of ``PAIR`` or ``FOUR``."""
    if isinstance(content, dict):
        names = {SYNONYMS.get(name, name): value for name, value in content.items()}
    elif isinstance(content, (tuple, list)) and len(content) in (2, 4):
        names = dict(zip(PAIR if len(content) == 2 else FOUR, content))
    else:
        names = {}
    if set(names) not in (set(PAIR), set(FOUR)):
        size = f" of {len(content)}" if isinstance(content, (tuple, list, dict)) else ""
        raise _refusal(
            path,
            f"it holds a {type(content).__name__}{size}, neither a pair (images, labels) nor four arrays "
            f"({', '.join(FOUR)})",
        )
    for name, value in names.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            raise _refusal(path, f"{name} is a {type(value).__name__}, not an array")
    return names


def _pixels(path, images, scale):
    """Images of any accepted layout and range as (uint8 [N, 36, 36], the range in words)."""
    side = IMAGE_SIZE
    if images.dtype.kind not in "iufb":
        raise _refusal(path, f"images are {images.dtype}")
    if images.shape[1:] not in ((side, side), (1, side, side), (side, side, 1), (side * side,)):
        hint = "Convert it to one channel." if 3 in images.shape[1:] else ""
        if images.shape[1:] in ((28, 28), (1, 28, 28), (28, 28, 1), (784,)):
            hint = f"This looks like plain MNIST. Make the data: {HOW_TO_GET}"
        raise _refusal(path, f"images are {list(images.shape)} {images.dtype}", hint)
    images = images.reshape(-1, side, side)
    if images.dtype == np.uint8 and scale != "1":
        return images, "uint8"
    white = _white(path, images, scale)
    result = np.empty(images.shape, np.uint8)
    for begin in range(0, len(images), CHUNK):
        part = images[begin : begin + CHUNK].astype(np.float64)
        result[begin : begin + CHUNK] = np.rint(np.minimum(part, white) * (255.0 / white))
    return result, f"0..{white}"


def _white(path, images, scale):
    """What white is, 1 or 255; every pixel is looked at, and refused by its image's index."""
    greatest, between = 0.0, False
    for begin in range(0, len(images), CHUNK):
        part = images[begin : begin + CHUNK]
        limit = 255 if scale != "1" else WHITE_1
        bad = ~((part >= 0) & (part <= limit))  # nan fails too
        if bad.any():
            i = int(np.flatnonzero(bad.any(axis=(1, 2)))[0])
            value = part[i][bad[i]][0]
            raise _refusal(path, f"image {begin + i} has a pixel of {value}")
        greatest = max(greatest, float(part.max()))
        between = between or bool(((part > 0) & (part < 1)).any())
    if scale is not None:
        return int(scale)
    if images.dtype.kind in "iu" or greatest >= 2:
        return 255
    if between and greatest <= WHITE_1:
        return 1
    raise _refusal(
        path,
        f"the {images.dtype} images have pixels up to {greatest:.6g}, which may mean 0..1 or nearly black",
        "Set runner.image_scale to 1 or 255.",
    )


def _class_numbers(path, labels):
    """Labels as whole numbers or one-hot -> int64 [N, 2]."""
    if labels.dtype.kind not in "iufb":
        raise _refusal(path, f"labels are {labels.dtype}")
    if labels.shape[1:] in ((2, CLASS_NUM), (2 * CLASS_NUM,)):
        labels = _from_one_hot(path, labels.reshape(-1, 2, CLASS_NUM))
    if labels.shape[1:] != (2,):
        raise _refusal(path, f"labels are {list(labels.shape)} {labels.dtype}")
    bad = ~((labels >= 0) & (labels < CLASS_NUM) & (labels == np.floor(labels)))
    if bad.any():
        i = int(np.flatnonzero(bad.any(axis=1))[0])
        raise _refusal(path, f"the labels of example {i} are {labels[i].tolist()}")
    return labels.astype(np.int64)


def _from_one_hot(path, labels):
    bad = ((labels != 0) & (labels != 1)).any(axis=2) | ((labels == 1).sum(axis=2) != 1)
    if bad.any():
        i = int(np.flatnonzero(bad.any(axis=1))[0])
        raise _refusal(path, f"the labels of example {i} are not one-hot")
    return labels.argmax(axis=2)
