"""manifest.json of a checkpoint: position, config, metrics, parameters, and the SHA-256 of each file."""

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
MAX_POSITION = 2**53  # of an epoch or a batch; beyond it a float skips numbers


def write(folder, parameters, **facts):
    """Write manifest.json: ``facts``, the parameters' shapes, versions, and the SHA-256 of each file in ``folder``."""
    facts["parameters"] = {name: described(array) for name, array in parameters.items()}
    facts.update(format=FORMAT, saved_at=time.time(), files=digests(folder), versions=versions())
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)


def versions():
    """Name -> version of the tools, Paddle and NumPy."""
    return {"tools": VERSION, "paddle": paddle.__version__, "numpy": np.__version__}


def as_saved(config):
    """A config as it is when read back from a manifest."""
    return json.loads(json.dumps(config, default=str))


def read(folder):
    """The manifest of a checkpoint, after a check of all its files; None if there is none.

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
    """``read``, but None and a warning if the manifest or a file is broken."""
    try:
        return read(folder)
    except UserError as error:
        LOG.warning("skipped: %s", error)
        return None


def read_facts(folder):
    """The manifest of a checkpoint, its files not checked.

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


def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha256.update(chunk)
    return sha256.hexdigest()


def digests(folder):
    """Name -> SHA-256 of each file in a folder."""
    return {name: digest(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def are_digests(value):
    """Whether a value read from a file has the form of ``digests``."""
    return _is_table(value, str)


def check_files(folder, wanted, path):
    """Raise UserError unless ``folder`` has the files ``wanted`` (name -> SHA-256) that ``path`` lists."""
    for name, known in wanted.items():
        file = os.path.join(folder, name)
        if os.path.basename(name) != name or not os.path.isfile(file):
            raise UserError(f"{clipped(file)}: {path} lists it, but it is missing. Use another folder.")
        try:
            changed = digest(file) != known
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error}). Use another folder.") from error
        if changed:
            raise UserError(f"{file}: it is cut or changed: its SHA-256 is not the manifest's. Use another folder.")


def described(array):
    """dtype and shape, such as float32[720, 50]; the type of anything else."""
    if not hasattr(array, "shape"):
        return type(array).__name__
    array = np.asarray(array)
    return f"{array.dtype}{list(array.shape)}"


def _check_facts(manifest):
    """Raise ValueError, KeyError or TypeError unless the facts have the types that ``Session`` writes."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {shown(manifest['format'])}; these tools read format {FORMAT}")
    saved_at, so_far = manifest["saved_at"], manifest["so_far"]
    fine = {
        "graph": isinstance(manifest["graph"], str),
        "run": isinstance(manifest["run"], str),
        "epoch": _is_count(manifest["epoch"]),
        "batch": _is_count(manifest["batch"]),
        "config": isinstance(manifest["config"], dict),
        "parameters": isinstance(manifest["parameters"], dict),
        "files": isinstance(manifest["files"], dict),
        "saved_at": isinstance(saved_at, float) and math.isfinite(saved_at),  # nan is neither older nor newer
        "schedule": manifest["schedule"] is None or isinstance(manifest["schedule"], dict),
        "numbers": _is_table(manifest["numbers"], int, float),
        "validation": manifest["validation"] is None or _is_table(manifest["validation"], int, float),
        "so_far": so_far is None or _is_so_far(**so_far),
        # optional: of packages with such files; of releases since the metrics have a direction
        "encoding": are_digests(manifest.get("encoding", {})),
        "processes": _is_count(manifest.get("processes", 1)),
        "higher_is_better": _is_table(manifest.get("higher_is_better", {}), bool),
    }
    for name, is_fine in fine.items():
        if not is_fine:
            raise ValueError(f"its {name} is {shown(manifest[name])}")


def _is_so_far(sums, examples, newest, counted, seen):
    """Whether the state inside an epoch is as ``Meter.state`` and a graph's ``counted`` give it."""
    return (
        _is_table(sums, int, float)
        and _is_table(newest, int, float)
        and isinstance(counted, list)
        and _is_count(seen)
        and isinstance(examples, dict)
        and sums.keys() == examples.keys()
        and all(_is_count(count) and count for count in examples.values())
    )


def _is_count(value):
    return type(value) is int and 0 <= value < MAX_POSITION


def _is_table(value, *kinds):
    return isinstance(value, dict) and all(type(each) in kinds for each in value.values())
