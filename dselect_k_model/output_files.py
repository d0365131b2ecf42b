"""Writes a file whole or not at all, on any file system. For the tools, and for scripts, with how a script fails."""

import contextlib
import errno
import os
import stat
import sys

# What the system says where it cannot flush: a file, and a folder, which some can open only to list it
NOT_THERE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
NOT_WITH_FOLDERS = {*NOT_THERE, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


class CannotWrite(OSError):
    """The message says what, and what to do."""


def check_file(path, what):
    """Raise CannotWrite if there is something at ``path`` that no file can be written over.

    Args:
        what: whose value the path is, for the message, such as runner.log_json or --out.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise CannotWrite(f"{what}: {path} is {_kind(path)}, but a file is to be written there. Give another path.")


def check_folder(path, what):
    """The same for a folder, whose files are to be written."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise CannotWrite(f"{what}: {path} is {_kind(path)}, but it must be a folder. Give another path.")


def check_alone(folder, name):
    """Raise ValueError if a folder holds a file of another name with the same suffix, such as another .pickle."""
    suffix = os.path.splitext(name)[1]
    names = os.listdir(folder) if os.path.isdir(folder) else []
    others = sorted(other for other in names if other.endswith(suffix) and other != name)
    if others:
        path = os.path.join(folder, others[0])
        raise ValueError(f"{path}: a reader would read it as part of the new set. Remove it, or give another --out.")


def _kind(path):
    mode = os.stat(path).st_mode
    kinds = (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")
    return next((words for is_it, words in kinds if is_it(mode)), "a device")


def write_file(path, write, what=""):
    """Write a single file by ``write(file)``, whole or not at all. Of a link the target is written.

    For tools and scripts. A script that works for long before it writes calls ``check_file`` first.

    Args:
        path: of the file.
        write: function of a binary file, open for writing.
        what: whose value the path is, as for ``check_file``.
    Raises:
        CannotWrite: writing fails, or ``path`` is a folder, a pipe or a device.
    """
    check_file(path, what or "the output")
    given, path = path, os.path.realpath(path)
    try:
        make_folder(os.path.dirname(path))
        with open(path + ".new", "wb") as file:
            write(file)
            flush_file(file)
        os.replace(path + ".new", path)
        flush_names(os.path.dirname(path) or ".")
    except Exception as error:
        with contextlib.suppress(OSError):
            os.remove(path + ".new")
        if not isinstance(error, OSError):
            raise
        raise CannotWrite(f"{f'{what}: ' if what else ''}{given}: cannot be written ({error}).") from error


def make_folder(path):
    """Make a folder and those above it, if they are missing, and have their names on the disk."""
    if path and not os.path.isdir(path):
        above = os.path.dirname(os.path.abspath(path))
        make_folder(above)
        os.makedirs(path, exist_ok=True)
        flush_names(above)


def flush_file(file):
    """Have an open file's content on the disk."""
    file.flush()
    with _passed_over(NOT_THERE):
        os.fsync(file.fileno())


def flush_names(folder):
    """Have the folder's own entries on the disk, where the system can do that (not on Windows, CIFS and others)."""
    if os.name == "posix":
        with _passed_over(NOT_WITH_FOLDERS):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _passed_over(numbers):
    """Go on after an OSError of one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


@contextlib.contextmanager
def exit_on_error():
    """End a script with one message and exit code 2 if the block raises a ValueError, an OSError or an ImportError."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = error
    except ImportError as error:
        message = f"{error}. Run: pip install {error.name}"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
