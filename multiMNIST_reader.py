"""Multi-MNIST files -> examples (image, left label, right label). Knows no network.

A data file holds arrays and nothing else: a pickle of any protocol, written by Python 2 or 3 and
NumPy 1 or 2, a gzip of one, or an .npz. Two forms are read:

- the pair (images, labels), as data/make_multi_mnist.py writes it;
- the four arrays (trainX, trainLabel, testX, testLabel) of the Pareto-MTL data sets, of which
  the half is taken that the config's role asks for.

Files come from strangers: no code of theirs runs, no size that they claim is believed before it is
checked against the file, and whatever cannot be meant is refused by file, index and reason.
"""

import gzip
import io
import math
import os
import pickle
import pickletools
import re
import zipfile

import numpy as np
from paddle.io import Dataset

IMAGE_SIZE = 36  # pixels a side
CLASS_NUM = 10
SUFFIXES = (".pickle", ".pkl", ".npz", ".gz")
PAIR = ("images", "labels")
FOUR = ("trainX", "trainLabel", "testX", "testLabel")
SYNONYMS = {"x": "images", "y": "labels", "x_train": "trainX", "y_train": "trainLabel", "x_test": "testX"}
SYNONYMS["y_test"] = "testLabel"
HOW_TO_GET = "Make the data by python data/make_multi_mnist.py."
ACCEPTED = (
    f"expected images of {IMAGE_SIZE} x {IMAGE_SIZE} and one channel, 0..255 or 0..1, "
    f"and two labels 0..{CLASS_NUM - 1} for each"
)
MAX_EXPANSION, MAX_EXPANSION_FREE = 100, 1 << 24  # of compressed files; no set of digits shrinks more
MAX_OPCODES, MAX_DIGITS = 100_000, 100  # a pickle of arrays has a few dozen opcodes and short numbers
CHUNK = 4096  # images converted at a time
WHITE_1 = 1.001  # the most that rounding makes of a white of 1


class RecDataset(Dataset):
    """A map-style set: shuffling, sharding and worker processes all work on it.

    The images stay uint8, in one array. Worker processes are forked, so they share it.

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

    def __init__(self, file_list, config):
        super().__init__()
        paths = sorted(path for path in file_list if _is_data_file(path))
        if not paths:
            where = os.path.dirname(file_list[0]) if file_list else "the data folder"
            raise ValueError(f"{where}: no Multi-MNIST file (*{', *'.join(SUFFIXES)}). {HOW_TO_GET}")
        scale = _choice(config, "image_scale", ("255", "1"))
        part = _part(config, os.path.dirname(paths[0]))
        sets = [read_set(path, part, scale) for path in paths]
        for path, one in zip(paths, sets):
            if one.form != sets[0].form:
                raise ValueError(
                    f"{path}: this holds {one.form}, but {paths[0]} holds {sets[0].form}. "
                    "Keep files of one form in a folder."
                )
        self.images = sets[0].images if len(sets) == 1 else np.concatenate([one.images for one in sets])
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
    """The number of classes; infinite where the value is none, which the network, not the reader, is to refuse."""
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
    arrays = _named_arrays(path, read_arrays(path))
    if set(arrays) == set(FOUR):
        if part is None:
            raise ValueError(
                f"{path}: it holds a train and a test half, and nothing tells which is meant. "
                "Set runner.data_part to train or test."
            )
        images, labels, form = arrays[f"{part}X"], arrays[f"{part}Label"], "four arrays"
    else:
        images, labels, form = arrays["images"], arrays["labels"], "a pair"
    if not len(images):
        raise _refusal(path, "there is no image in it")
    pixels, kind = _pixels(path, images, scale)
    numbers = _class_numbers(path, labels)
    if len(pixels) != len(numbers):
        raise _refusal(path, f"there are {len(pixels)} images but {len(numbers)} labels")
    return _Set(pixels, numbers, f"{form}, pixels {kind}")


def _refusal(path, found, hint=""):
    return ValueError(f"{path}: {found}; {ACCEPTED}.{hint and ' ' + hint}")


def _named_arrays(path, content):
    """The file's content as {name: array}, with the names of ``PAIR`` or ``FOUR``."""
    if isinstance(content, dict):
        known = [(name, value) for name, value in list(content.items())[:9] if isinstance(name, str)]
        names = {SYNONYMS.get(name, name): value for name, value in known}
    elif isinstance(content, (tuple, list)) and len(content) in (2, 4):
        names = dict(zip(PAIR if len(content) == 2 else FOUR, content))
    else:
        names = {}
    if set(names) not in (set(PAIR), set(FOUR)):
        size = f" of {len(content)}" if isinstance(content, (tuple, list, dict)) else ""
        raise _refusal(
            path,
            f"it holds a {type(content).__name__}{size}, no pair (images, labels) nor four arrays ({', '.join(FOUR)})",
        )
    for name, value in names.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            raise _refusal(path, f"{name} is a {type(value).__name__}, not an array")
    return names


def _pixels(path, images, scale):
    """Images of any accepted layout and range as (uint8 [N, 36, 36], the range in words)."""
    side = IMAGE_SIZE
    if images.shape[1:] not in ((side, side), (1, side, side), (side, side, 1), (side * side,)):
        plain = images.shape[1:] in ((28, 28), (1, 28, 28), (28, 28, 1), (784,))
        colour = 3 in images.shape[1:]
        hint = "This looks like plain MNIST. " + HOW_TO_GET if plain else "Convert it to one channel." if colour else ""
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


# ---------------------------------------------------------------------------- files -> arrays


def read_arrays(path):
    """A file's arrays, in the container they are in: tuple, list or dict.

    Raises:
        ValueError: it cannot be read, asks for code, or claims what it does not hold.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _read_npz(file, size)
            if start.startswith(b"\x1f\x8b"):
                content = _expanded(gzip.GzipFile(fileobj=file), _most(size))
                return _read_pickle(io.BytesIO(content), len(content))
            if re.match(rb"\s*(<!doctype|<html|<\?xml)", start, re.IGNORECASE):
                raise _Unreadable("it is a page of HTML, saved in place of the data")
            return _read_pickle(file, size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}). {HOW_TO_GET}") from error
    except Exception as error:  # a broken file can raise nearly anything in a parser
        raise ValueError(
            f"{path}: this cannot be read as a pickle or .npz of arrays ({str(error) or type(error).__name__}). "
            f"{HOW_TO_GET}"
        ) from error


class _Unreadable(Exception):
    """What is wrong with a file, in words."""


def _most(size):
    return MAX_EXPANSION * size + MAX_EXPANSION_FREE


def _expanded(stream, most):
    """Decompress a stream, or refuse it once it grows beyond ``most`` bytes."""
    content = stream.read(most + 1)
    if len(content) > most:
        raise _Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
    return content


def _read_npz(file, size):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > len(FOUR):
            raise _Unreadable(f"the archive has {len(members)} members")
        if sum(member.file_size for member in members) > _most(size):
            raise _Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
        arrays = {}
        for member in members:
            with archive.open(member) as stream:
                arrays[os.path.splitext(member.filename)[0]] = _read_npy(_expanded(stream, member.file_size))
    unnamed = [f"arr_{i}" for i in range(len(arrays))]
    return tuple(arrays[name] for name in unnamed) if set(arrays) == set(unnamed) else arrays


def _read_npy(content):
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise _Unreadable(f"its .npy version is {version}")
    length = int.from_bytes(content[8 : 10 if version == (1, 0) else 12], "little")
    if length > 10_000:
        raise _Unreadable(f"the header of an array has {length} bytes")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    return _array(content[stream.tell() :], _plain_dtype(dtype.str), shape, fortran)


def _read_pickle(file, size):
    file = _Bounded(file, size)
    _check_opcodes(file)
    file.rewind()
    content = _ArrayUnpickler(file, size).load()
    if isinstance(content, (tuple, list)):
        return type(content)(_value(item) for item in content[: len(FOUR) + 1])
    if isinstance(content, dict):
        return {key: _value(item) for key, item in list(content.items())[: len(FOUR) + 1]}
    return _value(content)


def _value(item):
    return item.value if isinstance(item, _Array) else item


class _Bounded:
    """A file that refuses to be asked for more bytes than it has left, before any are allocated."""

    def __init__(self, file, size):
        self.file, self.size = file, size

    def rewind(self):
        self.file.seek(0)

    def read(self, count):
        left = self.size - self.file.tell()
        if count > left:
            raise _Unreadable(f"it claims {count} more bytes where {left} are left")
        return self.file.read(count)

    def readline(self):
        return self.file.readline()

    def skip(self, count):
        """Pass over ``count`` bytes without reading them."""
        if count > self.size - self.file.tell():
            self.read(count)
        self.file.seek(count, os.SEEK_CUR)


def _check_opcodes(file):
    """Walk the pickle without building anything: it must end, be short, and number its memo in order."""
    for count in range(MAX_OPCODES):
        code = file.read(1).decode("latin1")
        if code not in pickletools.code2op:
            raise _Unreadable(f"it has no opcode {code!r}")
        opcode = pickletools.code2op[code]
        argument = _pass_over_argument(file, opcode)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count + 1:
            raise _Unreadable(f"it asks for {argument} places in the memo")  # which Python would allocate
        if opcode.name == "STOP":
            return
    raise _Unreadable(f"it has more than {MAX_OPCODES} opcodes, where arrays need a few dozen")


def _pass_over_argument(file, opcode):
    """Move behind an opcode's argument; give it if it is a short whole number, else 0."""
    if opcode.arg is None:
        return 0
    length = opcode.arg.n
    if length >= 0:
        return int.from_bytes(file.read(length), "little")
    if length == pickletools.UP_TO_NEWLINE:
        line = file.readline()
        if opcode.arg.name == "stringnl_noescape_pair":
            file.readline()
        if opcode.name in ("INT", "LONG", "FLOAT", "PUT", "GET") and len(line) > MAX_DIGITS:
            raise _Unreadable(f"it has a number of {len(line)} digits")
        return int(line) if opcode.name == "PUT" else 0
    file.skip(int.from_bytes(file.read(_LENGTH_BYTES[length]), "little"))
    return 0


# bytes of the length in front of an argument
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers by functions of this file alone, and refuses all else by name."""

    def __init__(self, file, size):
        super().__init__(file, encoding="latin1")  # as which Python 2's byte strings lose nothing
        self.left = 2 * size + (1 << 16)

    def find_class(self, module, name):
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (module, name) not in _BUILDERS:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:100]}, which no data file needs")
        return _Builder(_BUILDERS[module, name], self.spend)

    def spend(self, count):
        """Account for ``count`` bytes made of the file's: one text could be encoded time and again."""
        self.left -= count
        if self.left < 0:
            raise _Unreadable("it asks for more memory than its arrays can need")


class _Builder:
    """Stands for a function that a pickle may call; has nothing that a pickle could change."""

    __slots__ = ("function", "spend")

    def __init__(self, function, spend):
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "spend", spend)

    def __call__(self, *args):
        return self.function(self.spend, *args)

    def __setattr__(self, name, value):
        raise _Unreadable("it changes a function")

    def __setstate__(self, state):
        raise _Unreadable("it changes a function")


class _Array:
    """An array, or one that a pickle is about to describe (NumPy's ``_reconstruct``, then its state)."""

    __slots__ = ("spend", "value")

    def __init__(self, spend, value=None):
        self.spend, self.value = spend, value

    def __setstate__(self, state):
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array(_bytes(self.spend, raw), dtype, shape, fortran)


class _Dtype:
    """An array's type: a byte order and a kind that NumPy need not be asked about."""

    __slots__ = ("dtype",)

    def __setstate__(self, state):
        if state[1] not in ("<", ">", "|", "="):
            raise _Unreadable(f"an array's byte order is {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


def _plain_dtype(text):
    if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|b1)", text):
        raise _Unreadable(f"an array's type is {str(text)[:20]!r}, not a plain number")
    return np.dtype(text)


def _make_dtype(spend, text, *_):
    result = _Dtype()
    result.dtype = _plain_dtype(text)
    return result


def _array(raw, dtype, shape, fortran):
    """The array that ``raw`` holds, if it holds just what its shape and type claim."""
    dtype = dtype.dtype if isinstance(dtype, _Dtype) else dtype
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, np.dtype):
        raise _Unreadable("an array is described wrongly")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise _Unreadable("an array's shape is no tuple of whole numbers")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise _Unreadable(f"an array claims {list(shape)} {dtype}, but has {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _bytes(spend, raw):
    """Bytes as they are; Python 2's byte strings come as text."""
    if not isinstance(raw, str):
        return raw
    spend(len(raw))
    return raw.encode("latin1")


def _encode(spend, text, encoding):
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise _Unreadable(f"it encodes text as {str(encoding)[:20]!r}")
    return _bytes(spend, text)


def _copy(spend, raw=b""):
    if not isinstance(raw, bytes):
        raise _Unreadable("a byte array is described wrongly")
    return raw


def _from_buffer(spend, raw, dtype, shape, order):
    return _Array(spend, _array(raw, dtype, shape, order == "F"))


def _ndarray(spend, shape, dtype, raw):
    return _Array(spend, _array(_bytes(spend, raw), _plain_dtype(dtype), shape, False))


# what a pickle of arrays asks for -> what it gets
_BUILDERS = {
    ("numpy.core.multiarray", "_reconstruct"): lambda spend, *_: _Array(spend),
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _make_dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _copy,
    ("builtins", "bytearray"): _copy,
}
