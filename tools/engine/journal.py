"""``runner.log_json``: the run as lines of JSON, for machines."""

import errno
import json
import logging
import math
import os
import time

from engine.errors import UserError

LOG = logging.getLogger("engine")
BEGINNING = b'{"event": '  # of each line, and so of each file that is such a log


class Journal:
    """Appends one JSON object a line to a file. A number that is not finite is written as null.

    Each line is written at once, so a killed run leaves at most its last one cut; whoever appends next begins a
    new line.

    Args:
        path: of the file, or None: nothing is written.
    """

    def __init__(self, path=None):
        self.path, self.file = path, None

    @property
    def is_open(self):
        """Whether anything that is recorded now is written."""
        return self.file is not None

    def begin(self, **facts):
        """Open the file and write its line ``start``; what is recorded before is not written.

        Raises:
            UserError: it cannot be written, or holds something else.
        """
        if self.path is None:
            return
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            cut = _ends_in_a_cut_line(self.path)
            self.file = open(self.path, "ab", buffering=0)
            self._write(b"\n" * cut + _line("start", facts))
        except OSError as error:
            self.file = None
            raise UserError(f"runner.log_json: {self.path} cannot be written ({error}). Give another file.") from error

    def record(self, event, **facts):
        """Write a line: the event, the time in seconds since 1970, and ``facts``."""
        if not self.is_open:
            return
        try:
            self._write(_line(event, facts))
        except OSError as error:  # a full disk, say: no reason to lose the training
            LOG.warning("runner.log_json: %s cannot be written any more (%s); the run goes on", self.path, error)
            self.file = None

    def _write(self, line):
        if self.file.write(line) != len(line):  # as the last write before a disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SILENT = Journal()


def _ends_in_a_cut_line(path):
    """Whether the last line of a log lacks its end; UserError if the file is there and is no log."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return False
    with open(path, "rb") as file:
        head = file.read(len(BEGINNING))
        if not BEGINNING.startswith(head):
            raise UserError(
                f"runner.log_json: {path} exists and is not a log written by these tools. Give another file."
            )
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _line(event, facts):
    text = json.dumps({"event": event, "time": time.time(), **_plain(facts)}, allow_nan=False)
    return text.encode() + b"\n"


def _plain(value):
    """``value`` as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
