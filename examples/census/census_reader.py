"""Files of make_data.py -> examples (numbers, ids, income, never married). Knows no network.

The ids are those of the categories, followed by those of the numbers' bins.
"""

import hashlib
import json
import os

import numpy as np
from paddle.io import Dataset

from dselect_k_model import array_files

HOW_TO_GET = "python make_data.py --test census-income.test.gz --out data/full"
NUMBER_NUM, CATEGORY_NUM = 7, 32
ARRAYS = {  # name -> (shape of an example, kinds of the type)
    "dense": ((NUMBER_NUM,), "f"),
    "ids": ((CATEGORY_NUM + NUMBER_NUM,), "iu"),
    "income": ((), "iu"),
    "never_married": ((), "iu"),
}
SIZES = "hyper_parameters.input.vocabulary_sizes"


class RecDataset(Dataset):
    """A map-style data set.

    Args:
        file_list: paths; the .npz files among them are one data set, in sorted order.
        config: flat config dict; it must have the right ``vocabulary_sizes``.
    Raises:
        ValueError: there is no data file, or a file is wrong, or does not fit the config.
    """

    how_to_get_data = HOW_TO_GET  # for tools that ask, where data are missing

    def __init__(self, file_list, config):
        super().__init__()
        paths = sorted(path for path in file_list if path.endswith(".npz"))
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: no .npz file found. Make the data: {HOW_TO_GET}")
        vocabulary_path = _vocabulary_beside(os.path.dirname(paths[0]))
        sizes, digest = read_vocabulary(vocabulary_path)
        if config.get(SIZES) != sizes:
            raise ValueError(
                f"{vocabulary_path}: its columns have {sizes} ids, but {SIZES} is {config.get(SIZES)}. "
                f"Set {SIZES} to the former, or give the folder that the config was made for."
            )
        sets = [_read(path, sizes, digest, vocabulary_path) for path in paths]
        self.arrays = {name: np.concatenate([one[name] for one in sets]) for name in ARRAYS}

    @staticmethod
    def encoding_files(config):
        """Paths of the files that decide how raw values became inputs: the vocabulary. For tools that ask."""
        keys = ["runner.train_data_dir", "runner.test_data_dir"]
        if config.get("runner.job") == "infer":
            keys.reverse()
        folders = [config[key] for key in keys if config.get(key) is not None]
        return [_vocabulary_beside(os.path.join(config.get("config_abs_dir", ""), folder)) for folder in folders[:1]]

    def __len__(self):
        return len(self.arrays["ids"])

    def __getitem__(self, index):
        """[numbers float32 [7], ids int64 [39], income float32, never married float32]."""
        return [item[0] for item in self.gather(np.array([index]))]

    def gather(self, indices):
        """A whole batch, for tools that ask: like ``__getitem__``, with the batch as first dimension of each array."""
        types = ("float32", "int64", "float32", "float32")
        return [array[indices].astype(dtype) for array, dtype in zip(self.arrays.values(), types)]


def _vocabulary_beside(folder):
    """The path of the vocabulary of the data in ``folder``: in the folder above."""
    return os.path.join(os.path.dirname(os.path.normpath(folder)), "vocabulary.json")


def read_vocabulary(path):
    """(number of ids of each column, SHA-256 of the file).

    Raises:
        ValueError: the file cannot be read or is not a vocabulary.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        vocabulary = json.loads(content)
        sizes = [len(column["values"]) + 1 for column in vocabulary["categories"]]
        sizes += [len(column["edges"]) + 1 for column in vocabulary["numbers"]]
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}). make_data.py writes it; keep it above the data's folders."
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: this is not a vocabulary of make_data.py ({error!r}). Make the data again."
        ) from error
    return sizes, hashlib.sha256(content).digest()


def _read(path, sizes, digest, vocabulary_path):
    """The arrays of a file, checked: name -> array."""
    arrays = array_files.read(path)
    wrong = _wrong_form(arrays)
    if not wrong and arrays["vocabulary"].tobytes() != digest:
        wrong = f"its ids belong to another vocabulary than {vocabulary_path}"
    elif not wrong and not np.isfinite(arrays["dense"]).all():
        wrong = "dense has a number that is not finite"
    elif not wrong and ((arrays["ids"] < 0) | (arrays["ids"] >= sizes)).any():
        wrong = "ids has one that its column's vocabulary does not have"
    elif not wrong and not all(np.isin(arrays[name], (0, 1)).all() for name in ("income", "never_married")):
        wrong = "it has a label other than 0 and 1"
    if wrong:
        raise ValueError(f"{path}: {wrong}. Make the data again: {HOW_TO_GET}")
    return arrays


def _wrong_form(arrays):
    """What is wrong with the names, types or shapes of a file's arrays; None if nothing is."""
    if not isinstance(arrays, dict) or set(arrays) != {*ARRAYS, "vocabulary"}:
        found = ", ".join(sorted(arrays)) if isinstance(arrays, dict) else f"a {type(arrays).__name__}"
        return f"it holds {found}, not {', '.join(ARRAYS)} and vocabulary"
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            return f"{name} is a {type(array).__name__}, not an array"
    for name, (shape, kinds) in ARRAYS.items():
        if arrays[name].shape != (*arrays["dense"].shape[:1], *shape) or arrays[name].dtype.kind not in kinds:
            return f"{name} is {list(arrays[name].shape)} {arrays[name].dtype}"
    return None
