"""Standard streams that are closed, on a full disk, or a pipe that nobody reads: no reason to end a run."""

import contextlib
import os
import sys


def open_missing():
    """Open the null device for each standard stream that is closed, as for a daemon or by pythonw.

    Python has None for such a stream. And the next file to be opened would get its descriptor, so that C++ code that
    writes to standard error would write into that file.
    """
    while True:
        handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if handle > 2:
            os.close(handle)
            break
        os.set_inheritable(handle, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


@contextlib.contextmanager
def forgiving(*names):
    """Ignore failures to write to these streams of ``sys``."""
    streams = {name: getattr(sys, name) for name in names}
    for name, stream in streams.items():
        setattr(sys, name, _Forgiving(stream))
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
            empty(stream)


class _Forgiving:
    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


def empty(stream):
    """Flush a stream, or discard its content: if Python failed to flush it at exit, the exit code would change."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
