"""Paddle's loader as the tools use it: an exception in a reader, or the end of a worker process, is one message."""

import contextlib
import os
import signal
import threading
import traceback

import numpy as np

from engine.errors import UserError

FAILURE = "reader failure"  # key of the batch that carries an exception's message


class Failure:
    """Stands for a sample that could not be read: an exception itself would hang Paddle's loader for ever."""

    def __init__(self, error, what):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        self.message = f"{what}: {error} ({type(error).__name__} at {place})"


def encoded(message):
    """A failure's message as a batch, which passes between processes."""
    return {FAILURE: np.frombuffer(message.encode(), np.uint8)}


def failure_of(batch):
    """The message of a batch that is ``encoded``; None of any other."""
    return bytes(np.asarray(batch[FAILURE])).decode() if isinstance(batch, dict) and FAILURE in batch else None


def loader_settings(workers):
    """Arguments that all of the tools' loaders have."""
    return {"num_workers": workers, "return_list": True, "worker_init_fn": _ignore_ctrl_c}


def _ignore_ctrl_c(_):
    """A worker is forked with the tool's handler, and a terminal sends Ctrl-C to it as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def iterate(loader):
    """What the loader gives, without its handler of SIGCHLD. Its worker processes end with the iteration.

    The handler raises for a dead worker wherever the main thread is, in a training step most of the time. The
    loader's own thread sees a dead worker too, within seconds, and ends the iteration.

    Paddle's iterator must not be left to the garbage collector. There it may wait for its workers for ever, because
    the queues that tell them to end can be gone before it (seen on Python 3.13). And a worker that is forked later has
    a copy of it, and hangs or crashes when it destroys that (Paddle 2.6.2).
    """
    if not loader.num_workers:
        yield from loader
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if in_main_thread:
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield from batches
    finally:
        batches._shutdown_on_exit()  # waits a second for each, and does nothing where they have ended
        del batches  # a traceback may hold these variables


@contextlib.contextmanager
def ended_too_soon(folder):
    """Turn what Paddle's loader raises for a dead worker into a UserError."""
    try:
        yield
    except SystemError as error:
        traceback.clear_frames(error.__traceback__)  # they hold Paddle's iterator: see ``iterate``
        raise UserError(
            f"reading {folder}: a worker process ended too soon: killed, crashed or out of memory. "
            "Set runner.num_workers to 0 to see why."
        ) from error
