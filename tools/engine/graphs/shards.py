"""Tensors that the processes of a job do not all hold: a package shares out experts, or the rows of an embedding.

The package says which, in ``network_facts``: ``shards``, with ``alone``, ``elsewhere`` and ``rows``. A checkpoint has
them all, as one process would write it: the first process fetches what it does not hold, and each reads its own.
"""

import contextlib
import re

import numpy as np
import paddle
from paddle import distributed

from engine.errors import UserError

OF_OPTIMIZER = re.compile(r"_\d+$")  # ends what Paddle's optimizers call a tensor that they keep for a parameter


class Shards:
    """What a process holds of a network.

    Args:
        facts: what ``network_facts`` gives, or None.
    """

    def __init__(self, facts):
        described = getattr(facts, "shards", None)
        self.exist = described is not None
        self.alone, self.elsewhere, self.rows = {}, {}, {}  # the keys: structured names, and names of parameters
        self.names = {}  # structured name -> name of the parameter
        if described is None:
            return
        for structured, (name, *rows) in described.rows.items():
            self.rows[structured] = self.rows[name] = rows
            self.names[structured] = name
        for names, mine in ((described.alone, self.alone), (described.elsewhere, self.elsewhere)):
            mine.update(dict.fromkeys((*names, *names.values())))
            self.names.update(names)

    def is_own(self, name):
        """Whether other processes have no such tensor, or other rows of it: a parameter, or what an optimizer keeps."""
        return self._owner(name, self.alone) is not None or self._owner(name, self.rows) is not None

    @staticmethod
    def _owner(name, owners):
        """The parameter that a tensor belongs to: its own name, or before ``_moment1_0`` and the like."""
        if name not in owners and not OF_OPTIMIZER.search(name):
            return None
        while name and name not in owners:
            name = name.rpartition("_")[0]
        return name or None

    def keep_own(self, found, path):
        """Of a whole checkpoint's tensors, name -> array, those that this process holds.

        Args:
            path: of the file, for messages.
        Raises:
            UserError: an embedding has another number of rows.
        """
        if not self.exist:
            return found
        kept = {}
        for name, array in found.items():
            owner = self._owner(name, self.rows)
            if owner is not None:
                begin, end, total = self.rows[owner]
                if np.ndim(array) > 1 and len(array) != total:
                    raise UserError(
                        f"{path}: {name} has {len(array)} rows, but the network's has {total}. Use the config it was "
                        "trained with."
                    )
                kept[name] = array[begin:end] if np.ndim(array) > 1 else array
            elif self._owner(name, self.elsewhere) is None:
                kept[name] = array
        return kept

    def fetched(self, state, processes):
        """What a whole checkpoint has in the place of this process's tensors, on the first process; {} on the others.

        One tensor travels at a time, so that the others need little more memory than their share.

        Args:
            state: this process's tensors by name.
            processes: engine.processes.Several.
        """
        own = {name: value for name, value in state.items() if self.is_own(name)}
        described = {}
        for name, value in own.items():
            rows = self.rows.get(self._owner(name, self.rows)) if len(value.shape) > 1 else None
            described[name] = list(value.shape), str(value.dtype).rpartition(".")[-1], rows
        whole = {}
        for rank, of_rank in enumerate(processes.gather(described)):
            for name, (shape, dtype, rows) in of_rank.items():
                if rank == 0 and not processes.is_first:
                    continue
                value = np.asarray(own[name]) if rank == processes.rank else np.empty(shape, dtype)
                value = value if rank == 0 else _broadcast(value, rank)
                if processes.is_first and rows is not None:
                    begin, end, total = rows
                    whole.setdefault(name, np.empty([total, *shape[1:]], dtype))[begin:end] = value
                elif processes.is_first:
                    whole.setdefault(name, value)
        return whole


def _broadcast(value, rank):
    """An array of the process ``rank``; the others give one of its shape and dtype."""
    with contextlib.nullcontext() if paddle.in_dynamic_mode() else paddle.base.dygraph.guard():
        tensor = paddle.to_tensor(value)
        distributed.broadcast(tensor, src=rank)
        return tensor.numpy()
