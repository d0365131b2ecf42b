"""Multi-MNIST files -> examples (image, left label, right label). Knows no network.

A data file is a pickle, plain or gzipped, of the pair (images uint8 [N, 36, 36], labels int [N, 2]),
the labels being the top-left digit and the bottom-right one. All data files of a folder are one set.
"""

import gzip
import os
import pickle

import numpy as np
from paddle.io import Dataset

IMAGE_SIZE = 36  # pixels a side
CLASS_NUM = 10
SUFFIXES = (".pickle", ".pkl", ".pickle.gz", ".pkl.gz")


class RecDataset(Dataset):
    """A map-style set: shuffling, sharding and worker processes all work on it.

    The images stay uint8, in one array. Worker processes are forked, so they share it.

    Args:
        file_list: paths; those whose names do not end in one of ``SUFFIXES``, hidden files and
            folders are passed over, the others read in sorted order.
        config: flat config dict; no key of it is read.
    Raises:
        ValueError: there is no data file, or one cannot be read or means something else.
    """

    def __init__(self, file_list, config):
        super().__init__()
        paths = sorted(path for path in file_list if _is_data_file(path))
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(
                f"{where}: no Multi-MNIST file (*{', *'.join(SUFFIXES)}). Make them by "
                "python data/make_multi_mnist.py, or point the config's data folder elsewhere."
            )
        parts = [read_file(path) for path in paths]
        self.images = np.concatenate([images for images, _ in parts]) if len(parts) > 1 else parts[0][0]
        self.labels = np.concatenate([labels for _, labels in parts])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """[image float32 [1, 36, 36] in 0..1, left label int64, right label int64]."""
        image = self.images[index][None].astype(np.float32) / np.float32(255)
        left, right = self.labels[index]
        return [image, left, right]


def _is_data_file(path):
    name = os.path.basename(path)
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and not os.path.isdir(path)


def read_file(path):
    """Read one data file.

    Returns:
        (images uint8 [N, 36, 36], labels int64 [N, 2]).
    Raises:
        ValueError: naming the file, what was found and what is accepted.
    """
    opener = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(
            f"{path}: this cannot be read as a pickle of two arrays ({error}). "
            "Make it anew by python data/make_multi_mnist.py."
        ) from error
    return _checked_pair(path, content)


def _checked_pair(path, content):
    def wrong(found, hint=""):
        return ValueError(
            f"{path}: {found}; expected the pair (images uint8 [N, {IMAGE_SIZE}, {IMAGE_SIZE}], "
            f"labels whole numbers 0..{CLASS_NUM - 1} [N, 2]).{hint}"
        )

    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise wrong(
            f"the pickle holds a {type(content).__name__}"
            + (f" of {len(content)}" if isinstance(content, (tuple, list)) else "")
        )
    images, labels = content
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise wrong(f"{name} are a {type(array).__name__}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        plain = images.ndim > 1 and images.shape[1:] in ((28, 28), (784,))
        raise wrong(f"images are {list(images.shape)} {images.dtype}", " This looks like plain MNIST." if plain else "")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images), 2):
        raise wrong(f"labels are {list(labels.shape)} {labels.dtype}, with {len(images)} images")
    if not len(images):
        raise wrong("there is no image in it")
    bad = np.flatnonzero(((labels < 0) | (labels >= CLASS_NUM)).any(axis=1))
    if len(bad):
        raise wrong(f"the labels of example {bad[0]} are {labels[bad[0]].tolist()}")
    return images, labels.astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, and refuses by name whatever else a file asks for."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("__builtin__", "bytes"),
        ("builtins", "bytes"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")
        if not module.startswith("numpy."):
            return super().find_class(module, name)
        # files of NumPy 2 under NumPy 1, and back
        for core in ("numpy._core", "numpy.core"):
            try:
                return super().find_class(core + module[module.rindex(".") :], name)
            except (ImportError, AttributeError):
                continue
        raise pickle.UnpicklingError(f"this NumPy has no {module}.{name}")
