"""A checkpoint's folder is whole or absent: written beside its place, flushed to the disk, then renamed into place.

Nothing here knows what is in it. ``lock`` keeps a second run out and repairs what a killed run left. (filelock would be
a dependency of all tools, and takes EACCES for a failure, where NFS means a lock that is held.)
"""

import contextlib
import errno
import functools
import logging
import os
import shutil

import numpy as np

from engine.errors import UserError
from engine.shared import output_files

LOG = logging.getLogger("engine")
LOCK = ".lock"
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # another process has the lock


@contextlib.contextmanager
def new_folder(parent, name):
    """Give a folder to write files in, and rename it to ``parent``/``name`` once they are on the disk.

    An earlier folder of that name stays until then.

    Raises:
        UserError: writing fails.
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
        raise UserError(f"{final}: cannot be saved ({error}). Earlier checkpoints are untouched.") from error
    LOG.info("Already save model in %s", final)


def lock(parent):
    """Make ``parent`` if it is missing, lock it against other runs, and repair what a killed run left in it.

    Returns:
        An open file. Closing it, or the end of the process, unlocks the folder.
    Raises:
        UserError: another run holds it, or the folder cannot be written.
    """
    try:
        output_files.make_folder(os.path.realpath(parent))  # of a link, what it points to
        file = _lock_file(parent)
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error}). Give another runner.model_save_path.") from error
    try:
        if not _is_locked(file):
            LOG.warning("%s: its file system has no locks; make sure that no second run writes there", parent)
    except OSError as error:
        file.close()
        raise UserError(
            f"{parent}: another run is writing to it. Wait for it, or give another runner.model_save_path."
        ) from error
    _mend(parent)
    _clear(parent)
    return file


def _lock_file(parent):
    return open(os.path.join(parent, LOCK), "a")


def _is_locked(file):
    """Lock a file: True. False if its file system has no locks. Raises OSError if another process has the lock."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in HELD:
            raise
        return False
    return True


def check_room(parent, parameters, times=1):
    """Raise UserError if ``parent`` has no room for a checkpoint of ``parameters``, name -> array or Tensor, ``times``.

    It writes that much: the disk's free space does not show quotas and limits.
    """
    left = sum(int(np.prod(array.shape)) for array in parameters.values()) * 4 * times  # bytes; most are float32
    path = os.path.join(parent, ".room")
    try:
        with open(path, "wb") as file:
            for begin in range(0, left, 1 << 20):
                file.write(bytes(min(1 << 20, left - begin)))
            output_files.flush_file(file)
    except OSError as error:
        raise UserError(
            f"{parent}: there is no room for a checkpoint of {left / 1e6:.1f} MB ({error}). "
            "Make room, or give another runner.model_save_path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


def _with_user_errors(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except output_files.CannotWrite as error:
            raise UserError(str(error)) from error

    return call


check_file = _with_user_errors(output_files.check_file)
check_folder = _with_user_errors(output_files.check_folder)
write_file = _with_user_errors(output_files.write_file)


@contextlib.contextmanager
def written_by_paddle(path, read_back):
    """Raise an OSError if a file that Paddle's C++ code writes in the block is not whole.

    That code raises a RuntimeError if it cannot open the file, and nothing if the disk is full.

    Args:
        path: of the file, for the message.
        read_back: called after the block; raises if the file is not whole.
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
                output_files.flush_file(file)
        output_files.flush_names(root)


def _raise(error):
    raise error


def _swap(new, final):
    """Give ``new`` the name ``final``. The earlier folder is renamed to .old meanwhile, so it stays whole."""
    old = os.path.join(os.path.dirname(new), f".{os.path.basename(final)}.old")
    if os.path.isdir(final):  # else an earlier swap was cut short, and .old is the only whole one
        _discard(old)
        try:
            os.rename(final, old)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copytree(final, old)  # a folder of a Docker image's lower layer cannot be renamed
            _flush(old)
            shutil.rmtree(final)
    os.rename(new, final)
    output_files.flush_names(os.path.dirname(final) or ".")
    _discard(old)


def _discard(folder):
    """Delete a folder if it exists. It is renamed first, so that half of it is never taken for a checkpoint."""
    gone = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EXDEV:  # see _swap
            gone = folder
        else:
            LOG.warning("%s: cannot be deleted (%s)", folder, error)
    shutil.rmtree(gone, ignore_errors=True)


def remove(parent, name):
    """Delete the folder ``parent``/``name`` if it exists."""
    _discard(os.path.join(parent, f".{name}.old"))  # first: _mend would give it its name back
    _discard(os.path.join(parent, str(name)))


def _mend(parent):
    """Undo a swap that was cut short: if the new folder is not in place, the old one gets its name back."""
    for name in _names(parent):
        final = os.path.join(parent, name[1 : -len(".old")])
        if name.startswith(".") and name.endswith(".old") and not os.path.exists(final):
            try:
                os.rename(os.path.join(parent, name), final)
            except OSError as error:
                raise UserError(f"{final}: it was being replaced and cannot be repaired ({error}).") from error


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
    """Numbers of the epochs with a checkpoint in ``parent``, sorted."""
    if any(name.endswith(".old") for name in _names(parent)):  # of a swap that was cut short, or is under way
        with contextlib.suppress(UserError, OSError), _lock_file(parent) as file:
            if _is_locked(file):  # without locks nobody knows which; the next run repairs it
                _mend(parent)
                _clear(parent)
    return sorted(
        int(name) for name in _names(parent) if name.isdecimal() and os.path.isdir(os.path.join(parent, name))
    )
