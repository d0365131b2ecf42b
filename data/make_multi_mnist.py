"""Make Multi-MNIST from MNIST: python data/make_multi_mnist.py --mnist FOLDER --out FOLDER

Writes OUT/train/train.pickle, OUT/validation/validation.pickle and OUT/test/test.pickle for
multiMNIST_reader.py. --download fetches MNIST first, into the folder of --mnist. --kind fashion makes
pairs of fashion items, --kind mixed a digit (top left) and a fashion item. The recipe was recovered from
the published images (data/README.md has the whole of it): the top-left image runs through the source in
turn, the bottom-right one is a random image of the same part with another label; both lie on the diagonal
of a 36 x 36 canvas, and pixels are added and clipped.
"""

import argparse
import hashlib
import os
import pickle
import sys

import numpy as np

import mnist_files

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
    """For each image of ``left`` an image with another label, all such being equally likely."""
    by_label = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_label], labels[left], side="left")
    end = np.searchsorted(labels[by_label], labels[left], side="right")
    draw = np.floor(rng.random_sample(len(left)) * (len(labels) - (end - first))).astype(np.int64)
    return by_label[np.where(draw < first, draw, draw + end - first)]


class _Pickler(pickle.Pickler):
    """Writes an array as a call of numpy.ndarray: the same bytes from every NumPy, read by every one."""

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"))
            return np.ndarray, (value.shape, little.dtype.str, little.tobytes())
        return NotImplemented


def write(path, images, labels):
    """Write beside ``path`` and rename, so that no half file ever bears the name; give its SHA-256."""
    temporary = path + ".part"
    with mnist_files.naming(temporary), open(temporary, "wb") as file:
        _Pickler(file, protocol=3).dump((images, labels))
        file.flush()
        os.fsync(file.fileno())
    with open(temporary, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    os.replace(temporary, path)
    return digest


def make(kind, folders, out, sample=False, seed=0, unchecked=False):
    """Make the sets of a kind and report them.

    Args:
        kind: one of ``KINDS``.
        folders: collection -> folder of its files.
    Raises:
        ValueError: a source file is missing or not the known one, or a folder holds other data.
        OSError: writing failed.
    """
    wanted = {name: one for name, one in SETS.items() if one[3 if sample else 2]}
    for name in wanted:
        _check_alone(os.path.join(out, name), f"{name}.pickle")
    sources = {name: _sources(kind, folders, part, chosen, unchecked) for name, (part, chosen, _, _) in wanted.items()}
    for name, (_, _, full_num, sample_num) in wanted.items():
        example_num = sample_num if sample else full_num
        rng = np.random.RandomState([seed, list(SETS).index(name)])
        images, labels = compose(*sources[name], example_num, rng)
        path = os.path.join(out, name, f"{name}.pickle")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = write(path, images, labels)
        print(f"{path}: {example_num} examples, SHA-256 {digest}")
        print(describe(name, labels))


def _check_alone(folder, name):
    """Raise ValueError if ``folder`` holds another pickle than ``name``: the reader takes all of them as one set."""
    there = os.listdir(folder) if os.path.isdir(folder) else []
    others = sorted(other for other in there if other.endswith(".pickle") and other != name)
    if others:
        path = os.path.join(folder, others[0])
        raise ValueError(f"{path}: it would be read as part of the new set. Remove it, or give another --out.")


def _sources(kind, folders, part, chosen, unchecked):
    """(images, labels) of the top-left and the bottom-right image; the same object where they are of one source."""
    of_collection = {}
    for collection in KINDS[kind]:
        if collection not in of_collection:
            images, labels = mnist_files.read_part(collection, folders[collection], part, unchecked)
            if not len(images[chosen]):
                first, last = chosen.start, chosen.stop - 1
                raise ValueError(
                    f"{folders[collection]}: {part} has {len(images)} images, {first} to {last} are needed"
                )
            of_collection[collection] = images[chosen], labels[chosen]
    return [of_collection[collection] for collection in KINDS[kind]]


def describe(name, labels):
    """Counts of a set and the balance of its classes, a line a task."""
    lines = [f"{name}: {len(labels)} examples"]
    for task in range(labels.shape[1]):
        counts = np.bincount(labels[:, task], minlength=10)
        lines.append(f"  label {task + 1}: " + ", ".join(f"{c}: {n}" for c, n in enumerate(counts)))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
    parser.add_argument("--unchecked", action="store_true", help="take source files of any SHA-256")
    args = parser.parse_args()
    folders = {mnist_files.MNIST: args.mnist, mnist_files.FASHION: args.fashion}
    try:
        for collection in KINDS[args.kind] if args.download else ():
            mnist_files.download(collection, folders[collection], args.mirror)
        make(args.kind, folders, args.out, args.sample, args.seed, args.unchecked)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
