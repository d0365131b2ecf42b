"""Errors: the user's mistakes, kept apart from our own bugs."""

import contextlib
import os
import re
import reprlib
import traceback


class UserError(Exception):
    """A mistake that the message explains: the tool prints it bare and exits with code 2."""


class NotFinite(Exception):
    """A training step's loss or gradient is nan or infinite; the session adds epoch and batch."""


class Stopped(Exception):
    """A signal asked the run to end; the step under way has been finished and saved."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def user_errors(where, path=""):
    """Turn a package's ValueError or OSError into a UserError that begins with ``where`` and, said once, ``path``.

    For the time in which a package reads its config, is built, or reads data: there these two are
    the user's mistakes.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        said = isinstance(error, OSError) and error.filename is not None and str(error.filename) in where
        raise UserError(prefixed(where, path, error.strerror if said else str(error))) from error


def prefixed(doing, path, message):
    """``doing path: message``, or the message alone where it names the path, or one within it, itself."""
    path = path.rstrip("/\\")
    if path and re.search(rf"(^|[\s'\"]){re.escape(path)}($|[/\\:\s'\"])", message):
        return message
    return f"{f'{doing} {path}'.strip()}: {message}"


@contextlib.contextmanager
def user_errors_raised_in(*folders):
    """Turn a ValueError that a file in one of ``folders`` itself raises into a UserError.

    For a package's step: what its own code refuses (a batch of other labels, say) is meant for the
    user; an error that comes up in a library is a bug and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if os.path.dirname(os.path.abspath(raised_in)) in map(os.path.abspath, folders):
            raise UserError(str(error)) from error
        raise


def clipped(value, limit=200):
    """A value's text, for a message: what a file holds may be long."""
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "…"


def shown(value):
    """A value as Python writes it, for a message: what a file holds may be long, or nested without end."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
