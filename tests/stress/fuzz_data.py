"""Mutated and hostile data files: python tests/stress/fuzz_data.py --files 2000

Each must be read, or refused by a ValueError that names the file: no code of it runs (it would make a file, the
canary), nothing else is raised, nothing hangs, and memory is bounded. tests/model/test_array_files.py runs a few.
"""

import argparse
import gzip
import io
import os
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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from multiMNIST_reader import RecDataset  # noqa: E402  (found by the line above)

LIMIT_S = 10  # for one file, of the processor's time
LIMIT_MB = 500  # growth of the process over a run
IMAGES = (np.arange(3 * 36 * 36) % 251).astype(np.uint8).reshape(3, 36, 36)
LABELS = np.array([[0, 1], [2, 3], [4, 9]], np.int64)


def npz(save, images):
    file = io.BytesIO()
    save(file, images=images, labels=LABELS)
    return file.getvalue()


GOOD = [
    *(pickle.dumps((IMAGES, LABELS), protocol=p) for p in (0, 2, 4, 5)),
    pickle.dumps((IMAGES[:, ::9, ::9].tolist(), LABELS.tolist()), protocol=2),
    pickle.dumps({"images": list(IMAGES), "labels": LABELS.tolist()}, protocol=4),
    pickle.dumps((IMAGES / 255.0, np.eye(10)[LABELS], IMAGES, LABELS), protocol=4),
    gzip.compress(pickle.dumps((IMAGES, LABELS), protocol=4)),
    npz(np.savez_compressed, IMAGES),
]


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


LAST = b"h\x28"


def laughs(empty, pair):
    """Opcodes of values that each hold the one before twice; ``LAST`` gets the last. ``pair`` makes one of two GETs."""
    return empty + b"q\x00" + b"".join(pair(b"h%c" % i * 2) + b"q%c" % (i + 1) for i in range(40))


def tuple_of_tuples(gets):
    return gets + b"\x86"


def list_of_lists(gets):
    return b"](" + gets + b"e"


def pair_of(images):
    """Protocol 2: the pair of what ``images`` pushes and two good labels."""
    return b"\x80\x02" + images + b"](](K\x01K\x02e](K\x03K\x04ee\x86."


def huge_npz():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 36, 36), }"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("images.npy", "labels.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return file.getvalue()


def hostile(canary):
    """Name -> content of a file that must be refused. ``canary``: the path that code of a file would write to."""
    protocol_0, called = pickle.dumps((IMAGES, LABELS), protocol=0), {}
    for module, name in (("os", "system"), ("posix", "system"), ("builtins", "exec"), ("__builtin__", "eval")):
        argument = f"touch {canary}" if name == "system" else f'open("{canary}", "w")'
        called[f"{module}.{name}"] = f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()
    lengths = {"bytes": b"\x8e", "text": b"\x8d", "byte array": b"\x96", "frame": b"\x95"}
    huge = {name: b"\x80\x05" + code + struct.pack("<Q", 1 << 40) + b"x." for name, code in lengths.items()}
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    text += b"q\x000c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020("
    of_one_hash = [i * ((1 << 61) - 1) for i in range(100_000)]
    million_bytes = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b"q\x00"
    array = pickle.dumps(np.zeros(1 << 20, np.uint8), protocol=2)[2:-1]
    swapped = b"cnumpy.core.multiarray\n_reconstruct\n)R(J\x00\x00\x08\x00\x85cnumpy\ndtype\nU\x02i2\x85R"
    swapped += b"(K\x03U\x01>tb\x89h\x64tb"
    laughing = laughs(b")", tuple_of_tuples)
    thousand = b"](" + b"K\x01" * 1000 + b"e"
    return {
        **called,
        **{f"huge {name}": content for name, content in huge.items()},
        # code
        "open": pickle.dumps(Call(open, str(canary), "w")),
        "an npz of objects": npz(np.savez, np.array([Call(open, str(canary), "w")], object)),
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.__init__\x93.",
        "a function's attribute": b"\x80\x02cnumpy\nndarray\n}U\x08__code__K\x01sb.",
        "a function's slot": b"\x80\x02cnumpy\ndtype\nN}U\x08functionK\x01s\x86b.",
        "an instance": b"(cnumpy\ndtype\nU\x02u1o.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent object": b"Pname\n.",
        # memory
        "a huge memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "a huge memo, in digits": b"I1\np999999999\n.",
        "text that is encoded again and again": b"\x80\x02" + text + b"h\x01h\x00h\x02\x86R" * 400 + b"t.",
        "bytes swapped again and again": pair_of(
            b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x64](" + swapped * 2000 + b"e"
        ),
        "an array again and again": pair_of(array + b"q\x640](" + b"h\x64" * 5000 + b"e"),
        "a list again and again": pair_of(thousand + b"q\x000](" + b"h\x00" * 1000 + b"e"),
        "memo after memo": pair_of(b"](K\x01" + b"\x94" * 4_000_000 + b"e"),
        "empty lists": pair_of(b"](" + b"]" * 4_000_000 + b"e"),
        "a gzip bomb": gzip.compress(b"\x80\x04B" + struct.pack("<I", 64 << 20) + bytes(64 << 20) + b"."),
        "an npz of a huge shape": huge_npz(),
        "a huge shape": protocol_0.replace(b"(I3\nI36\n", b"(I999999999\nI36\n"),
        "a negative shape": protocol_0.replace(b"(I3\nI36\n", b"(I-3\nI-36\n"),
        "an ndarray of a huge shape": b"\x80\x02cnumpy\nndarray\n((J\xff\xff\xff\x7ftU\x02u1U\x01xtR.",
        # time
        "a long number": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a shape of long numbers": b"cnumpy\nndarray\n((" + million_bytes + b"h\x00" * 30 + b"tU\x02u1U\x01xtR.",
        "a memo of one hash": b"N" + b"".join(b"p%d\n" % i for i in of_one_hash) + b".",
        "keys of one hash": b"}(" + b"".join(b"L%dL\nN" % i for i in of_one_hash) + b"u.",
        "a key of tuples": laughing + b"}" + LAST + b"Ns.",
        "a deep key": b"})" + b"\x85" * 500_000 + b"Ns.",
        "a set of tuples": laughing + b"\x8f(" + LAST + b"\x90.",
        "a type of lists": laughs(b"]", list_of_lists) + b"cnumpy\ndtype\n" + LAST + b"\x85R.",
        "an encoding of tuples": laughing + b"c_codecs\nencode\nU\x01x" + LAST + b"\x86R.",
        # lists that are no arrays
        "images that laugh": pair_of(laughs(b"]", list_of_lists)),
        "images that hold themselves": pair_of(b"]q\x00]q\x01h\x00aa"),
        "deep images": pair_of(b"]" * 100_000 + b"K\x01" + b"a" * 100_000),
        "a page of HTML": b"<!DOCTYPE html><html>404</html>",
        "nothing": b"",
    }


def check(content, folder, must_fail=False):
    """Read one file. True: it was read; AssertionError: anything but reading or refusing it happened."""
    path = os.path.join(folder, "x.npz" if content.startswith(b"PK") else "x.pickle")
    with open(path, "wb") as file:
        file.write(content)
    began, was_read = time.process_time(), False
    try:
        data = RecDataset([path], config={"runner.job": "train"})
    except ValueError as error:
        assert path in str(error), f"the message does not name the file: {error}"
        assert len(str(error)) < 2000, "the message is too long"
    else:
        was_read = True
        assert data.images.dtype == np.uint8 and data.images.shape[1:] == (36, 36)
        assert len(data.images) == len(data.labels) > 0 and -1 <= data.labels.min() <= data.labels.max() <= 9
    taken = time.process_time() - began
    assert not (was_read and must_fail), "a hostile file was read"
    assert taken < LIMIT_S, f"{taken:.1f} s for a file of {len(content)} bytes"
    assert not os.path.exists(os.path.join(folder, "canary")), "code of the file ran"
    return was_read


def check_hostile(folder):
    """Check that each handwritten file is refused; gives their number."""
    made = hostile(os.path.join(folder, "canary"))
    for name, content in made.items():
        try:
            check(content, folder, must_fail=True)
        except Exception as error:
            raise AssertionError(name) from error
    return len(made)


PIECES = [b"(", b")", b"t", b"R", b"b", b".", b"0", b"2", b"N", b"]", b"}", b"e", b"s", b"u", b"h\x00", b"q\x01"]
PIECES += [b"cos\nsystem\n", b"cnumpy\nndarray\n", b"\x93", b"\x94", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"I1\n"]


def edits(pieces=PIECES):
    """A strategy for ``mutate``: some edits, most of them near the ends, where a pickle's opcodes are."""
    anywhere = st.floats(0, 1)
    place = st.one_of(anywhere, anywhere.map(lambda x: x**6), anywhere.map(lambda x: 1 - x**6))
    piece = st.one_of(st.sampled_from(pieces), st.binary(min_size=1, max_size=8))
    kind = st.sampled_from(["flip", "cut", "drop", "put", "copy"])
    return st.lists(st.tuples(kind, place, st.integers(0, 255), piece), min_size=1, max_size=6)


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
        else:
            content[i:i] = piece if kind == "put" else content[: number * 4]
    return bytes(content)


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


def fuzz(files, seed, folder):
    """Check ``files`` mutations of good files; gives how many were read after all."""
    return for_each(st.tuples(st.sampled_from(GOOD), edits()), files, seed, lambda case: check(mutate(*case), folder))


def run_and_report(doc, prepare, check_hostile, fuzz):
    """A fuzzer's command line: check its hostile files and then mutations, and print what came of it.

    Args:
        prepare: (folder) -> what the other two functions need; memory is counted from its end.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(folder)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        print(f"{check_hostile(prepared)} hostile files refused")
        accepted = fuzz(args.files, args.seed, prepared)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    taken = time.perf_counter() - began
    print(f"{args.files} mutated files: {accepted} accepted, the others refused, in {taken:.0f} s; {grown:.0f} MB")
    assert grown < LIMIT_MB, f"memory grew by more than {LIMIT_MB} MB"


if __name__ == "__main__":
    run_and_report(__doc__, lambda folder: folder, check_hostile, fuzz)
