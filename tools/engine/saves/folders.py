"""A saved folder is whole or absent: written beside its place, flushed, and put there by renaming.

Nothing here knows what is saved. ``lock`` keeps a second run out of a folder and mends what a killed one left.
"""

import contextlib
import logging
import os
import shutil

import numpy as np

from engine.errors import UserError

LOG = logging.getLogger("engine")
LOCK = ".lock"


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
        raise UserError(f"{final}: cannot be saved ({error}). Earlier saves are untouched.") from error
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

    Tested by writing as much: quotas and limits do not show in the disk's free space.
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
    """Give ``new`` the name ``final``. The earlier folder is only renamed meanwhile, to .old, so it stays whole."""
    old = os.path.join(os.path.dirname(new), f".{os.path.basename(final)}.old")
    if os.path.isdir(final):  # else an earlier swap was cut short, and .old is the only whole one
        _discard(old)
        os.rename(final, old)
    os.rename(new, final)
    _flush_names(os.path.dirname(final) or ".")
    _discard(old)


def _discard(folder):
    """Delete a folder, if it is there. It is renamed first, so that half of it is never mistaken for a save."""
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
    _discard(os.path.join(parent, f".{name}.old"))  # first, or it would be mistaken for what a swap left
    _discard(os.path.join(parent, str(name)))


def _mend(parent):
    """Undo a swap that was cut short: if the new folder is not in place, the old one gets its name back."""
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
    if any(name.endswith(".old") for name in _names(parent)):  # left by a swap that was cut short, or that is under way
        with contextlib.suppress(UserError):
            lock(parent).close()
    return sorted(
        int(name) for name in _names(parent) if name.isdecimal() and os.path.isdir(os.path.join(parent, name))
    )
