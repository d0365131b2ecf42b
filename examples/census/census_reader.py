"""Files of make_data.py -> examples (numbers, ids, income, never married). Knows no network.

The ids are those of the categories, then those of the numbers' bins.
"""

import hashlib
import json
import os

import numpy as np
from paddle.io import Dataset

import array_files

HOW_TO_GET = "python make_data.py --test census-income.test.gz --out data/full"
NUMBER_NUM, CATEGORY_NUM = 7, 32
# name -> (shape of an example, kinds of the type)
ARRAYS = {
    "dense": ((NUMBER_NUM,), "f"), "ids": ((CATEGORY_NUM + NUMBER_NUM,), "iu"), "income": ((), "iu"),
    "never_married": ((), "iu"),
}  # fmt: skip
SIZES = "hyper_parameters.input.vocabulary_sizes"


class RecDataset(Dataset):
    """A map-style set: shuffling, sharding and worker processes all work on it.

    Args:
        file_list: paths; those whose names end in .npz are read in sorted order, as one set.
        config: flat config dict, of which the vocabularies' sizes are read.
    Raises:
        ValueError: there is no data file, one holds something else, or it does not go with the config.
    """

    how_to_get_data = HOW_TO_GET  # for tools that ask: told where the data are missing

    def __init__(self, file_list, config):
        super().__init__()
        paths = sorted(path for path in file_list if path.endswith(".npz"))
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: there is no .npz file. Make the data: {HOW_TO_GET}")
        vocabulary_path = _vocabulary_beside(os.path.dirname(paths[0]))
        sizes, digest = read_vocabulary(vocabulary_path)
        if config.get(SIZES) != sizes:
            raise ValueError(
                f"{vocabulary_path}: its columns have {sizes} ids, but {SIZES} is {config.get(SIZES)}. "
                "Set the one to the other, or give the folder that the config is for."
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
        """A whole batch at once, for tools that ask for one; the same numbers as example by example.

        Args:
            indices: whole numbers [B].
        Returns:
            [numbers float32 [B, 7], ids int64 [B, 39], income float32 [B], never married float32 [B]].
        """
        types = ("float32", "int64", "float32", "float32")
        return [array[indices].astype(dtype) for array, dtype in zip(self.arrays.values(), types)]


def _vocabulary_beside(folder):
    """The path of the vocabulary of the data in ``folder``: it lies above the parts."""
    return os.path.join(os.path.dirname(os.path.normpath(folder)), "vocabulary.json")


def read_vocabulary(path):
    """The number of ids of each column, and the file's SHA-256.

    Raises:
        ValueError: the file cannot be read or is no vocabulary.
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
        raise ValueError(f"{path}: this is no vocabulary of make_data.py ({error!r}). Make the data again.") from error
    return sizes, hashlib.sha256(content).digest()


def _read(path, sizes, digest, vocabulary_path):
    """One file's arrays, checked: name -> array."""
    arrays = array_files.read(path)
    if not isinstance(arrays, dict) or set(arrays) != {*ARRAYS, "vocabulary"}:
        found = ", ".join(sorted(arrays)) if isinstance(arrays, dict) else f"a {type(arrays).__name__}"
        raise _refusal(path, f"it holds {found}, not {', '.join(ARRAYS)} and vocabulary")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise _refusal(path, f"{name} is a {type(array).__name__}, not an array")
    for name, (shape, kinds) in ARRAYS.items():
        array = arrays[name]
        if array.shape != (*arrays["dense"].shape[:1], *shape) or array.dtype.kind not in kinds:
            raise _refusal(path, f"{name} is {list(array.shape)} {array.dtype}")
    if arrays["vocabulary"].tobytes() != digest:
        raise _refusal(path, f"its ids are of another vocabulary than {vocabulary_path}")
    if not np.isfinite(arrays["dense"]).all():
        raise _refusal(path, "dense has a number that is not finite")
    if (arrays["ids"] < 0).any() or (arrays["ids"] >= sizes).any():
        raise _refusal(path, "ids has one outside its column's vocabulary")
    for name in ("income", "never_married"):
        if arrays[name].size and (arrays[name].min() < 0 or arrays[name].max() > 1):
            raise _refusal(path, f"{name} has a label other than 0 and 1")
    return arrays


def _refusal(path, found):
    return ValueError(f"{path}: {found}. Make the data again: {HOW_TO_GET}")
