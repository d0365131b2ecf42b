"""Mutated and hostile data files: python tests/stress/fuzz_data.py --files 2000

Each must be read, or refused by a ValueError that names the file: no code of it runs (a canary
would show), no other exception, no hang, and memory stays bounded. tests/test_reader.py runs a few.
"""

import argparse
import gzip
import io
import os
import pathlib
import pickle
import resource
import struct
import sys
import tempfile
import time
import zipfile

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from multiMNIST_reader import RecDataset  # noqa: E402  (found by the line above)

LIMIT_S = 10  # for one file
LIMIT_MB = 400  # growth of the process over a run

_IMAGES = (np.arange(3 * 36 * 36) % 251).astype(np.uint8).reshape(3, 36, 36)
_LABELS = np.array([[0, 1], [2, 3], [4, 9]], np.int64)


def _npz():
    file = io.BytesIO()
    np.savez_compressed(file, images=_IMAGES, labels=_LABELS)
    return file.getvalue()


SEEDS = [pickle.dumps((_IMAGES, _LABELS), protocol=p) for p in (0, 2, 4, 5)] + [
    pickle.dumps((_IMAGES[:, ::9, ::9].tolist(), _LABELS.tolist()), protocol=2),
    pickle.dumps((list(_IMAGES), _LABELS.tolist()), protocol=4),
    pickle.dumps((_IMAGES / 255.0, np.eye(10)[_LABELS], _IMAGES, _LABELS), protocol=4),
    gzip.compress(pickle.dumps((_IMAGES, _LABELS), protocol=4)),
    _npz(),
]


class _Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _calls(module, name, text):
    """Protocol 0: call module.name(text)."""
    return f"c{module}\n{name}\n(S'{text}'\ntR.".encode()


def _huge_npz():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 36, 36), }"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", member)
        archive.writestr("labels.npy", member)
    return file.getvalue()


def _claimed_shape(shape):
    array = pickle.dumps((_IMAGES, _LABELS), protocol=0)
    return array.replace(b"(I3\nI36\nI36\n", shape, 1) if b"(I3\nI36\nI36\n" in array else array[:-200]


def _nested(levels):
    return b"\x80\x02" + b"(" * levels + b"K\x01" + b"t" * levels + b"."


def _encoded_often(canary):
    """1 MB of text, made into 400 MB of bytes."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    once = b"h\x01h\x00h\x02\x86R"
    return b"\x80\x02" + text + b"q\x000c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020(" + once * 400 + b"t."


def _pair(images):
    """Protocol 2: the pair of what ``images`` pushes and two good labels."""
    return b"\x80\x02" + images + b"](](K\x01K\x02e](K\x03K\x04ee\x86."


def _wide(levels):
    """A list of 1000 ones, 1000 times in a list, and so on: 1000 ** levels numbers."""
    repeat = b"".join(b"](" + b"h%c" % i * 1000 + b"eq%c" % (i + 1) for i in range(levels - 1))
    return b"](" + b"K\x01" * 1000 + b"eq\x00" + repeat


def _array_often(canary):
    """An array of 1 MB, listed 5000 times."""
    once = pickle.dumps(np.zeros(1 << 20, np.uint8), protocol=2)[2:-1]
    return _pair(once + b"q\x640](" + b"h\x64" * 5000 + b"e")


# name -> function(path of the canary) -> bytes; every one must be refused
HOSTILE = {
    "os.system": lambda c: _calls("os", "system", f"touch {c}"),
    "posix.system": lambda c: _calls("posix", "system", f"touch {c}"),
    "builtins.exec": lambda c: _calls("builtins", "exec", f'open("{c}", "w")'),
    "builtins.eval of Python 2": lambda c: _calls("__builtin__", "eval", f'open("{c}", "w")'),
    "open": lambda c: pickle.dumps(_Call(open, str(c), "w")),
    "numpy.load": lambda c: _calls("numpy", "load", str(c)),
    "dotted name": lambda c: b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.__init__\x93.",
    "changing a function": lambda c: b"\x80\x02cnumpy\ndtype\n}U\x08__code__K\x01sb.",
    "changing a function by slots": lambda c: b"\x80\x02cnumpy\ndtype\nN}U\x08functionK\x01s\x86b.",
    "extension": lambda c: b"\x80\x02\x82\x01.",
    "persistent": lambda c: b"Pname\n.",
    "huge bytes": lambda c: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "large bytes": lambda c: b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b"x.",
    "huge byte array": lambda c: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "huge memo": lambda c: b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "huge memo, as text": lambda c: b"I1\np999999999\n.",
    "huge frame": lambda c: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"K\x01.",
    "endless opcodes": lambda c: b"\x80\x02" + b"K\x010" * 200_000 + b"N.",
    "long number": lambda c: b"L" + b"9" * 1_000_000 + b"L\n.",
    "deep nesting": lambda c: _nested(40_000),
    "deeply nested key": lambda c: b"\x80\x02})" + b"\x85" * 5000 + b"K\x01s.",
    "huge number as a key": lambda c: b"\x80\x02}\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000 + b"K\x01s.",
    "text encoded time and again": _encoded_often,
    "cycle": lambda c: b"\x80\x02]q\x00(h\x00h\x00e.",
    "laughs": lambda c: b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30)) + b".",
    "images that hold themselves": lambda c: _pair(b"]q\x00(h\x00h\x00e"),
    "images that hold themselves, deeper": lambda c: _pair(b"]q\x00]q\x01h\x00aa"),
    "laughing images": lambda c: _pair(b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30))),
    "wide images": lambda c: _pair(_wide(2)),
    "wider images": lambda c: _pair(_wide(5)),
    "deep images": lambda c: _pair(b"]" * 3000 + b"K\x01" + b"a" * 3000),
    "ragged images": lambda c: pickle.dumps(([[[1] * 36] * 36, [[1] * 36] * 35], [[1, 2]] * 2), protocol=4),
    "images of texts": lambda c: pickle.dumps(([[["1"] * 36] * 36] * 2, [[1, 2]] * 2), protocol=4),
    "images of huge numbers": lambda c: pickle.dumps(([[[1 << 70] * 36] * 36] * 2, [[1, 2]] * 2), protocol=4),
    "images of unequal arrays": lambda c: pickle.dumps(([_IMAGES[0], _IMAGES[1:]], [[1, 2]] * 2), protocol=4),
    "an array time and again": _array_often,
    "many places in the memo": lambda c: _pair(b"](" + b"K\x01" + b"\x94" * 100_000 + b"e"),
    "many marks": lambda c: b"(" * 1_000_000 + b".",
    "many empty lists": lambda c: _pair(b"](" + b"]" * 1_000_000 + b"e"),
    "huge shape": lambda c: _claimed_shape(b"(I999999999\nI36\nI36\n"),
    "negative shape": lambda c: _claimed_shape(b"(I-3\nI-36\nI36\n"),
    "reconstruct": lambda c: (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR."
    ),
    "ndarray of a huge shape": lambda c: b"\x80\x02cnumpy\nndarray\n((J\xff\xff\xff\x7ftU\x02u1U\x01xtR.",
    "gzip bomb": lambda c: gzip.compress(bytes(64 << 20)),
    "gzip bomb in a pickle": lambda c: gzip.compress(
        b"\x80\x04B" + struct.pack("<I", 64 << 20) + bytes(64 << 20) + b"."
    ),
    "npz of a huge shape": lambda c: _huge_npz(),
    "npz of objects": lambda c: _objects_npz(c),
    "html": lambda c: b"<!DOCTYPE html><html>404</html>",
    "nothing": lambda c: b"",
}


def _objects_npz(canary):
    file = io.BytesIO()
    np.savez(file, images=np.array([_Call(open, str(canary), "w")], object), labels=_LABELS)
    return file.getvalue()


def check(content, folder, must_fail=False):
    """Read one file; raise AssertionError if anything but reading or refusing it happens. True: it was read."""
    path = os.path.join(folder, "x.npz" if content.startswith(b"PK") else "x.pickle")
    with open(path, "wb") as file:
        file.write(content)
    began, was_read = time.perf_counter(), False
    try:
        data = RecDataset([path], config={"runner.job": "train"})
    except ValueError as error:
        assert path in str(error), f"the message does not name the file: {error}"
        assert len(str(error)) < 2000, "the message is a wall of text"
    else:
        was_read = True
        assert not must_fail, "a hostile file was read"
        assert data.images.dtype == np.uint8 and data.images.shape[1:] == (36, 36)
        assert len(data.images) == len(data.labels) > 0 and 0 <= data.labels.min() <= data.labels.max() <= 9
    took = time.perf_counter() - began
    assert took < LIMIT_S, f"{took:.1f} s for a file of {len(content)} bytes"
    assert not os.path.exists(os.path.join(folder, "canary")), "code of the file ran"
    return was_read


_PIECES = [b"(", b")", b"t", b"R", b"b", b".", b"0", b"2", b"N", b"]", b"}", b"e", b"s", b"u", b"h\x00", b"q\x01"]
_PIECES += [b"cos\nsystem\n", b"cnumpy\nndarray\n", b"\x93", b"\x94", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"I1\n"]


def edits(pieces=_PIECES):
    """A strategy for ``mutate``: lists of edits, half of them near the ends, where a pickle's opcodes are."""
    edit = st.tuples(
        st.sampled_from(["flip", "cut", "drop", "put", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.one_of(st.sampled_from(pieces), st.binary(min_size=1, max_size=8)),
    )
    return st.builds(_placed, st.lists(edit, min_size=1, max_size=6), st.booleans())


def _placed(edits, near_the_ends):
    if not near_the_ends:
        return edits
    return [(kind, _near_an_end(place, number), number, piece) for kind, place, number, piece in edits]


def _near_an_end(place, number):
    return place**6 if number % 2 else 1 - max(place, 1e-3) ** 6


def mutate(content, edits):
    """Apply edits (kind, place as a fraction, number, bytes)."""
    content = bytearray(content)
    for kind, place, number, piece in edits:
        i = max(min(int(place * len(content)), len(content) - 1), 0)
        if kind == "flip" and content:
            content[i] ^= number or 1
        elif kind == "cut":
            del content[i:]
        elif kind == "drop":
            del content[i : i + number]
        elif kind == "put":
            content[i:i] = piece
        elif kind == "copy":
            content[i:i] = content[: number * 4]
    return bytes(content)


def megabytes():
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(files, seed, folder):
    """Check ``files`` mutations of good files.

    Returns:
        How many were read after all.
    """
    cases = st.tuples(st.sampled_from(SEEDS), edits())
    return for_each(cases, files, seed, lambda case: check(mutate(*case), folder))


def for_each(cases, number, seed, judge):
    """Draw ``number`` cases of a strategy, and count those for which ``judge(case)`` is true."""
    judged = []

    @with_seed(seed)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def run(case):
        judged.append(judge(case))

    run()
    return sum(judged)


def arguments(doc):
    """The command line of a fuzzing job: how many files, and the seed."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    args = arguments(__doc__)
    before = megabytes()
    with tempfile.TemporaryDirectory() as folder:
        for make in HOSTILE.values():
            check(make(pathlib.Path(folder) / "canary"), folder, must_fail=True)
        print(f"{len(HOSTILE)} hostile files refused")
        read = fuzz(args.files, args.seed, folder)
    grown = megabytes() - before
    print(f"{args.files} mutated files: {read} read, the others refused; memory grew by {grown:.0f} MB")
    assert grown < LIMIT_MB, f"that is more than {LIMIT_MB} MB"


if __name__ == "__main__":
    main()
