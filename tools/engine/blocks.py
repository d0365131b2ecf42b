"""Batches cut from blocks of rows, which are shuffled within a window of rows."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from engine import loader, spread
from engine.interface import offered

WINDOW = 100_000  # rows that are shuffled together, unless runner.shuffle_window is set


@dataclass
class BlockSource:
    """Blocks of rows of an iterable dataset, by its hook ``blocks``. Methods as of ``batches.IndexSource``."""

    dataset: object
    options: object  # batches.Options
    is_counted = False  # the reader may have to read all of its files

    def example_num(self):
        """Rows in an epoch, or None if that is unknown."""
        count = offered(self.dataset, "row_num")
        return None if count is None else count()

    def batches(self, epoch, begin):
        """Batches of an epoch, from ``begin`` on. The order does not depend on the number of workers."""
        for batch in self._own_batches(epoch, begin):
            yield batch if batch is None else type(batch)(map(np.asarray, batch))

    def _own_batches(self, epoch, begin):
        options = self.options
        if options.processes.number == 1:
            yield from self._batches(epoch, options.batch_size, options.drop_last, begin)
            return
        if options.trains and offered(self.dataset, "shards_by_rank"):
            size = spread.own_size(options.batch_size, options.processes)
            found = self._batches(epoch, size, False, 0)
            own = spread.in_step(found, options.batch_size, options.drop_last, options.processes)
        else:
            found = self._batches(epoch, options.batch_size, options.drop_last, 0)
            own = spread.of_stream(found, options.processes, options.by_rows, options.folder)
        yield from itertools.islice(own, begin, None)

    def _batches(self, epoch, size, drop_last, begin):
        options, order_of = self.options, None
        with loader.reading(options.folder):
            found = self.dataset.blocks(epoch, options.seed, in_order(options.workers, options.folder))
            if options.seed is not None:
                found = windows(found, options.window or WINDOW)
                order_of = shuffled(options.seed, epoch)
            yield from batches(found, size, drop_last, begin, order_of)


def in_order(workers, folder):
    """The function by which a reader's ``blocks`` loads its blocks.

    Args:
        workers: number of processes; 0: this one.
        folder: of the data, for messages.
    Returns:
        function (function, items) -> iterator of what ``function`` gives for each item, in order.
    """

    return functools.partial(_load, workers, folder)


def _load(workers, folder, function, items):
    return loader.read(functools.partial(_produce, folder, function, items), workers, folder)


def _produce(folder, function, items):
    with loader.reading(folder):
        yield from map(function, loader.share(items))


def batches(blocks, size, drop_last, begin, order_of):
    """Cut blocks into batches.

    Args:
        blocks: lists of arrays [rows, ...], or of what rows can be taken of and ``np.concatenate`` can join likewise.
        size: rows of a batch.
        drop_last: drop a last batch of fewer rows.
        begin: how many batches to skip at the start.
        order_of: function (number of a block, its rows) -> an order of these rows; None: as they are.
    Yields:
        Lists of arrays [size, ...].
    """
    skipped, rest = begin * size, None  # rest: fewer rows than a batch
    for number, block in enumerate(blocks):
        rows = len(block[0])
        at, skipped = min(skipped, rows), max(skipped - rows, 0)
        if at == rows:
            continue
        order = None if order_of is None else order_of(number, rows)
        while at < rows:
            end = min(at + size - (0 if rest is None else len(rest[0])), rows)
            chosen = slice(at, end) if order is None else order[at:end]
            batch = [array[chosen] for array in block]
            if rest is not None:
                batch = _joined([rest, batch])
            at, rest = end, batch
            if len(batch[0]) == size:
                yield batch
                rest = None
    if rest is not None and not drop_last:
        yield rest


def windows(blocks, size):
    """Join consecutive blocks until they have ``size`` rows or more."""
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
    """An ``order_of`` for ``batches``: it depends on seed, epoch and the number of the block alone."""
    return lambda number, rows: np.random.default_rng([seed, epoch, number]).permutation(rows)
