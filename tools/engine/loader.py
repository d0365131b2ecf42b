"""Reads in worker processes. An exception in a reader, or the death of a worker, is one message and never a hang.

Paddle's loader starts the processes. An exception in what it loads would hang it for ever, so the message travels as
data.
"""

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
import traceback

import numpy as np
import paddle
from paddle.io import DataLoader, IterableDataset, get_worker_info

from engine.errors import UserError, prefixed

SHARED_MEMORY = "/dev/shm"  # on Linux: processes share batches and semaphores through it
FAILURE = "reader failure"  # key of the item that carries an exception's message


def failed(error, folder, what=None):
    """A UserError for a reader's exception.

    Args:
        error: the exception; a UserError is returned as it is.
        folder: of the data.
        what: the reader was reading, for the message. None: the message of a ValueError or OSError is complete.
    """
    if isinstance(error, UserError):
        return error
    message = str(error)
    if what is not None or not isinstance(error, (ValueError, OSError)):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        message = f"{what or 'a block'}: {message} ({type(error).__name__} at {place})"
    return UserError(prefixed("reading", folder, message))


@contextlib.contextmanager
def reading(folder, what=None):
    """Raise what ``failed`` makes of an exception."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise failed(error, folder, what) from error


def read(produce, workers, folder):
    """Iterate what a function produces, in this process or in workers.

    Args:
        produce: function without arguments -> iterator; can be pickled, raises UserError only. In a worker it
            gives that worker's share, see ``share``.
        workers: number of processes; 0: this one.
        folder: of the data, for messages.
    Yields:
        The items of the workers in turn.
    Raises:
        UserError: the reader failed, or a worker process died.
    """
    if not workers:
        yield from produce()
        return
    loader = DataLoader(
        _Produced(produce), batch_size=1, collate_fn=_only, places=paddle.CPUPlace(), num_workers=workers,
        return_list=True, worker_init_fn=functools.partial(_start_worker, os.getpid()),
    )  # fmt: skip
    try:
        for item in _iterate(loader):
            if isinstance(item, dict):
                raise UserError(bytes(np.asarray(item[FAILURE])).decode())
            yield pickle.loads(np.asarray(item[0]))
    except SystemError as error:
        traceback.clear_frames(error.__traceback__)  # they hold Paddle's iterator: see ``_iterate``
        raise UserError(
            f"reading {folder}: a worker process ended too soon: killed, crashed or out of memory.{_room_for_sharing()}"
            " Set runner.num_workers to 0 to see why."
        ) from error


def share(items):
    """Those of the items that this process has to read: all, or in a worker its share."""
    worker = get_worker_info()  # None also where Paddle has no worker processes: on macOS and Windows
    return itertools.islice(items, worker.id, None, worker.num_workers) if worker else items


class _Produced(IterableDataset):
    def __init__(self, produce):
        self.produce = produce

    def __iter__(self):
        try:
            for item in self.produce():
                # whole, as bytes: the loader passes on no empty array
                yield [np.frombuffer(pickle.dumps(item, pickle.HIGHEST_PROTOCOL), np.uint8)]
        except UserError as error:
            yield {FAILURE: np.frombuffer(str(error).encode(), np.uint8)}


def _only(samples):
    return samples[0]


def _start_worker(parent, _):
    """Ignore the terminal's Ctrl-C, which the tool handles; and never destroy what was forked from the tool.

    To destroy the program of an earlier run in a notebook, say, without its threads is a crash.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End this worker when the tool is gone. Killed, it tells nobody, and a worker would wait for ever to be read."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _iterate(loader):
    """Iterate a loader without its SIGCHLD handler; its worker processes end with the iteration.

    The handler raises for a dead worker wherever the main thread is, in a training step most of the time. The
    loader's own thread sees a dead worker too, within seconds, and ends the iteration.

    Paddle's iterator must not be left to the garbage collector. There it may wait for its workers for ever, because
    the queues that tell them to end can be gone before it (seen on Python 3.13). And a worker that is forked later has
    a copy of it, and hangs or crashes when it destroys that (Paddle 2.6.2).
    """
    if not loader.num_workers:
        yield from loader
        return
    _check_semaphores(loader.num_workers)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if in_main_thread:
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield from iterator
    finally:
        iterator._shutdown_on_exit()  # waits a second for each worker; nothing to do if they have ended
        del iterator  # a traceback may hold these variables


def _check_semaphores(workers):
    """Raise UserError if the system lacks what Paddle's iterator needs; its own failure would leave a half-made one."""
    try:
        multiprocessing.Event(), [multiprocessing.Queue() for _ in range(workers + 1)]
    except OSError as error:
        raise UserError(
            f"{workers} worker processes cannot be started: a semaphore cannot be made ({error.strerror})."
            f"{_room_for_sharing()} Or set runner.num_workers to 0."
        ) from error


def _room_for_sharing():
    """A sentence, after a blank, about the memory that processes share; empty if it has no size of its own."""
    try:
        size = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return ""
    return (
        f" Worker processes share memory through {SHARED_MEMORY}, which has {size / 1e6:.1f} MB here; if that is too "
        "little, enlarge it (in a container: docker run --shm-size=1g)."
    )
