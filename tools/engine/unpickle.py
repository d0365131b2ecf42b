"""What paddle.save writes, a pickled dict of arrays, read by a machine that has nothing to run code with.

Of Python's pickle machine it has the opcodes of protocols 2 to 4 that arrays and plain values need. A
function's name is looked up in ``_BUILDERS`` alone, and no size is believed that the file does not
have, so memory stays a small multiple of the file's.
"""

import pickletools
import re

import numpy as np

MAX_OPCODES = 2_000_000  # an array takes some 25
MAX_DIMENSIONS = 32


class Unreadable(ValueError):
    """What is wrong with a pickle, in words."""


def loads(content):
    """The object that a pickle's bytes describe: dicts, lists and tuples of arrays, numbers and texts.

    Raises:
        Unreadable: it asks for code, or for more than its arrays can need.
        Exception: nearly any, where it is cut or changed.
    """
    machine = _Machine(len(content))
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name == "STOP":
            break
        if count == MAX_OPCODES:
            raise Unreadable(f"it has more than {MAX_OPCODES} opcodes")
        if opcode.name not in _ACTIONS:
            raise Unreadable(f"it has the opcode {opcode.name}, which no checkpoint needs")
        _ACTIONS[opcode.name](machine, argument)
    return machine.pop()


class _Machine:
    """Pickle's stack and memo. A mark begins a new stack; the memo is a dict, so a huge index costs nothing."""

    def __init__(self, size):
        self.stack, self.outer, self.memo = [], [], {}
        self.left = 2 * size  # bytes that may be made of the file's

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        return self.stack.pop()

    def pop_tuple(self, count):
        if len(self.stack) < count:
            raise Unreadable("it is cut or changed")
        return tuple(reversed([self.pop() for _ in range(count)]))

    def mark(self):
        self.outer.append(self.stack)
        self.stack = []

    def pop_to_mark(self):
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def memoize(self, index):
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def put_items(self, items):
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Unreadable("it is cut or changed")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str):
                raise Unreadable("a name in it is no text")
            target[key] = value.value if isinstance(value, _Array) else value

    def append(self, items):
        target = self.stack[-1]
        if type(target) is not list:
            raise Unreadable("it is cut or changed")
        target.extend(items)

    def look_up(self, module, name):
        known = f"{module.replace('numpy._core', 'numpy.core').replace('__builtin__', 'builtins')} {name}"
        if known not in _BUILDERS:
            raise Unreadable(f"it asks for {f'{module}.{name}'[:100]}, which no checkpoint needs")
        self.push(_Function(known))

    def call(self):
        function, arguments = self.pop_tuple(2)
        self.push(_BUILDERS[function.name](self, *arguments))

    def build(self):
        state = self.pop()
        self.stack[-1].build(self, state)

    def bytes(self, raw):
        """Bytes as they are. Protocol 2 writes them as text, which a file could have encoded time and again."""
        if isinstance(raw, bytes):
            return raw
        self.left -= len(raw)
        if self.left < 0:
            raise Unreadable("it asks for more memory than its arrays can need")
        return raw.encode("latin1")


class _Function:
    """Stands for a function of NumPy."""

    def __init__(self, name):
        self.name = name


class _Array:
    """An array that a pickle is about to describe: NumPy's ``_reconstruct``, then its state."""

    value = None

    def build(self, machine, state):
        shape, dtype, fortran, raw = state[-4:]
        self.value = _array(machine.bytes(raw), dtype, shape, fortran)


class _Dtype:
    """An array's type: plain numbers, and a byte order."""

    def __init__(self, text):
        if not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|c8|c16|b1)", text):
            raise Unreadable(f"an array's type is {text[:20]!r}, not a plain number")
        self.dtype = np.dtype(text)

    def build(self, _, state):
        if state[1] not in ("<", ">", "|", "="):
            raise Unreadable("an array's byte order is none")
        self.dtype = self.dtype.newbyteorder(state[1])


def _array(raw, dtype, shape, fortran):
    """The array that ``raw`` holds; NumPy refuses another shape than fits it, but takes -1 for any."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise Unreadable("an array's shape is no tuple of whole numbers")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _of_tensor(name, array):
    """What paddle.save makes of a tensor in a dict that is not all tensors."""
    if not isinstance(array, _Array):
        raise Unreadable("a tensor is described wrongly")
    return array


def _wrong(machine, *_):
    raise Unreadable("an array is described wrongly")


# a function that a pickle of arrays names -> what is called for it
_BUILDERS = {
    "numpy.core.multiarray _reconstruct": lambda machine, *_: _Array(),
    "numpy.core.multiarray scalar": lambda machine, dtype, raw: _array(machine.bytes(raw), dtype, (), False)[()],
    "numpy dtype": lambda machine, text, *_: _Dtype(text),
    "numpy ndarray": _wrong,  # only named, as the kind of array
    "builtins bytes": lambda machine: b"",  # how protocol 2 writes none at all
    "builtins tuple": lambda machine, pair: _of_tensor(*pair),
    "_codecs encode": lambda machine, text, _: text,  # ``bytes`` does it where an array needs it
}

_LITERALS = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8"
).split()
_ACTIONS = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop_tuple(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop_tuple(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop_tuple(3)),
    "SETITEM": lambda machine, _: machine.put_items(machine.pop_tuple(2)),
    "SETITEMS": lambda machine, _: machine.put_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "GLOBAL": lambda machine, names: machine.look_up(*names.rsplit(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.look_up(*machine.pop_tuple(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
