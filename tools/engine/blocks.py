"""Blocks of rows -> batches: read in worker processes, shuffled in a window of rows, cut to size.

The order depends on the reader's blocks, the seed and the epoch, never on the number of worker processes.
"""

import itertools
import pickle

import numpy as np
import paddle
from paddle.io import DataLoader, IterableDataset, get_worker_info

from engine.errors import UserError, prefixed
from engine.loader import Failure, encoded, ended_too_soon, failure_of, iterate, loader_settings

WINDOW = 100_000  # rows shuffled among one another, if runner.shuffle_window does not say


def in_order(workers, folder):
    """What a reader's ``blocks`` gets to load its blocks with.

    Args:
        workers: number of processes; 0: this one.
        folder: of the data, for messages.
    Returns:
        function (function, items) -> iterator of what ``function`` gives for each item, in order.
    """

    def loaded(function, items):
        if not workers:
            yield from map(function, items)
            return
        dataset = _Loaded(function, items)
        loader = DataLoader(
            dataset, batch_size=1, collate_fn=_alone, places=paddle.CPUPlace(), **loader_settings(workers)
        )
        with ended_too_soon(folder):
            for result in iterate(loader):
                if failure_of(result) is not None:
                    raise UserError(prefixed("reading", folder, failure_of(result)))
                yield pickle.loads(np.asarray(result[0]))

    return loaded


class _Loaded(IterableDataset):
    """In each worker process its share of the items, loaded. Paddle's loader takes from the workers by turns."""

    def __init__(self, function, items):
        self.function, self.items = function, items

    def __iter__(self):
        worker = get_worker_info()  # None where Paddle has no worker processes: on macOS and Windows
        share = (worker.id, None, worker.num_workers) if worker else (0, None)
        try:
            for item in itertools.islice(self.items, *share):
                # whole, as bytes: the loader passes on no empty array
                yield [np.frombuffer(pickle.dumps(self.function(item), pickle.HIGHEST_PROTOCOL), np.uint8)]
        except Exception as error:
            yield encoded(message_of(error))


def message_of(error):
    """What to tell of an exception that a reader of blocks raised: a ValueError or OSError speaks for itself."""
    return str(error) if isinstance(error, (ValueError, OSError)) else Failure(error, "a block").message


def _alone(samples):
    return samples[0]


def batches(blocks, size, drop_last, begin, order_of):
    """Cut blocks into batches.

    Args:
        blocks: lists of arrays [rows, ...].
        size: rows of a batch.
        drop_last: leave out a last batch of fewer rows.
        begin: how many batches to leave out at the start.
        order_of: function (number of a block, its rows) -> an order of these rows; None: as they are.
    Yields:
        Lists of arrays [size, ...].
    """
    passed_over, rest = begin * size, None  # rest: fewer rows than a batch
    for number, block in enumerate(blocks):
        rows = len(block[0])
        at, passed_over = min(passed_over, rows), max(passed_over - rows, 0)
        if at == rows:
            continue
        order = None if order_of is None else order_of(number, rows)
        while at < rows:
            end = min(at + size - (0 if rest is None else len(rest[0])), rows)
            chosen = slice(at, end) if order is None else order[at:end]
            batch = [array[chosen] for array in block]
            if rest is not None:
                batch = [np.concatenate(pair) for pair in zip(rest, batch)]
            at, rest = end, batch
            if len(batch[0]) == size:
                yield batch
                rest = None
    if rest is not None and not drop_last:
        yield rest


def windows(blocks, size):
    """Join blocks until they have ``size`` rows or more, time and again."""
    kept, rows = [], 0
    for block in blocks:
        kept.append(block)
        rows += len(block[0])
        if rows >= size:
            yield _joined(kept)
            kept, rows = [], 0
    if rows:
        yield _joined(kept)


def _joined(blocks):
    return [np.concatenate(arrays) for arrays in zip(*blocks)]


def shuffled(seed, epoch):
    """An ``order_of`` for ``batches``."""
    return lambda number, rows: np.random.default_rng([seed, epoch, number]).permutation(rows)
