"""Reads arrays from files that may come from strangers: a pickle, a gzip of one, an .npz, or a memory-mapped .npy.

``loads`` reads pickles, of data and of checkpoints. It is the standard library's unpickler, and no code of a file runs:

- It knows only the opcodes and functions that arrays need. What it calls is written here, not looked up.
- An array must have exactly the bytes that its shape and type claim. All together have at most twice the file's size.
- A file has at most ``MAX_OPCODES`` opcodes. Besides its arrays it takes at most 400 MB and some seconds.
- The names in a dict are text. The hash of a nested tuple can take for ever, or crash Python.

It is Python's ``pickle._Unpickler``, because the one in C allocates as much as a memo index asks for, and lets any
object be a name in a dict. A compressed file may expand 100-fold; the size of other files is not limited.
"""

import contextlib
import gzip
import io
import itertools
import math
import os
import pickle
import pickletools
import re
import zipfile

import numpy as np

MAX_EXPANSION, FREE_EXPANSION = 100, 1 << 24  # -fold, or bytes of any file; images of digits compress less
MAX_ARRAYS = 8  # in a data file
MAX_OPCODES = 3_000_000  # an array takes 25, a number in a list 1 or 2
MAX_NESTING = 5  # of lists
FREE = 1 << 16  # bytes that any file may take, however small it is


class Unreadable(ValueError):
    """The message says what is wrong with a file's content."""


def read(path):
    """Read a pickle, a gzip of one, or an .npz; the file's first bytes tell which it is.

    Lists of numbers, or of equal arrays, become arrays.

    Returns:
        An array, a number, a text, or a list, tuple or dict of these.
    Raises:
        ValueError: naming the file and the reason.
    """
    with _naming(path, "a pickle or .npz of arrays"), open(path, "rb") as file:
        most = MAX_EXPANSION * os.fstat(file.fileno()).st_size + FREE_EXPANSION
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_npz(file, most)
        if re.match(rb"\s*(<!doctype|<html|<\?xml)", start, re.IGNORECASE):
            raise Unreadable("it is a page of HTML, saved in place of the data")
        content = _expanded(gzip.GzipFile(fileobj=file), most) if start.startswith(b"\x1f\x8b") else file.read()
        return _with_arrays(loads(content), len(content) + FREE)


def map_npy(path):
    """Memory-map the array of an .npy file: only what is used is read.

    Raises:
        ValueError: naming the file and the reason.
    """
    with _naming(path, "an .npy of numbers"):
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != os.path.getsize(path):
            raise Unreadable("it has more bytes than its array")
        return array


@contextlib.contextmanager
def _naming(path, expected):
    """Raise any error as a ValueError that names the file."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    except Exception as error:  # a broken file can raise nearly anything in a parser
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path}: this cannot be read as {expected} ({reason}).") from error


def _expanded(stream, most):
    """Decompress a stream, but no more than ``most`` bytes."""
    content = stream.read(most + 1)
    if len(content) > most:
        raise Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
    return content


def _read_npz(file, most):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise Unreadable(f"the archive has {len(members)} members")
        if sum(member.file_size for member in members) > most:
            raise Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
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
        raise Unreadable(f"its .npy version is {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read_header(stream)
    return _array(content[stream.tell() :], _Dtype(dtype.str), shape, "F" if fortran else "C")


def _with_arrays(content, most):
    """Replace the lists in an outermost list, tuple or dict by arrays of at most ``most`` numbers or bytes."""
    if type(content) not in (list, tuple, dict) or len(content) > MAX_ARRAYS:
        return content
    named = content.items() if type(content) is dict else enumerate(content)
    made = {name: _stacked(name, item, most) if type(item) in (list, tuple) else item for name, item in named}
    return made if type(content) is dict else type(content)(made.values())


def _stacked(name, value, most):
    """Make one array of nested lists. It goes level by level, because a list may contain itself."""
    shape, items = [], [value]
    while items and type(items[0]) in (list, tuple):
        shape.append(len(items[0]))
        if any(type(item) not in (list, tuple) or len(item) != shape[-1] for item in items):
            raise Unreadable(f"{name}: its lists are ragged: at level {len(shape)} they differ in length")
        if len(shape) > MAX_NESTING or len(items) * shape[-1] > most:
            raise Unreadable(f"{name}: its lists are nested too deep, or repeat each other")
        items = list(itertools.chain.from_iterable(items))
    kinds = {*map(type, items)}
    if kinds <= {int, float}:
        return np.array(items, np.float64 if float in kinds else np.int64).reshape(shape)
    if not all(issubclass(kind, (np.ndarray, np.generic)) for kind in kinds):
        others = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise Unreadable(f"{name}: its lists hold {others}, not only numbers or only arrays")
    if len({(item.shape, item.dtype) for item in items}) > 1:
        raise Unreadable(f"{name}: the arrays in its list differ in shape or type")
    if len(items) * items[0].nbytes > most:
        raise Unreadable(f"{name}: its lists repeat an array to more than the file's size")
    return np.stack(items).reshape(*shape, *items[0].shape)


def loads(content):
    """The object that a pickle's bytes describe: dicts, lists and tuples of arrays, numbers and texts.

    Raises:
        Unreadable: it asks for code, or for more memory than its arrays need; or it is damaged.
    """
    try:
        return _Unpickler(content).load()
    except Unreadable:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise Unreadable(f"it is damaged ({type(error).__name__}: {str(error)[:100]})") from error


class _Unpickler(pickle._Unpickler):
    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.dispatch = self  # see __getitem__
        self.opcodes_left = MAX_OPCODES
        self.bytes_left = 2 * len(content) + FREE

    def __getitem__(self, code):
        """The method of an opcode."""
        self.opcodes_left -= 1
        if self.opcodes_left < 0:
            raise Unreadable(f"it has more than {MAX_OPCODES} opcodes; save arrays, not lists")
        if code not in _METHODS:
            opcode = pickletools.code2op.get(chr(code))
            raise Unreadable(f"it has the opcode {opcode.name if opcode else code}, which no arrays need")
        return _METHODS[code]

    def find_class(self, module, name):
        known = f"{module.replace('numpy._core', 'numpy.core').replace('__builtin__', 'builtins')}.{name}"
        if known == "_codecs.encode":
            return self._encode
        if known not in _FUNCTIONS:
            raise Unreadable(f"it asks for {f'{module}.{name}'[:100]}, which no arrays need")
        return _FUNCTIONS[known]

    def _encode(self, text, encoding="latin1"):
        """The bytes that protocols 0 to 2 write as text."""
        if encoding not in ("latin1", "latin-1"):
            raise Unreadable("it encodes text in another way than arrays need")
        self._charge(text)
        return text.encode("latin1")

    def _charge(self, raw):
        """Count bytes that are copied: a file could ask for copies of the same ones any number of times."""
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise Unreadable("it asks for more memory than its arrays need")

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _Dtype and state[1] in ("<", ">", "|", "="):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is np.ndarray:
            shape, dtype, fortran, raw = state[-4:]
            raw = self._encode(raw) if type(raw) is str else raw  # of Python 2
            _check_array(raw, dtype, shape)
            self._charge(raw)  # NumPy copies what is in another byte order
            target.__setstate__((1, shape, dtype.dtype, bool(fortran), raw))
            target.setflags(write=False)  # ``raw`` may be another array's too
        else:
            raise Unreadable("it changes something other than an array")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self):
        self._set_items(self.pop_mark())

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items):
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key in items[::2]):
            raise Unreadable("a name in it is not text")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def load_bytearray8(self):  # the inherited one allocates before it reads
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_put(self):
        index = self.readline()
        if len(index) > 11:  # larger ones can all have one hash, which makes a dict slow
            raise Unreadable("its memo has an index of more than 10 digits")
        self.memo[int(index)] = self.stack[-1]


class _Dtype:
    """The type of an array: plain numbers."""

    def __init__(self, text, *_):
        if type(text) is not str or not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|c8|c16|b1)", text):
            what = repr(text[:20]) if type(text) is str else type(text).__name__
            raise Unreadable(f"an array's type is {what}, not a plain number")
        self.dtype = np.dtype(text)


def _check_array(raw, dtype, shape):
    """Raise Unreadable unless ``raw`` has exactly the bytes that a shape and a type claim."""
    if type(raw) is not bytes or type(dtype) is not _Dtype or type(shape) is not tuple or len(shape) > 32:
        raise Unreadable("an array is described wrongly")
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise Unreadable("an array's shape is not a tuple of whole numbers")
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise Unreadable(f"an array claims {list(shape)} {dtype.dtype}, but has {len(raw)} bytes")


def _array(raw, dtype, shape, order="C"):
    _check_array(raw, dtype, shape)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


# name in a pickle -> what is called for it
_FUNCTIONS = {
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, np.int8),
    "numpy.core.multiarray.scalar": lambda dtype, raw: _array(raw, dtype, ())[()],
    "numpy.core.numeric._frombuffer": _array,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": lambda shape, dtype, raw: _array(raw, _Dtype(dtype), shape),
    "builtins.bytes": lambda: b"",  # as protocol 2 writes no bytes
    "builtins.bytearray": lambda raw=b"": raw,
    "builtins.tuple": lambda name_and_array: name_and_array[1],  # as paddle.save writes a tensor beside other things
    "collections.OrderedDict": lambda: {},
}
_OPCODES = """
    PROTO FRAME STOP MARK INT LONG FLOAT STRING UNICODE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING
    SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 NONE NEWTRUE
    NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD""".split()
_CODES = [ord(opcode.code) for opcode in pickletools.opcodes if opcode.name in _OPCODES]
_METHODS = {code: getattr(_Unpickler, pickle._Unpickler.dispatch[code].__name__) for code in _CODES}
