"""MNIST's and Fashion-MNIST's files: found or downloaded, checked against known SHA-256, read."""

import contextlib
import gzip
import hashlib
import os
import zlib

import numpy as np

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class Collection:
    """A set of four IDX files.

    Args:
        name: what people call it.
        mirrors: addresses of folders that hold the .gz files.
        known: file name without .gz -> (SHA-256 of the .gz as distributed, SHA-256 of its content or None).
    """

    def __init__(self, name, mirrors, known):
        self.name, self.mirrors, self.known = name, mirrors, known


# Contents: `zcat FILE.gz | sha256sum` over genuine files. Fashion-MNIST is known by its .gz only.
MNIST = Collection(
    "MNIST",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    {
        f"train-{IMAGES}": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        f"train-{LABELS}": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        f"t10k-{IMAGES}": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        f"t10k-{LABELS}": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)
FASHION = Collection(
    "Fashion-MNIST",
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    {
        f"train-{IMAGES}": ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", None),
        f"train-{LABELS}": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", None),
        f"t10k-{IMAGES}": ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", None),
        f"t10k-{LABELS}": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", None),
    },
)


def read_part(collection, folder, part, unchecked=False):
    """Images uint8 [N, 28, 28] and labels uint8 [N] of ``part`` ("train" or "t10k").

    Raises:
        ValueError: a file is missing, is another than the known one, or is no IDX file.
    """
    images = _read_idx(collection, folder, f"{part}-{IMAGES}", 3, unchecked)
    labels = _read_idx(collection, folder, f"{part}-{LABELS}", 1, unchecked)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{folder}: the images of {part} are {list(images.shape[1:])}, expected 28 x 28.")
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images but {len(labels)} labels in {part}. Get the files again.")
    return images, labels


def _read_idx(collection, folder, name, dims, unchecked):
    path = find(folder, name)
    if path is None:
        raise ValueError(
            f"{os.path.join(folder, name)}: neither it nor {name}.gz exists. Give the folder of "
            f"{collection.name}'s four files, or let --download fetch them."
        )
    content = _checked_content(collection, path, name, unchecked)
    header = 4 + 4 * dims
    shape = np.frombuffer(content[4:header].ljust(4 * dims, b"\0"), ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) != header + shape.prod():
        raise ValueError(f"{path}: this is not a complete IDX file of {dims} dimensions. Get it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find(folder, name):
    """Path of a file, gzipped or not, or None."""
    for path in (os.path.join(folder, name), os.path.join(folder, name + ".gz")):
        if os.path.isfile(path):
            return path
    return None


def _checked_content(collection, path, name, unchecked):
    """A file's bytes, expanded. Their SHA-256, or the file's, must be the known one."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
        content = gzip.decompress(raw) if path.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Get it again.") from error
    of_file, of_content = collection.known[name]
    if unchecked or _digest(raw) == of_file or _digest(content) == of_content:
        return content
    raise ValueError(
        f"{path}: this is not {collection.name}'s file: its SHA-256 is {_digest(raw)}, expected {of_file} for the .gz"
        + (f" or {of_content} for what is in it" if of_content else " as it is distributed")
        + ". Get it again, or give --unchecked if you mean it."
    )


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def download(collection, folder, mirrors=()):
    """Fetch missing files into ``folder`` by pooch, which gives a file its name once it is complete and verified.

    Args:
        mirrors: to try instead of the collection's own.
    Raises:
        ValueError: pooch or tqdm is missing, or no mirror gave a file, with each one's reason.
        OSError: the folder cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    for name, (digest, _) in collection.known.items():
        if find(folder, name) is None:
            _fetch(f"{name}.gz", folder, digest, mirrors or collection.mirrors)


def _fetch(name, folder, digest, mirrors):
    try:
        import pooch
        import tqdm  # noqa: F401  (pooch's progress bar)
        from requests import RequestException  # what pooch downloads with
    except ImportError as error:
        raise ValueError(f"--download needs the package {error.name}. Install it: pip install pooch tqdm") from error
    # "identity": a server that compressed what it sends would have the .gz arrive unpacked
    downloader = pooch.HTTPDownloader(progressbar=True, headers={"Accept-Encoding": "identity"})
    reasons = []
    for mirror in mirrors:
        address = f"{mirror.rstrip('/')}/{name}"
        with _naming(os.path.join(folder, name)):
            try:
                pooch.retrieve(address, f"sha256:{digest}", fname=name, path=folder, downloader=downloader)
                return
            except (ValueError, RequestException) as error:  # the mirror's fault; a full disk is not
                reasons.append(f"\n  {address}: {error}")
    raise ValueError(f"{name} could not be downloaded. Try again, or give --mirror." + "".join(reasons))


@contextlib.contextmanager
def _naming(path):
    """Put the path into an OSError of writing, which has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
