"""Saved folders, written and read: whole or absent, and each graph reads the other's.

rec.pdparams         dynamic graph: weights by structured name, with the map to parameter names
rec_static.pdparams  static graph: weights by parameter name
rec….pdopt           the optimizer's state, for going on
manifest.json        the position in the training, the config, and the SHA-256 of each file; a folder
                     of PaddleRec's own tools has none and loads all the same
Parameter names are given in the order of creation, so a package whose two wrappers build the same
network has the same names in both graphs; that is how the one is read into the other.
"""

import collections
import contextlib
import hashlib
import json
import logging
import math
import numbers
import os
import reprlib
import shutil
import time

import numpy as np
import paddle

from engine import VERSION
from engine.array_files import loads
from engine.errors import UserError

LOG = logging.getLogger("engine")
DYNAMIC, STATIC = "rec", "rec_static"  # what the file names begin with
MANIFEST, FORMAT = "manifest.json", 1
MAX_POSITION = 2**53  # of an epoch or a batch in a manifest; numbers beyond are not counted but made up
LOCK = ".lock"
NAME_TABLE = "StructuredToParameterName@@"

# by_structured is None for a checkpoint of the static graph, config where there is no manifest
Weights = collections.namedtuple("Weights", "path by_structured by_name config")


@contextlib.contextmanager
def new_folder(parent, name):
    """Give a folder to write files in; put it in place as ``parent``/``name`` once all are on the disk.

    An earlier folder of that name stays until then. Raises UserError where writing fails.
    """
    final = os.path.join(parent, str(name))
    beside = os.path.join(parent, f".{name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        os.makedirs(beside)
        yield beside
        _flush(beside)
        _swap(beside, final)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        with contextlib.suppress(UserError):
            _mend(parent)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{final}: cannot be saved ({error}). What was saved before is as it was.") from error
    LOG.info("Already save model in %s", final)


def lock(parent):
    """Make ``parent`` if it is missing and lock it against other runs; the system unlocks it when the process ends.

    Then mend and clear what a killed run left in it.

    Returns:
        What holds the lock, to be kept.
    Raises:
        UserError: another run holds it, or the folder cannot be written.
    """
    try:
        _make_folder(parent)
        file = open(os.path.join(parent, LOCK), "a")
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error}). Give another runner.model_save_path.") from error
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise UserError(
            f"{parent}: another training is writing into it. Wait for it, or give another runner.model_save_path."
        ) from error
    _mend(parent)
    _clear(parent)
    return file


def check_room(parent, parameters):
    """Raise UserError if ``parent`` has no room for a save of ``parameters``: name -> array or Tensor.

    Tried by writing as much, for quotas and limits do not show in the disk's free space.
    """
    left = sum(int(np.prod(array.shape)) for array in parameters.values()) * 4  # bytes; most are float32
    path = os.path.join(parent, ".room")
    try:
        with open(path, "wb") as file:
            for begin in range(0, left, 1 << 20):
                file.write(bytes(min(1 << 20, left - begin)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{parent}: there is no room for a save of {left / 1e6:.1f} MB ({error}). "
            "Make room, or give another runner.model_save_path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


def write_manifest(folder, parameters, **facts):
    """Add manifest.json: ``facts``, the parameters' shapes, versions, and the SHA-256 of each file in ``folder``.

    Args:
        folder: with all its files written.
        parameters: name -> array or Tensor, as saved.
        facts: what else to record.
    """
    facts["parameters"] = {name: _described(array) for name, array in parameters.items()}
    facts.update(format=FORMAT, saved_at=time.time(), files=digests(folder))
    facts["versions"] = {"tools": VERSION, "paddle": paddle.__version__, "numpy": np.__version__}
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)


def read_manifest(folder):
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
        raise UserError(f"{path}: cannot be read as a manifest ({reason}). Take another folder.") from error
    return manifest


def digests(folder):
    """SHA-256 of each file in a folder, by its name."""
    return {name: _digest(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def check_files(folder, wanted, path):
    """Raise UserError if a file of ``folder`` is missing or not the one whose SHA-256 ``wanted`` has by its name.

    Args:
        path: of the file that says so, for messages.
    """
    for name, digest in wanted.items():
        file = os.path.join(folder, name)
        if os.path.basename(name) != name or not os.path.isfile(file):
            raise UserError(f"{clipped(file)}: {path} lists it, but it is not there. Take another folder.")
        try:
            changed = _digest(file) != digest
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error}). Take another folder.") from error
        if changed:
            raise UserError(f"{file}: it is cut or changed: its SHA-256 is not the manifest's. Take another folder.")


def _described(array):
    """Type and shape in a word, such as float32[720, 50]; for what is no array, its kind."""
    if not hasattr(array, "shape"):
        return type(array).__name__
    array = np.asarray(array)
    return f"{array.dtype}{list(array.shape)}"


def _check_facts(manifest):
    """Raise ValueError where a manifest's facts are of other types than ``Session`` writes."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {shown(manifest['format'])}; these tools read {FORMAT}")
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
    if not _are_numbers(manifest["numbers"]):
        raise ValueError("its numbers are not all numbers")
    if manifest["so_far"] is not None:
        _check_so_far(**manifest["so_far"])
    if not isinstance(manifest.get("run", ""), str):  # saves of the first releases have no run
        raise ValueError(f"its run is {shown(manifest['run'])}")
    if not math.isfinite(manifest["saved_at"]):  # nan would be neither older nor newer than another save
        raise ValueError(f"its saved_at is {manifest['saved_at']}")


def _check_so_far(sums, examples, newest, counted):
    """Raise ValueError where what an epoch has counted is not as ``Meter.state`` and a graph's ``counted`` give it."""
    if not _are_numbers(sums) or not _are_numbers(newest) or not isinstance(counted, list):
        raise ValueError("what it says of the epoch so far is not all numbers")
    if not isinstance(examples, dict) or sums.keys() != examples.keys():
        raise ValueError("its sums and numbers of examples do not belong together")
    if not all(_is_count(count) and count for count in examples.values()):
        raise ValueError("its numbers of examples are not all whole numbers > 0")


def _is_count(value):
    return type(value) is int and 0 <= value < MAX_POSITION


def _are_numbers(named):
    return isinstance(named, dict) and all(type(value) in (int, float) for value in named.values())


def clipped(value, limit=200):
    """A value's text, for a message: what a file holds may be long."""
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "…"


def shown(value):
    """A value as Python writes it, for a message: what a file holds may be long, or nested without end."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path, write):
    """Write a single file by ``write(file)``, whole or not at all. Raises UserError where writing fails."""
    try:
        _make_folder(os.path.dirname(path))
        with open(path + ".new", "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
        _flush_names(os.path.dirname(path) or ".")
    except Exception as error:
        with contextlib.suppress(OSError):
            os.remove(path + ".new")
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: cannot be written ({error}).") from error


def _make_folder(path):
    """Make a folder and those above it, if they are missing, and have their names on the disk."""
    if path and not os.path.isdir(path):
        above = os.path.dirname(os.path.abspath(path))
        _make_folder(above)
        os.makedirs(path, exist_ok=True)
        _flush_names(above)


@contextlib.contextmanager
def written_by_paddle(path, read_back):
    """Raise an OSError where a file that Paddle's C++ code writes within is not on the disk as a whole.

    That code raises a RuntimeError where it cannot open the file, and nothing where the disk fills up.

    Args:
        path: of the file, for the message.
        read_back: called after the block; it raises where what was written is not whole.
    """
    try:
        yield
    except RuntimeError as error:
        if "Cannot open" not in str(error):
            raise
        raise OSError(f"Paddle cannot open {path}") from error
    try:
        read_back()
    except Exception as error:
        raise OSError(f"{path} is not whole; is the disk full?") from error


def _flush(folder):
    for root, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())
        _flush_names(root)


def _raise(error):
    raise error


def _flush_names(folder):
    """Have the folder's own entries on the disk, where the system can do that (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(new, final):
    """Give ``new`` the name of ``final``. The earlier folder is .old meanwhile: always whole, for it is but renamed."""
    old = os.path.join(os.path.dirname(new), f".{os.path.basename(final)}.old")
    if os.path.isdir(final):  # else an earlier swap was cut short, and old is the only whole one yet
        _discard(old)
        os.rename(final, old)
    os.rename(new, final)
    _flush_names(os.path.dirname(final) or ".")
    _discard(old)


def _discard(folder):
    """Delete a folder, if it is there. It loses its name first, so that no half of it is taken for a save."""
    gone = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return
    except OSError as error:
        LOG.warning("%s: cannot be deleted (%s)", folder, error)
    shutil.rmtree(gone, ignore_errors=True)


def remove(parent, name):
    """Delete a saved folder of ``parent``, if it is there."""
    _discard(os.path.join(parent, f".{name}.old"))  # first, or it would be taken for the save of a swap cut short
    _discard(os.path.join(parent, str(name)))


def _mend(parent):
    """Finish a swap that was cut short: the old folder takes its name again where the new one has not."""
    for name in _names(parent):
        final = os.path.join(parent, name[1 : -len(".old")])
        if name.startswith(".") and name.endswith(".old") and not os.path.exists(final):
            try:
                os.rename(os.path.join(parent, name), final)
            except OSError as error:
                raise UserError(f"{final}: its save was cut short and cannot be mended ({error}).") from error


def _clear(parent):
    """Delete what killed runs left half written or half deleted."""
    for name in _names(parent):
        if name.startswith(".") and name.endswith((".new", ".gone", ".old")):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def _names(folder):
    try:
        return os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error}).") from error


def saved_epochs(parent):
    """Numbers of the epoch folders in ``parent``, sorted."""
    if any(name.endswith(".old") for name in _names(parent)):  # by a swap cut short, or one that goes on just now
        with contextlib.suppress(UserError):
            lock(parent).close()
    return sorted(
        int(name) for name in _names(parent) if name.isdecimal() and os.path.isdir(os.path.join(parent, name))
    )


def read_weights(folder):
    """Read an epoch folder of either graph.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    LOG.info("start load model from %s", folder)
    manifest = read_manifest(folder)
    for prefix in (DYNAMIC, STATIC):
        path = os.path.join(folder, prefix + ".pdparams")
        if os.path.isfile(path):  # a pipe would be waited for
            break
    else:
        raise UserError(
            f"{folder}: there is neither {DYNAMIC}.pdparams nor {STATIC}.pdparams in it. "
            "Give an epoch folder that a trainer saved."
        )
    content = _load(path)
    table = content.pop(NAME_TABLE, {})
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{path}: its {NAME_TABLE} is no map of names. Take another epoch.")
    config = None
    if manifest is not None:
        _check_parameters(content, manifest["parameters"], path)
        config = manifest["config"]
    if prefix == STATIC:
        return Weights(path, None, content, config)
    return Weights(path, content, {table[key]: value for key, value in content.items() if key in table}, config)


def _check_parameters(content, described, path):
    """Raise UserError where a file does not hold what its manifest says."""
    held = {name: _described(array) for name, array in content.items()}
    wrong = sorted(name for name in {*held, *described} if held.get(name) != described.get(name))
    if wrong:
        told = "; ".join(f"{name}: {described.get(name)} there, {held.get(name)} here" for name in wrong[:5])
        raise UserError(f"{path}: it is not what its {MANIFEST} describes ({told}). Take another folder.")


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
            raise UserError(f"{path}: it is not there, and no training goes on without it. Take another epoch.")
        return path, None
    state = _load(path)
    state.pop(NAME_TABLE, None)  # which paddle.save adds to every dict of tensors
    return path, state


def _load(path):
    try:
        with open(path, "rb") as file:
            content = loads(file.read())
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(
            f"{path}: this cannot be read as a checkpoint ({type(error).__name__}: {clipped(error)}). "
            "Take another epoch."
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
        if not isinstance(found[name], (np.ndarray, np.generic)):
            raise UserError(f"{path}: {name} is a {type(found[name]).__name__}, not an array. Take another file.")
        want, have = np.asarray(expected[name]), np.asarray(found[name])
        if want.shape != have.shape or want.dtype.kind != have.dtype.kind:
            raise UserError(
                f"{path}: {name} is {list(have.shape)} {have.dtype}, but the network's is "
                f"{list(want.shape)} {want.dtype}. Give the config it was trained with."
            )
        chosen[name] = have.astype(want.dtype)
    return chosen


def fit_optimizer(expected, found, path):
    """``fit`` for an optimizer's state that a training goes on with: nothing may be missing, and nothing left over."""
    surplus = sorted(set(found) - set(expected))
    if surplus:
        raise UserError(
            f"{path}: the optimizer has no {_some(surplus)}. It was saved by another optimizer or network; "
            "give the config it was trained with."
        )
    return fit(expected, found, path)


def fit_schedule(expected, found, path):
    """Check a schedule's saved position against the state of the one at hand.

    Args:
        expected: ``state_dict()`` of the schedule at hand: name -> number, or such a dict.
        found: the same, as the file has it.
        path: of the file, for messages.
    Returns:
        ``found``.
    Raises:
        UserError: names or kinds of values differ.
    """
    if not isinstance(found, dict) or set(found) != set(expected):
        there = _some(sorted(found)) or "nothing" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UserError(
            f"{path}: for the learning rate's schedule it has {there}, not {_some(sorted(expected)) or 'nothing'}. "
            "Give the config it was trained with."
        )
    for name, mine in expected.items():
        if isinstance(mine, dict):
            fit_schedule(mine, found[name], path)
        elif not _is_position(found[name], mine, whole=name == "last_epoch"):
            raise UserError(
                f"{path}: {name} of the learning rate's schedule is {shown(found[name])}, where the schedule has "
                f"{shown(mine)}. Take another epoch."
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
