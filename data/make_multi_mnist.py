"""Make Multi-MNIST from MNIST: python data/make_multi_mnist.py --mnist FOLDER --out FOLDER

Writes OUT/train, OUT/validation and OUT/test, each with one file that multiMNIST_reader.py reads.
The recipe, recovered from the published images (data/README.md has the whole of it): the top-left
digit runs through the MNIST images in turn, the bottom-right one is a random image of the same part
with another label; both lie on the diagonal of a 36 x 36 canvas, and pixels are added and clipped.
"""

import argparse
import gzip
import hashlib
import os
import pickle
import sys
import zlib

import numpy as np

DIGIT_SIZE, CANVAS_SIZE = 28, 36  # pixels a side
LEFT_CORNERS, RIGHT_CORNERS = (1, 2, 3, 4), (5, 6, 7, 8)
TRAIN_SOURCES = 50000  # MNIST training images 0..49999 make train, 50000..59999 validation
# name -> (MNIST part, first and last source image, number of examples in full and in the sample)
SETS = {
    "train": ("train", slice(0, TRAIN_SOURCES), 100000, 4000),
    "validation": ("train", slice(TRAIN_SOURCES, 60000), 20000, 0),
    "test": ("t10k", slice(0, 10000), 20000, 1000),
}


def compose(digits, digit_labels, example_num, rng):
    """Put pairs of digits together.

    Args:
        digits: uint8 [M, 28, 28], the images to draw from.
        digit_labels: uint8 [M].
        example_num: N; image i has digit i modulo M at the top left.
        rng: numpy.random.RandomState, whose stream no NumPy release may change (NEP 19).
    Returns:
        (images uint8 [N, 36, 36], labels int32 [N, 2]).
    """
    left = np.arange(example_num) % len(digits)
    right = _draw_other_label(digit_labels, left, rng)
    canvas = np.zeros((example_num, CANVAS_SIZE, CANVAS_SIZE), np.uint8)
    for chosen, corners in ((left, LEFT_CORNERS), (right, RIGHT_CORNERS)):
        corner = np.array(corners)[rng.randint(len(corners), size=example_num)]
        for c in corners:
            rows = np.flatnonzero(corner == c)
            box = np.s_[rows, c : c + DIGIT_SIZE, c : c + DIGIT_SIZE]
            sums = canvas[box].astype(np.uint16) + digits[chosen[rows]]
            canvas[box] = np.minimum(sums, 255)
    return canvas, np.stack([digit_labels[left], digit_labels[right]], axis=1).astype(np.int32)


def _draw_other_label(labels, left, rng):
    """For each image of ``left`` an image with another label, all such being equally likely."""
    by_label = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_label], labels[left], side="left")
    end = np.searchsorted(labels[by_label], labels[left], side="right")
    draw = np.floor(rng.random_sample(len(left)) * (len(labels) - (end - first))).astype(np.int64)
    return by_label[np.where(draw < first, draw, draw + end - first)]


def read_idx(folder, name, dims):
    """One of MNIST's files, gzipped or not, as uint8 [N, ...] of ``dims`` dimensions."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        path += ".gz"
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}). --mnist must be a folder with the four files of MNIST, gzipped or not."
        ) from error
    header = 4 + 4 * dims
    shape = np.frombuffer(content[4:header].ljust(4 * dims, b"\0"), ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) != header + shape.prod():
        raise ValueError(f"{path}: this is no whole MNIST file of {dims} dimensions. Get it anew.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def write(path, images, labels):
    """Write beside ``path`` and rename, so that no half file ever bears the name."""
    content = pickle.dumps((images, labels), protocol=4)
    if path.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def make(mnist, out, sample=False, seed=0):
    """Make all sets; see the command line. Raises ValueError or OSError."""
    for index, (name, (part, sources, full_num, sample_num)) in enumerate(SETS.items()):
        example_num = sample_num if sample else full_num
        if not example_num:
            continue
        digits = read_idx(mnist, f"{part}-images-idx3-ubyte", 3)[sources]
        digit_labels = read_idx(mnist, f"{part}-labels-idx1-ubyte", 1)[sources]
        images, labels = compose(digits, digit_labels, example_num, np.random.RandomState([seed, index]))
        os.makedirs(os.path.join(out, name), exist_ok=True)
        path = os.path.join(out, name, "multi_mnist.pickle" + (".gz" if sample else ""))
        write(path, images, labels)
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
        print(f"{path}: {len(images)} examples, SHA-256 of the arrays {digest}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mnist", required=True, help="folder with MNIST's four IDX files, gzipped or not")
    parser.add_argument("--out", required=True, help="folder to make train, validation and test in")
    parser.add_argument("--sample", action="store_true", help="4000 train and 1000 test examples only, gzipped")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    args = parser.parse_args()
    try:
        make(args.mnist, args.out, args.sample, args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
