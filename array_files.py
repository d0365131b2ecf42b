"""A file of arrays from a stranger -> arrays: a pickle of any protocol, a gzip of one, an .npz, or a mapped .npy.

There is one reader of pickles, ``loads``; the tools read checkpoints by it as well. It is pickle's
machine without anything that runs code. A function's name is looked up in ``_BUILDERS`` alone, and no
size is believed that the file does not have. Memory stays below 5 times the file's size (expanded, if
it is a gzip) where it holds arrays, and below 40 times where it holds nothing but small lists.
"""

import codecs
import gzip
import io
import itertools
import math
import os
import pickletools
import re
import struct
import zipfile

import numpy as np

MAX_EXPANSION, MAX_EXPANSION_FREE = 100, 1 << 24  # of compressed files; no set of digits shrinks more
MAX_ARRAYS = 8  # of a file; more are left as they are
MAX_OPCODES = 5_000_000  # some 10 seconds; an array takes 25, a number in a list 1 or 2
MAX_DIGITS = 100
MAX_NUMBER_BYTES = 32
MAX_DIMENSIONS = 32
MAX_NESTING = 5  # of lists
FREE = 1 << 16  # what a file may ask for, however small it is


class Unreadable(ValueError):
    """What is wrong with a file, in words."""


def read(path):
    """What a file holds. Lists of numbers, or of equal arrays, in its outermost list, tuple or dict become arrays.

    Args:
        path: of a pickle, a gzip of one, or an .npz; what it is shows in its first bytes.
    Returns:
        An array, a number, a text, or a list, tuple or dict of such.
    Raises:
        ValueError: naming the file and the reason.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _read_npz(file, size)
            if re.match(rb"\s*(<!doctype|<html|<\?xml)", start, re.IGNORECASE):
                raise Unreadable("it is a page of HTML, saved in place of the data")
            packed = start.startswith(b"\x1f\x8b")
            content = _expanded(gzip.GzipFile(fileobj=file), _most(size)) if packed else file.read()
        return _with_arrays(loads(content), len(content) + FREE)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    except Exception as error:  # a broken file can raise nearly anything in a parser
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path}: this cannot be read as a pickle or .npz of arrays ({reason}).") from error


def map_npy(path):
    """The array of an .npy file, memory-mapped: what is not used is not read.

    Raises:
        ValueError: naming the file and the reason.
    """
    try:
        with open(path, "rb") as file:
            dtype, shape, fortran = _npy_header(file)
            begin = file.tell()
            _check_shape(dtype, shape, os.fstat(file.fileno()).st_size - begin)
        return np.memmap(path, dtype.dtype, "r", begin, shape, "F" if fortran else "C")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    except Exception as error:  # a broken file can raise nearly anything in a parser
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path}: this cannot be read as an .npy of numbers ({reason}).") from error


def _most(size):
    return MAX_EXPANSION * size + MAX_EXPANSION_FREE


def _expanded(stream, most):
    """Decompress a stream, or refuse it once it grows beyond ``most`` bytes."""
    content = stream.read(most + 1)
    if len(content) > most:
        raise Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
    return content


# -------------------------------------------------------------------------------------- .npz


def _read_npz(file, size):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise Unreadable(f"the archive has {len(members)} members")
        if sum(member.file_size for member in members) > _most(size):
            raise Unreadable(f"it expands more than {MAX_EXPANSION}-fold")
        arrays = {}
        for member in members:
            with archive.open(member) as stream:
                arrays[os.path.splitext(member.filename)[0]] = _read_npy(_expanded(stream, member.file_size))
    unnamed = [f"arr_{i}" for i in range(len(arrays))]
    return tuple(arrays[name] for name in unnamed) if set(arrays) == set(unnamed) else arrays


def _read_npy(content):
    stream = io.BytesIO(content)
    dtype, shape, fortran = _npy_header(stream)
    return _array(content[stream.tell() :], dtype, shape, fortran)


def _npy_header(stream):
    """(_Dtype, shape, whether the order is Fortran's) of an .npy; the stream is where its numbers begin afterwards."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise Unreadable(f"its .npy version is {version}")
    length_bytes = 2 if version == (1, 0) else 4
    length = int.from_bytes(stream.read(length_bytes), "little")
    if length > 10_000:
        raise Unreadable(f"the header of an array has {length} bytes")
    stream.seek(-length_bytes, os.SEEK_CUR)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    return _Dtype(dtype.str), shape, fortran


# ------------------------------------------------------------------------- lists -> arrays


def _with_arrays(content, most):
    """The content with arrays for the lists in it; ``most`` numbers of lists, or bytes of arrays, in each."""
    if type(content) not in (list, tuple, dict) or len(content) > MAX_ARRAYS:
        return content
    named = content.items() if type(content) is dict else enumerate(content)
    made = {name: _stacked(name, item, most) if type(item) in (list, tuple) else item for name, item in named}
    return made if type(content) is dict else type(content)(made.values())


def _stacked(name, value, most):
    """One array of nested lists. It looks at one level after the other, so that a list may well hold itself."""
    shape, items = [], [value]
    while items and type(items[0]) in (list, tuple):
        if len(shape) == MAX_NESTING:
            raise Unreadable(f"{name}: its lists are nested deeper than {MAX_NESTING}")
        shape.append(len(items[0]))
        if any(type(item) not in (list, tuple) or len(item) != shape[-1] for item in items):
            raise Unreadable(f"{name}: its lists are ragged: at level {len(shape)} they are not of one length")
        if len(items) * shape[-1] > most:
            raise Unreadable(f"{name}: its lists repeat each other to more numbers than the file has bytes")
        items = list(itertools.chain.from_iterable(items))
    kinds = set(map(type, items))
    if kinds <= {int, float}:
        return np.array(items, np.float64 if float in kinds else np.int64).reshape(shape)
    if not all(issubclass(kind, (np.ndarray, np.generic)) for kind in kinds):
        others = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise Unreadable(f"{name}: its lists hold {others}, not numbers or arrays alone")
    first = items[0]
    if any(item.shape != first.shape or item.dtype != first.dtype for item in items):
        raise Unreadable(f"{name}: the arrays in its list are not of one shape and type")
    if len(items) * first.nbytes > most:
        raise Unreadable(f"{name}: its lists repeat an array to more than the file's size")
    return np.stack(items).reshape(*shape, *first.shape)


# ----------------------------------------------------------------------------------- pickles


def loads(content):
    """The object that a pickle's bytes describe: dicts, lists and tuples of arrays, numbers and texts.

    Raises:
        Unreadable: it asks for code, or for more than its arrays can need; or it is cut or changed.
    """
    machine = _Machine(content)
    try:
        for _ in range(MAX_OPCODES):
            code = content[machine.at]
            machine.at += 1
            if code == _STOP:
                return machine.stack.pop()
            if code not in _BY_CODE:
                opcode = pickletools.code2op.get(chr(code))
                raise Unreadable(f"it has the opcode {opcode.name if opcode else code}, which no arrays need")
            _BY_CODE[code](machine)
    except Unreadable:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise Unreadable(f"it is cut or changed ({type(error).__name__}: {str(error)[:100]})") from error
    raise Unreadable(f"it has more than {MAX_OPCODES} opcodes; save arrays, not lists")


class _Machine:
    """Pickle's stack and memo. A mark begins a new stack; the memo is a dict, so a huge index costs nothing."""

    def __init__(self, content):
        self.content, self.at = content, 0
        self.stack, self.outer, self.memo = [], [], {}
        self.bytes_left = 2 * len(content) + FREE  # that may be made of the file's
        self.objects_left = len(content) // 2 + FREE // 64  # marks, containers and places in the memo

    # what the file says

    def take(self, count):
        begin, self.at = self.at, self.at + count
        if self.at > len(self.content):
            raise Unreadable(f"it claims {count} more bytes where {len(self.content) - begin} are left")
        return self.content[begin : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def long(self, size):
        count = self.number(size)
        if count > MAX_NUMBER_BYTES:
            raise Unreadable(f"it has a number of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=True)

    def text(self, size):
        return self.take(self.number(size)).decode("utf-8", "surrogatepass")

    def line(self, most=None):
        end = self.content.find(b"\n", self.at, None if most is None else self.at + most)
        if end < 0:
            raise Unreadable("it has a line without an end" if most is None else f"it has a number of {most} digits")
        begin, self.at = self.at, end + 1
        return self.content[begin:end]

    def digits(self):
        return self.line(MAX_DIGITS)

    def whole(self):
        line = self.digits()
        return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)

    def quoted(self):
        line = self.line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise Unreadable("it has a text without quotes")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    # what is done with it

    def spend(self):
        self.objects_left -= 1
        if self.objects_left < 0:
            raise Unreadable("it has more lists and names than its size can need")

    def push_new(self, container):
        self.spend()
        self.stack.append(container)

    def pop_tuple(self, count):
        if len(self.stack) < count:
            raise Unreadable("it is cut or changed")
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        return taken

    def mark(self):
        self.spend()
        self.outer.append(self.stack)
        self.stack = []

    def pop_to_mark(self):
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def memoize(self, index):
        self.spend()
        self.memo[index] = self.stack[-1]

    def recall(self, index):
        value = self.memo[index]
        self.stack.append(value.value if type(value) is _Array and value.value is not None else value)

    def put_items(self, items):
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Unreadable("it is cut or changed")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str:
                raise Unreadable("a name in it is not text")
            target[key] = value

    def make_dict(self):
        items = self.pop_to_mark()
        self.push_new({})
        self.put_items(items)

    def append(self, items):
        target = self.stack[-1]
        if type(target) is not list:
            raise Unreadable("it is cut or changed")
        target.extend(items)

    def look_up(self, module, name):
        known = f"{module.replace('numpy._core', 'numpy.core').replace('__builtin__', 'builtins')} {name}"
        if known not in _BUILDERS:
            raise Unreadable(f"it asks for {f'{module}.{name}'[:100]}, which no arrays need")
        self.stack.append(_Function(known))

    def call(self):
        function, arguments = self.pop_tuple(2)
        if type(function) is not _Function or type(arguments) is not tuple:
            raise Unreadable("it calls something that is not a function")
        self.stack.append(_BUILDERS[function.name](self, *arguments))

    def build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) not in (_Array, _Dtype):
            raise Unreadable("it changes something that is not an array")
        target.build(self, state)
        if type(target) is _Array:
            self.stack[-1] = target.value

    def bytes(self, raw):
        """Bytes as they are. Protocols 0 to 2 write them as text, which a file could have encoded time and again."""
        if type(raw) is not str:
            return raw
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise Unreadable("it asks for more memory than its arrays can need")
        return raw.encode("latin1")


class _Function:
    """Stands for a function of NumPy."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class _Array:
    """An array that a pickle is about to describe: NumPy's ``_reconstruct``, then its state."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def build(self, machine, state):
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array(machine.bytes(raw), dtype, shape, fortran)


class _Dtype:
    """An array's type: plain numbers, and a byte order."""

    __slots__ = ("dtype",)

    def __init__(self, text):
        if type(text) is not str or not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|c8|c16|b1)", text):
            raise Unreadable(f"an array's type is {str(text)[:20]!r}, not a plain number")
        self.dtype = np.dtype(text)

    def build(self, _, state):
        if state[1] not in ("<", ">", "|", "="):
            raise Unreadable("an array's byte order is unknown")
        self.dtype = self.dtype.newbyteorder(state[1])


def _array(raw, dtype, shape, fortran):
    """The array that ``raw`` holds, if it holds just what its shape and type claim."""
    if type(raw) not in (bytes, bytearray) or type(dtype) is not _Dtype:
        raise Unreadable("an array is described wrongly")
    _check_shape(dtype, shape, len(raw))
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _check_shape(dtype, shape, size):
    """Raise Unreadable if ``size`` bytes are not just what a shape and a type claim."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise Unreadable("an array's shape is not a tuple of whole numbers")
    if math.prod(shape) * dtype.dtype.itemsize != size:
        raise Unreadable(f"an array claims {list(shape)} {dtype.dtype}, but has {size} bytes")


def _of_tensor(name, array):
    """What paddle.save makes of a tensor in a dict that is not all tensors."""
    if type(array) is not np.ndarray:
        raise Unreadable("a tensor is described wrongly")
    return array


def _encode(machine, text, encoding):
    """The text itself: ``bytes`` encodes it where an array needs it."""
    if encoding not in ("latin1", "latin-1"):
        raise Unreadable(f"it encodes text as {str(encoding)[:20]!r}")
    return text


def _same(machine, raw=b""):
    """Bytes of bytes; protocol 2 writes none at all as a call of ``bytes``."""
    return raw


# a function that a pickle of arrays names -> what is called for it
_BUILDERS = {
    "numpy.core.multiarray _reconstruct": lambda machine, *_: _Array(),
    "numpy.core.multiarray scalar": lambda machine, dtype, raw: _array(machine.bytes(raw), dtype, (), False)[()],
    "numpy.core.numeric _frombuffer": lambda machine, raw, dtype, shape, order: _array(raw, dtype, shape, order == "F"),
    "numpy dtype": lambda machine, text, *_: _Dtype(text),
    "numpy ndarray": lambda machine, shape, dtype, raw: _array(machine.bytes(raw), _Dtype(dtype), shape, False),
    "builtins bytes": _same,
    "builtins bytearray": _same,
    "builtins tuple": lambda machine, pair: _of_tensor(*pair),
    "_codecs encode": _encode,
}


def _pushes(read):
    return lambda machine: machine.stack.append(read(machine))


_ACTIONS = {
    "PROTO": lambda m: m.take(1),
    "FRAME": lambda m: m.take(8),
    # numbers and texts, as lines
    "INT": _pushes(_Machine.whole),
    "LONG": _pushes(lambda m: int(m.digits().rstrip(b"L"))),
    "FLOAT": _pushes(lambda m: float(m.digits())),
    "STRING": _pushes(_Machine.quoted),
    "UNICODE": _pushes(lambda m: m.line().decode("raw-unicode-escape")),
    # in binary
    "BININT": _pushes(lambda m: int.from_bytes(m.take(4), "little", signed=True)),
    "BININT1": _pushes(lambda m: m.take(1)[0]),
    "BININT2": _pushes(lambda m: m.number(2)),
    "LONG1": _pushes(lambda m: m.long(1)),
    "LONG4": _pushes(lambda m: m.long(4)),
    "BINFLOAT": _pushes(lambda m: struct.unpack(">d", m.take(8))[0]),
    "BINSTRING": _pushes(lambda m: m.take(m.number(4)).decode("latin1")),
    "SHORT_BINSTRING": _pushes(lambda m: m.take(m.number(1)).decode("latin1")),
    "BINUNICODE": _pushes(lambda m: m.text(4)),
    "SHORT_BINUNICODE": _pushes(lambda m: m.text(1)),
    "BINUNICODE8": _pushes(lambda m: m.text(8)),
    "BINBYTES": _pushes(lambda m: m.take(m.number(4))),
    "SHORT_BINBYTES": _pushes(lambda m: m.take(m.number(1))),
    "BINBYTES8": _pushes(lambda m: m.take(m.number(8))),
    "BYTEARRAY8": _pushes(lambda m: m.take(m.number(8))),
    "NONE": _pushes(lambda m: None),
    "NEWTRUE": _pushes(lambda m: True),
    "NEWFALSE": _pushes(lambda m: False),
    # containers
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda m: m.push_new({}),
    "EMPTY_LIST": lambda m: m.push_new([]),
    "EMPTY_TUPLE": _pushes(lambda m: ()),
    "DICT": _Machine.make_dict,
    "LIST": lambda m: m.push_new(m.pop_to_mark()),
    "TUPLE": lambda m: m.push_new(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m: m.push_new(m.pop_tuple(1)),
    "TUPLE2": lambda m: m.push_new(m.pop_tuple(2)),
    "TUPLE3": lambda m: m.push_new(m.pop_tuple(3)),
    "SETITEM": lambda m: m.put_items(m.pop_tuple(2)),
    "SETITEMS": lambda m: m.put_items(m.pop_to_mark()),
    "APPEND": lambda m: m.append(m.pop_tuple(1)),
    "APPENDS": lambda m: m.append(m.pop_to_mark()),
    # the memo
    "PUT": lambda m: m.memoize(int(m.digits())),
    "BINPUT": lambda m: m.memoize(m.number(1)),
    "LONG_BINPUT": lambda m: m.memoize(m.number(4)),
    "MEMOIZE": lambda m: m.memoize(len(m.memo)),
    "GET": lambda m: m.recall(int(m.digits())),
    "BINGET": lambda m: m.recall(m.number(1)),
    "LONG_BINGET": lambda m: m.recall(m.number(4)),
    # functions
    "GLOBAL": lambda m: m.look_up(m.line().decode(), m.line().decode()),
    "STACK_GLOBAL": lambda m: m.look_up(*m.pop_tuple(2)),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
_STOP = ord(".")
_BY_CODE = {ord(opcode.code): _ACTIONS[opcode.name] for opcode in pickletools.opcodes if opcode.name in _ACTIONS}
