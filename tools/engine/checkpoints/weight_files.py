"""Reads a checkpoint's weights and optimizer state, and fits them to a network. Either graph reads the other's weights.

rec.pdparams         dynamic graph: weights by structured name, and a table of their parameter names
rec_static.pdparams  static graph: weights by parameter name
rec….pdopt           optimizer state, to resume from
Paddle names parameters in the order of creation. So if a package's two wrappers build the same network, its parameters
have the same names in both graphs. A checkpoint of PaddleRec's own tools has no manifest and loads all the same.
"""

import collections
import logging
import numbers
import os

import numpy as np

from engine.checkpoints import manifests
from engine.checkpoints.manifests import MANIFEST, MAX_POSITION
from engine.errors import UserError, clipped, shown
from engine.shared import array_files

LOG = logging.getLogger("engine")
DYNAMIC, STATIC = "rec", "rec_static"  # what the file names begin with
NAME_TABLE = "StructuredToParameterName@@"

# by_structured: None for the static graph. config: None without a manifest. encoding: see compatibility.digests
Weights = collections.namedtuple("Weights", "path by_structured by_name config encoding", defaults=[None])


def read_weights(folder):
    """The Weights of a checkpoint of either graph.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    LOG.info("start load model from %s", folder)
    manifest = manifests.read(folder)
    for prefix in (DYNAMIC, STATIC):
        path = os.path.join(folder, prefix + ".pdparams")
        if os.path.isfile(path):  # reading a pipe would wait for ever
            break
    else:
        raise UserError(
            f"{folder}: neither {DYNAMIC}.pdparams nor {STATIC}.pdparams is in it. Give the folder of a checkpoint."
        )
    content = _load(path)
    table = content.pop(NAME_TABLE, {})
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{path}: its {NAME_TABLE} does not map names to names. Use another checkpoint.")
    config = encoding = None
    if manifest is not None:
        _check_parameters(content, manifest["parameters"], path)
        config, encoding = manifest["config"], manifest.get("encoding")
    if prefix == STATIC:
        return Weights(path, None, content, config, encoding)
    by_name = {table[key]: value for key, value in content.items() if key in table}
    return Weights(path, content, by_name, config, encoding)


def _check_parameters(content, described, path):
    """Raise UserError if the file's arrays are not those of its manifest."""
    held = {name: manifests.described(array) for name, array in content.items()}
    wrong = sorted(name for name in {*held, *described} if held.get(name) != described.get(name))
    if wrong:
        pairs = "; ".join(f"{name}: {held.get(name)}, not {described.get(name)}" for name in wrong[:5])
        raise UserError(f"{path}: it is not what its {MANIFEST} describes ({pairs}). Use another checkpoint.")


def read_optimizer_state(folder, prefix, needed=True):
    """The optimizer state that a graph (``DYNAMIC`` or ``STATIC``) saved.

    Returns:
        (path of the file, name -> array; None if there is no such file and it is not ``needed``).
    Raises:
        UserError: it cannot be read, or is needed and not there.
    """
    path = os.path.join(folder, prefix + ".pdopt")
    if not os.path.isfile(path):
        if needed:
            raise UserError(f"{path}: missing, and no run can be resumed without it. Use another checkpoint.")
        return path, None
    state = _load(path)
    state.pop(NAME_TABLE, None)  # which paddle.save adds to every dict of tensors
    return path, state


def _load(path):
    try:
        with open(path, "rb") as file:
            content = array_files.loads(file.read())
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(
            f"{path}: this cannot be read as a checkpoint ({type(error).__name__}: {clipped(error)}). "
            "Use another checkpoint."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: this is not a checkpoint: it holds a {type(content).__name__}. Use another checkpoint."
        )
    return content


def is_learning_rate(name):
    """Whether a variable of a program is its learning rate, which is no weight and no moment."""
    return name.startswith("learning_rate_")


def fit(expected, found, path, partly=False):
    """Take from ``found`` what a network needs, with checks.

    Args:
        expected: name -> array of the network.
        found: name -> array of the file.
        path: of the file, for messages.
        partly: a missing name is a warning, not an error (warm start).
    Returns:
        name -> array of ``expected``'s dtype, for the names in both.
    Raises:
        UserError: a name is missing, or a shape differs.
    """
    missing = sorted(set(expected) - set(found))
    surplus = sorted(name for name in set(found) - set(expected) if not is_learning_rate(name))
    if missing and (not partly or len(missing) == len(expected)):
        raise UserError(
            f"{path}: it has no {_some(missing)}. It was saved by another network; use the config it was trained with."
        )
    if missing:
        LOG.warning("%s: it has no %s; these keep their initial values", path, _some(missing))
    if surplus:
        LOG.warning("%s: not used: %s", path, _some(surplus))
    chosen = {}
    for name in set(expected) & set(found):
        if not isinstance(found[name], (np.ndarray, np.generic)):
            raise UserError(f"{path}: {name} is a {type(found[name]).__name__}, not an array. Use another file.")
        want, have = np.asarray(expected[name]), np.asarray(found[name])
        if want.shape != have.shape or want.dtype.kind != have.dtype.kind:
            raise UserError(
                f"{path}: {name} is {list(have.shape)} {have.dtype}, but the network's is "
                f"{list(want.shape)} {want.dtype}. Use the config it was trained with."
            )
        chosen[name] = have.astype(want.dtype)
    return chosen


def fit_optimizer(expected, found, path):
    """``fit`` for the optimizer state of a resumed run: nothing may be missing or surplus."""
    surplus = sorted(set(found) - set(expected))
    if surplus:
        raise UserError(
            f"{path}: the optimizer has no {_some(surplus)}. It was saved by another optimizer or network; "
            "use the config it was trained with."
        )
    return fit(expected, found, path)


def fit_schedule(expected, found, path):
    """``found``, the saved ``state_dict()`` of a learning-rate schedule, checked against the current one.

    Raises:
        UserError: names or kinds of values differ.
    """
    if not isinstance(found, dict) or set(found) != set(expected):
        have = _some(sorted(found)) or "nothing" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UserError(
            f"{path}: for the learning rate's schedule it has {have}, not {_some(sorted(expected)) or 'nothing'}. "
            "Use the config it was trained with."
        )
    for name, mine in expected.items():
        if isinstance(mine, dict):
            fit_schedule(mine, found[name], path)
        elif not _is_position(found[name], mine, whole=name == "last_epoch"):
            raise UserError(
                f"{path}: {name} of the learning rate's schedule is {shown(found[name])}, where the schedule has "
                f"{shown(mine)}. Use another checkpoint."
            )
    return found


def _is_position(value, mine, whole):
    if isinstance(mine, numbers.Real) and not isinstance(mine, bool):
        kind = numbers.Integral if whole else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < MAX_POSITION  # not nan either
    return mine is None or isinstance(value, type(mine))


def _some(names):
    return ", ".join(clipped(name, 60) for name in names[:5]) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )
