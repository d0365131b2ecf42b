"""Errors: mistakes of the user, as opposed to our own bugs."""

import contextlib
import os
import re
import reprlib
import traceback


class UserError(Exception):
    """A mistake that the message explains: the tool prints it bare and exits with code 2."""


class NotFinite(Exception):
    """A training step's loss or gradient is nan or infinite; the session adds epoch and batch."""


class Lost(Exception):
    """Another process of the job has ended, hangs or cannot be reached."""

    code = 75  # of the tool: EX_TEMPFAIL of sysexits.h, which invites to try again


class Stopped(Exception):
    """A signal asked the run to end; the step under way has been finished and saved."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def user_errors(where, path=""):
    """Turn a package's ValueError or OSError into a UserError that names ``where`` and, once, ``path``.

    For code in which these two are mistakes of the user: a package that reads its config, is built, or reads data.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        said = isinstance(error, OSError) and error.filename is not None and str(error.filename) in where
        raise UserError(prefixed(where, path, error.strerror if said else str(error))) from error


def prefixed(doing, path, message):
    """``doing path: message``, or the message alone if it names the path, or one within it."""
    path = path.rstrip("/\\")
    if path and re.search(rf"(^|[\s'\"]){re.escape(path)}($|[/\\:\s'\"])", message):
        return message
    return f"{f'{doing} {path}'.strip()}: {message}"


@contextlib.contextmanager
def user_errors_raised_in(*folders):
    """Turn a ValueError that a module in one of ``folders``, or in a Python package there, raises into a UserError.

    For a package's step: what its own code refuses, such as an unknown label, is a message for the user. An error that
    a library raises is a bug and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        place = os.path.dirname(os.path.abspath(traceback.extract_tb(error.__traceback__)[-1].filename))
        above = os.path.dirname(place) if os.path.isfile(os.path.join(place, "__init__.py")) else place
        if {place, above} & {*map(os.path.abspath, folders)}:
            raise UserError(str(error)) from error
        raise


def last_line(error):
    """The last line of a library's message, which says what is wrong; the error's class if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def clipped(value, limit=200):
    """A value's text, shortened for a message."""
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "…"


def shown(value):
    """A value's ``repr``, shortened for a message."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
