"""The user's mistakes, told apart from ours."""
import contextlib


class UserError(Exception):
    """A mistake that the message explains: the tool prints it bare and exits with code 2."""


class NotFinite(Exception):
    """A training step's loss is nan or infinite; the loop adds epoch and batch."""


@contextlib.contextmanager
def blaming(where):
    """Turn a package's ValueError or OSError into a UserError that begins with ``where``.

    For the time in which a package reads its config, is built, or reads data: there these two are
    the user's mistakes. An error inside a training step is a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"{where}: {error}") from error
