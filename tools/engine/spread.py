"""How the batches of a job are spread over its processes.

In training each process takes its rows of every batch, so that the batches are those of one process. In evaluation
each takes whole batches in turn, so that what is computed for a batch is the same to the last bit; unless the processes
share out the network itself, so that all must take part in each batch.
"""

import collections
import itertools
import zlib

import numpy as np

from engine.errors import UserError

AHEAD = 16  # batches that are read before the processes tell each other how many they have


class Copy(list):
    """A batch that all processes have, because it has fewer rows than there are processes. The first counts it."""


def range_of_rows(rows, processes):
    """(begin, end) of this process's rows of a batch; all of them if there are fewer than processes."""
    if rows < processes.number:
        return 0, rows
    return tuple(rows * (processes.rank + i) // processes.number for i in range(2))


def own_rows(batch, processes):
    """This process's rows of a batch: a list of arrays, or a dict of them, alone or in a list, which becomes a list."""
    if processes.number == 1:
        return batch
    fields = batch[0] if isinstance(batch, (list, tuple)) and isinstance(batch[0], dict) else batch
    arrays = list(fields.values()) if isinstance(fields, dict) else fields
    rows = len(arrays[0])
    begin, end = range_of_rows(rows, processes)
    own = [array[begin:end] for array in arrays]
    own = [dict(zip(fields, own))] if isinstance(fields, dict) else own
    return Copy(own) if is_copy(rows, processes) else own


def is_copy(rows, processes):
    """Whether this process's rows of a batch are rows that the first process has too."""
    return rows < processes.number and not processes.is_first


def own_batches(batches, processes):
    """Every batch that is this process's in evaluation, and None for each of another's.

    Args:
        batches: iterator of batches, or of whatever a batch is made from.
    """
    return (batch if i % processes.number == processes.rank else None for i, batch in enumerate(batches))


def of_stream(batches, processes, by_rows, folder):
    """A process's share of batches which each process reads for itself.

    Raises:
        UserError: the processes have not read the same first batch.
    """
    if processes.number == 1:
        return batches
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    if len(set(processes.gather(_digest(first[0]) if first else None))) > 1:
        raise UserError(
            f"{folder}: the reader gives other rows in another process of the job. If it gives each process a share of "
            "its own, have it say so (shards_by_rank = True); else give all processes the same files."
        )
    batches = itertools.chain(first, batches)
    return (own_rows(batch, processes) for batch in batches) if by_rows else own_batches(batches, processes)


def _digest(batch):
    values = batch.values() if isinstance(batch, dict) else batch
    digest = 0
    for value in values:
        digest = _digest(value) if isinstance(value, dict) else zlib.crc32(np.ascontiguousarray(value).data, digest)
    return digest


def own_size(batch_size, processes):
    """Rows of a batch of the job that a process reads whose reader gives it a share of its own."""
    begin, end = range_of_rows(batch_size, processes)
    return end - begin


def in_step(batches, batch_size, drop_last, processes):
    """Have processes whose readers give them shares of their own take equally many steps.

    When one has no full batch left, the rows that the others still have are spread over all.

    Args:
        batches: iterator of this process's batches, lists of arrays, of ``own_size`` rows but for the last.
        batch_size: of the job.
        drop_last: drop a last batch of the job of fewer rows.
    """
    size, ahead = own_size(batch_size, processes), collections.deque()
    while True:
        ahead.extend(itertools.islice(batches, AHEAD - len(ahead)))
        full = sum(len(batch[0]) == size for batch in ahead)
        common = min(processes.gather(full))
        if not common:
            break
        for _ in range(common):
            yield ahead.popleft()
    pool, rest = None, itertools.chain(ahead, batches)
    while found := [batch for batch in processes.gather(next(rest, None)) if batch is not None]:
        pool = [np.concatenate(arrays) for arrays in zip(*([] if pool is None else [pool]), *found)]
        while len(pool[0]) >= batch_size:
            yield own_rows([array[:batch_size] for array in pool], processes)
            pool = [array[batch_size:] for array in pool]
    if pool is not None and len(pool[0]) and not drop_last:
        yield own_rows(pool, processes)
