"""Make Multi-MNIST from MNIST: python data/make_multi_mnist.py --mnist FOLDER --out FOLDER

Writes OUT/train/train.pickle, OUT/validation/validation.pickle and OUT/test/test.pickle for
multiMNIST_reader.py. --download fetches MNIST first, into the folder of --mnist. --kind fashion makes
pairs of fashion items, --kind mixed a digit (top left) and a fashion item. The recipe was recovered from
the published images (see data/README.md): the top-left images are the source's in turn, the bottom-right one is a
random image of the same part with another label. Both lie on the diagonal of a 36 x 36 canvas, and pixels are added
and clipped.
"""

import argparse
import hashlib
import os
import pickle
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import mnist_files  # noqa: E402  (beside this file)
from dselect_k_model import output_files  # noqa: E402  (found by the line above)

ITEM_SIZE, CANVAS_SIZE = 28, 36  # pixels a side
LEFT_CORNERS, RIGHT_CORNERS = (1, 2, 3, 4), (5, 6, 7, 8)
TRAIN_SOURCES = 50000  # training images 0..49999 make train, 50000..59999 validation
# name -> (part of the source, its images, number of examples in full and in the sample)
SETS = {
    "train": ("train", slice(0, TRAIN_SOURCES), 100000, 4000),
    "validation": ("train", slice(TRAIN_SOURCES, 60000), 20000, 0),
    "test": ("t10k", slice(0, 10000), 20000, 1000),
}
# kind -> the collections of the top-left and the bottom-right image
KINDS = {
    "digits": (mnist_files.MNIST, mnist_files.MNIST),
    "fashion": (mnist_files.FASHION, mnist_files.FASHION),
    "mixed": (mnist_files.MNIST, mnist_files.FASHION),
}


def compose(left_source, right_source, example_num, rng):
    """Put pairs of images together.

    Args:
        left_source, right_source: (images uint8 [M, 28, 28], labels uint8 [M]) to draw from. If they
            are the same object, the two labels of a pair differ.
        example_num: N; example i has image i modulo M of the left source at the top left.
        rng: numpy.random.RandomState, whose stream no NumPy release may change (NEP 19).
    Returns:
        (images uint8 [N, 36, 36], labels int32 [N, 2]).
    """
    left = np.arange(example_num) % len(left_source[0])
    if left_source is right_source:
        right = _draw_other_label(left_source[1], left, rng)
    else:
        right = rng.randint(len(right_source[0]), size=example_num)
    canvas = np.zeros((example_num, CANVAS_SIZE, CANVAS_SIZE), np.uint8)
    for (items, _), chosen, corners in (
        (left_source, left, LEFT_CORNERS),
        (right_source, right, RIGHT_CORNERS),
    ):
        corner = np.array(corners)[rng.randint(len(corners), size=example_num)]
        for c in corners:
            rows = np.flatnonzero(corner == c)
            box = np.s_[rows, c : c + ITEM_SIZE, c : c + ITEM_SIZE]
            sums = canvas[box].astype(np.uint16) + items[chosen[rows]]
            canvas[box] = np.minimum(sums, 255)
    return canvas, np.stack([left_source[1][left], right_source[1][right]], axis=1).astype(np.int32)


def _draw_other_label(labels, left, rng):
    """For each image of ``left`` a random image among those with another label."""
    by_label = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_label], labels[left], side="left")
    end = np.searchsorted(labels[by_label], labels[left], side="right")
    draw = np.floor(rng.random_sample(len(left)) * (len(labels) - (end - first))).astype(np.int64)
    return by_label[np.where(draw < first, draw, draw + end - first)]


class _Pickler(pickle.Pickler):
    """Writes an array as a call of numpy.ndarray: every version of NumPy writes the same bytes and reads them."""

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"))
            return np.ndarray, (value.shape, little.dtype.str, little.tobytes())
        return NotImplemented


def write(path, images, labels):
    """Write a pair, whole or not at all; returns the file's SHA-256."""
    output_files.write_file(path, lambda file: _Pickler(file, protocol=3).dump((images, labels)), "--out")
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def make(kind, sources_in, out, sample=False, seed=0, unchecked=False):
    """Make the sets of a kind and report them.

    Args:
        kind: one of ``KINDS``.
        sources_in: collection -> folder of its files.
    Raises:
        ValueError: a source file is missing or not the known one, or a folder holds other data.
        OSError: writing failed.
    """
    wanted = {name: one for name, one in SETS.items() if one[3 if sample else 2]}
    for name in wanted:
        output_files.check_alone(os.path.join(out, name), f"{name}.pickle")
        output_files.check_file(_path(out, name), "--out")
    sources = {
        name: _sources(kind, sources_in, part, chosen, unchecked) for name, (part, chosen, _, _) in wanted.items()
    }
    for name, (_, _, full_num, sample_num) in wanted.items():
        example_num = sample_num if sample else full_num
        rng = np.random.RandomState([seed, list(SETS).index(name)])
        images, labels = compose(*sources[name], example_num, rng)
        path = _path(out, name)
        digest = write(path, images, labels)
        print(f"{path}: {example_num} examples, SHA-256 {digest}")
        print(describe(name, labels))


def _path(out, name):
    return os.path.join(out, name, f"{name}.pickle")


def _sources(kind, sources_in, part, chosen, unchecked):
    """(images, labels) for the top-left and the bottom-right image; the same object if they have one source."""
    of_collection = {}
    for collection in KINDS[kind]:
        if collection not in of_collection:
            images, labels = mnist_files.read_part(collection, sources_in[collection], part, unchecked)
            if not len(images[chosen]):
                first, last = chosen.start, chosen.stop - 1
                raise ValueError(
                    f"{sources_in[collection]}: {part} has {len(images)} images, {first} to {last} are needed"
                )
            of_collection[collection] = images[chosen], labels[chosen]
    return [of_collection[collection] for collection in KINDS[kind]]


def describe(name, labels):
    """The size of a set and how often each class occurs, one line for each task."""
    lines = [f"{name}: {len(labels)} examples"]
    for task in range(labels.shape[1]):
        known = labels[labels[:, task] >= 0, task]
        counts = ", ".join(f"{c}: {n}" for c, n in enumerate(np.bincount(known, minlength=10)))
        missing = f", missing: {len(labels) - len(known)}" if len(known) < len(labels) else ""
        lines.append(f"  label {task + 1}: {counts}{missing}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mnist", default="data/mnist", help="folder of MNIST's four IDX files, gzipped or not")
    parser.add_argument("--fashion", default="data/fashion", help="folder of Fashion-MNIST's four files, gzipped")
    parser.add_argument("--out", required=True, help="folder to make train, validation and test in")
    parser.add_argument("--kind", choices=KINDS, default="digits", help="what the pairs are of (default: digits)")
    parser.add_argument("--sample", action="store_true", help="4000 train and 1000 test examples only")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--download", action="store_true", help="fetch the source files that are missing")
    parser.add_argument(
        "--mirror", action="append", default=[], help="address to fetch from, instead of the known ones"
    )
    parser.add_argument("--unchecked", action="store_true", help="accept source files of any SHA-256")
    args = parser.parse_args()
    sources_in = {mnist_files.MNIST: args.mnist, mnist_files.FASHION: args.fashion}
    with output_files.exit_on_error():
        for collection in KINDS[args.kind] if args.download else ():
            mnist_files.download(collection, sources_in[collection], args.mirror)
        make(args.kind, sources_in, args.out, args.sample, args.seed, args.unchecked)


if __name__ == "__main__":
    main()
