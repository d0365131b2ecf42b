"""Epoch folders, written and read: whole or absent, and each graph reads the other's.

rec.pdparams         dynamic graph: weights by structured name, with the map to parameter names
rec_static.pdparams  static graph: weights by parameter name
Parameter names are given in the order of creation, so a package whose two wrappers build the same
network has the same names in both graphs; that is how the one is read into the other.
"""

import collections
import contextlib
import logging
import os
import shutil

import numpy as np
import paddle

from engine.errors import UserError

LOG = logging.getLogger("engine")
DYNAMIC, STATIC = "rec", "rec_static"  # what the file names begin with
NAME_TABLE = "StructuredToParameterName@@"

# by_structured is None for a checkpoint of the static graph
Weights = collections.namedtuple("Weights", "path by_structured by_name")


@contextlib.contextmanager
def new_epoch(parent, epoch):
    """Give a folder to write an epoch's files in; put it in place once they are all on the disk.

    An earlier folder of that epoch stays until then. Raises UserError where writing fails.
    """
    final = os.path.join(parent, str(epoch))
    beside = os.path.join(parent, f".{epoch}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        os.makedirs(beside)
        yield beside
        _flush(beside)
        _swap(beside, final)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{final}: cannot be saved ({error}). The epochs saved before are as they were.") from error
    LOG.info("Already save model in %s", final)


def write_file(path, write):
    """Write a single file by ``write(file)``, whole or not at all. Raises UserError where writing fails."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path + ".new", "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}).") from error


def _flush(folder):
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())


def _swap(new, final):
    old = os.path.join(os.path.dirname(new), f".{os.path.basename(final)}.old")
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(final):
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)


def saved_epochs(parent):
    """Numbers of the epoch folders in ``parent``, sorted; finishes a swap that a crash cut short."""
    if not os.path.isdir(parent):
        return []
    for name in os.listdir(parent):
        number = name[1 : -len(".old")]
        if name.endswith(".old") and number.isdigit() and not os.path.exists(os.path.join(parent, number)):
            os.rename(os.path.join(parent, name), os.path.join(parent, number))
    return sorted(
        int(name) for name in os.listdir(parent) if name.isdigit() and os.path.isdir(os.path.join(parent, name))
    )


def read_weights(folder):
    """Read an epoch folder of either graph.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    LOG.info("start load model from %s", folder)
    for prefix in (DYNAMIC, STATIC):
        path = os.path.join(folder, prefix + ".pdparams")
        if os.path.exists(path):
            break
    else:
        raise UserError(
            f"{folder}: there is neither {DYNAMIC}.pdparams nor {STATIC}.pdparams in it. "
            "Give an epoch folder that a trainer saved."
        )
    content = _load(path)
    if prefix == STATIC:
        return Weights(path, None, content)
    table = content.pop(NAME_TABLE, {})
    return Weights(path, content, {table[key]: value for key, value in content.items() if key in table})


def read_optimizer_state(folder):
    """The static graph's optimizer state by variable name, or {} if the folder has none."""
    path = os.path.join(folder, STATIC + ".pdopt")
    return _load(path) if os.path.exists(path) else {}


def _load(path):
    try:
        content = paddle.load(path, return_numpy=True, keep_name_table=True)
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(
            f"{path}: this cannot be read as a checkpoint ({type(error).__name__}: {error}). Take another epoch."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: this is no checkpoint: it holds a {type(content).__name__}. Take another epoch.")
    return content


def fit(expected, found, path, partly=False):
    """Choose from ``found`` what a network needs, checked.

    Args:
        expected: name -> array, as the network has it.
        found: name -> array, as the file has it.
        path: of the file, for messages.
        partly: a missing name is a warning, not an error (warm start).
    Returns:
        name -> array of ``expected``'s dtype, for the names that both have.
    Raises:
        UserError: a name is missing, or a shape differs.
    """
    missing = sorted(set(expected) - set(found))
    surplus = sorted(name for name in set(found) - set(expected) if not name.startswith("learning_rate_"))
    if missing and (not partly or len(missing) == len(expected)):
        raise UserError(
            f"{path}: it has no {_some(missing)}. It was saved by another network; give the config it was trained with."
        )
    if missing:
        LOG.warning("%s: it has no %s; these keep their initial values", path, _some(missing))
    if surplus:
        LOG.warning("%s: not used: %s", path, _some(surplus))
    chosen = {}
    for name in set(expected) & set(found):
        want, have = np.asarray(expected[name]), np.asarray(found[name])
        if want.shape != have.shape or want.dtype.kind != have.dtype.kind:
            raise UserError(
                f"{path}: {name} is {list(have.shape)} {have.dtype}, but the network's is "
                f"{list(want.shape)} {want.dtype}. Give the config it was trained with."
            )
        chosen[name] = have.astype(want.dtype)
    return chosen


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
