"""All processes of a job hold the same network: checked where a run begins and at each checkpoint."""

import hashlib
import logging

import numpy as np

from engine.errors import UserError

LOG = logging.getLogger("engine")


def reach(graph, when):
    """Have all processes hold the first one's weights and optimizer state, and tell of what had to be changed.

    They differ if the processors draw or round otherwise.

    Args:
        graph: engine.graphs.graph.Graph.
        when: for the message.
    """
    processes = graph.processes
    if processes.number == 1:
        return
    state = {name: np.asarray(value) for name, value in graph.state_of_all().items()}
    digests = processes.gather({name: _digest(value) for name, value in state.items()})
    if any(other.keys() != digests[0].keys() for other in digests):
        raise UserError(f"{when} the processes train different networks. Start all with the same config and files.")
    wrong = sorted({name for other in digests for name in other if other[name] != digests[0][name]})
    if not wrong:
        return
    right = processes.gather({name: state[name] for name in wrong} if processes.is_first else None)[0]
    graph.set_state({**state, **right})
    greatest = max(max(found) for found in processes.gather([_difference(state[name], right[name]) for name in wrong]))
    (LOG.warning if processes.is_first else LOG.info)(
        "%s the processes had other values of %s and %d more (by %.1e at most); all have the first one's now",
        when, wrong[0], len(wrong) - 1, greatest,
    )  # fmt: skip


def _digest(array):
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _difference(a, b):
    return float(np.max(np.abs(a.astype("float64") - b.astype("float64")), initial=0.0))
