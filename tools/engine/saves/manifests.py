"""manifest.json of a save: the position in the training, the config, the parameters, the SHA-256 of each file."""

import hashlib
import json
import logging
import math
import os
import time

import numpy as np
import paddle

from engine import VERSION
from engine.errors import UserError, clipped, shown

LOG = logging.getLogger("engine")
MANIFEST, FORMAT = "manifest.json", 1
MAX_POSITION = 2**53  # of an epoch or a batch; a float counts no further


def write(folder, parameters, **facts):
    """Add manifest.json: ``facts``, the parameters' shapes, versions, and the SHA-256 of each file in ``folder``.

    Args:
        folder: with all its files written.
        parameters: name -> array or Tensor, as saved.
        facts: what else to record.
    """
    facts["parameters"] = {name: described(array) for name, array in parameters.items()}
    facts.update(format=FORMAT, saved_at=time.time(), files=digests(folder))
    facts["versions"] = versions()
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)


def versions():
    """Of the tools and of what computes: name -> version."""
    return {"tools": VERSION, "paddle": paddle.__version__, "numpy": np.__version__}


def as_saved(config):
    """A config as a manifest gives it back."""
    return json.loads(json.dumps(config, default=str))


def read(folder):
    """The manifest of a saved folder, its files checked against it; None if it has none.

    Raises:
        UserError: the manifest or a file is missing, cut or changed; it is named.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.exists(path):
        return None
    manifest = read_facts(folder)
    check_files(folder, manifest["files"], path)
    return manifest


def read_if_sound(folder):
    """The manifest of a saved folder; None, and a line in the log, if it or a file of the folder is broken."""
    try:
        return read(folder)
    except UserError as error:
        LOG.warning("left out: %s", error)
        return None


def read_facts(folder):
    """What a folder's manifest says, the files themselves left unread.

    Raises:
        UserError: the manifest is missing, cut or changed.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        _check_facts(manifest)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {clipped(error)}"
        raise UserError(f"{path}: cannot be read as a manifest ({reason}). Use another folder.") from error
    return manifest


def digests(folder):
    """SHA-256 of each file in a folder, by its name."""
    return {name: digest(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def are_digests(value):
    """Whether what a file says is a digest for each name, as ``digests`` gives them."""
    return isinstance(value, dict) and all(isinstance(known, str) for known in value.values())


def check_files(folder, wanted, path):
    """Raise UserError if a file of ``folder`` is missing or not the one whose SHA-256 ``wanted`` has by its name.

    Args:
        path: of the file that says so, for messages.
    """
    for name, known in wanted.items():
        file = os.path.join(folder, name)
        if os.path.basename(name) != name or not os.path.isfile(file):
            raise UserError(f"{clipped(file)}: {path} lists it, but it is not there. Use another folder.")
        try:
            changed = digest(file) != known
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error}). Use another folder.") from error
        if changed:
            raise UserError(f"{file}: it is cut or changed: its SHA-256 is not the manifest's. Use another folder.")


def described(array):
    """Type and shape in a word, such as float32[720, 50]; of anything else, its type."""
    if not hasattr(array, "shape"):
        return type(array).__name__
    array = np.asarray(array)
    return f"{array.dtype}{list(array.shape)}"


def _check_facts(manifest):
    """Raise ValueError where a manifest's facts are of other types than ``Session`` writes."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {shown(manifest['format'])}; these tools read format {FORMAT}")
    for name in ("epoch", "batch"):
        if not _is_count(manifest[name]):
            raise ValueError(f"its {name} is {shown(manifest[name])}")
    if "so_far" not in manifest and not manifest["batch"]:
        manifest["so_far"] = None  # saves of the first releases have it only inside an epoch, in another form
    maybe = (dict, type(None))
    kinds = {"graph": str, "config": dict, "schedule": maybe, "files": dict, "saved_at": float}
    kinds.update(parameters=dict, numbers=dict, so_far=maybe)
    for name, kind in kinds.items():
        if not isinstance(manifest[name], kind):
            raise ValueError(f"its {name} is {shown(manifest[name])}")
    if not are_digests(manifest.get("encoding", {})):  # saves of packages without such files have none
        raise ValueError(f"its encoding is {shown(manifest['encoding'])}")
    for name in ("numbers", "validation"):  # saves of the first releases have no validation
        if manifest.get(name) is not None and not _are_numbers(manifest[name]):
            raise ValueError(f"its {name} are not all numbers")
    if manifest["so_far"] is not None:
        _check_so_far(**manifest["so_far"])
    if not isinstance(manifest.get("run", ""), str):  # saves of the first releases have no run
        raise ValueError(f"its run is {shown(manifest['run'])}")
    if not math.isfinite(manifest["saved_at"]):  # nan would be neither older nor newer than another save
        raise ValueError(f"its saved_at is {manifest['saved_at']}")


def _check_so_far(sums, examples, newest, counted, seen=0):  # the first releases did not say what was seen
    """Raise ValueError where what an epoch has counted is not as ``Meter.state`` and a graph's ``counted`` give it."""
    if not _are_numbers(sums) or not _are_numbers(newest) or not isinstance(counted, list):
        raise ValueError("what it says of the epoch so far is not all numbers")
    if not _is_count(seen):
        raise ValueError(f"its number of examples seen is {shown(seen)}")
    if not isinstance(examples, dict) or sums.keys() != examples.keys():
        raise ValueError("its sums and numbers of examples do not belong together")
    if not all(_is_count(count) and count for count in examples.values()):
        raise ValueError("its numbers of examples are not all whole numbers > 0")


def _is_count(value):
    return type(value) is int and 0 <= value < MAX_POSITION


def _are_numbers(named):
    return isinstance(named, dict) and all(type(value) in (int, float) for value in named.values())


def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha256.update(chunk)
    return sha256.hexdigest()
