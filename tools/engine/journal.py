"""The run for machines: ``runner.log_json``, lines of JSON, and ``runner.use_visual``, a VisualDL log."""

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

    Each line is written at once, so a killed run leaves at most its last line incomplete. The next run that appends
    to the file begins a new line.

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
            UserError: it cannot be written, or is not such a log.
        """
        if self.path is None:
            return
        try:
            os.makedirs(os.path.dirname(os.path.realpath(self.path)), exist_ok=True)
            incomplete = _ends_in_an_incomplete_line(self.path)
            self.file = open(self.path, "ab", buffering=0)
            self._write(b"\n" * incomplete + _line("start", facts))
        except OSError as error:
            self.file = None
            raise UserError(f"runner.log_json: {self.path} cannot be written ({error}). Give another file.") from error

    def record(self, event, **facts):
        """Write a line: the event, the time in seconds since 1970, and ``facts``."""
        if not self.is_open:
            return
        try:
            self._write(_line(event, facts))
        except OSError as error:  # a full disk, for instance: no reason to lose the run
            LOG.warning("runner.log_json: %s cannot be written any more (%s); the run goes on", self.path, error)
            self.file = None

    def close(self):
        """Close the file; nothing more is written."""
        if self.is_open:
            self.file.close()
            self.file = None

    def _write(self, line):
        if self.file.write(line) != len(line):  # as the last write before a disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SILENT = Journal()


def visual_log(folder, job):
    """A function (name, value, step) that records a metric in ``folder``/visualDL_log/``job``, for VisualDL.

    Raises:
        UserError: visualdl is not installed.
    """
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise UserError(
            f"runner.use_visual is true, but visualdl cannot be imported ({error}). Run: pip install visualdl"
        ) from error
    writer = LogWriter(os.path.join(folder, "visualDL_log", job))
    return lambda name, value, step: writer.add_scalar(tag=f"{job}/{name}", step=step, value=value)


def _ends_in_an_incomplete_line(path):
    """Whether the last line of a log lacks its end; UserError if the file exists and is no log."""
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
    """``value`` in JSON's types."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
