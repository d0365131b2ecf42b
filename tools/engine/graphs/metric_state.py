"""What a package's metrics have counted so far, as plain numbers, for an epoch that is resumed in its middle.

Paddle's metrics have no ``state_dict``; what they count is in their attributes. A package's own may have
``state_dict()``, of numbers and arrays by name, and ``set_state_dict(state)``.
"""

import contextlib
import copy
import logging
import numbers

import numpy as np
from paddle.metric import Accuracy, Auc, Precision, Recall

from engine.errors import UserError
from engine.interface import offered

LOG = logging.getLogger("engine")


def directions(model, metrics, names):
    """Name -> whether higher is better, for what the package or Paddle states. See the hook ``higher_is_better``."""
    known = {name: _direction(metric) for name, metric in zip(names, metrics)}
    known.update(offered(model, "higher_is_better") or {})
    return {name: bool(higher) for name, higher in known.items() if higher is not None}


def _direction(metric):
    stated = offered(metric, "higher_is_better")
    is_known = stated is None and isinstance(metric, (Accuracy, Auc, Precision, Recall))
    return True if is_known else stated


def read(metrics):
    """Each metric's attributes that are numbers, or lists or arrays of numbers: name -> number or nested list."""
    return [{name: np.asarray(value).tolist() for name, value in _state(metric).items()} for metric in metrics]


def _state(metric):
    """Name -> number, or list or array of numbers: the metric's own ``state_dict``, or its attributes."""
    if hasattr(metric, "set_state_dict"):
        return metric.state_dict()
    return {name: value for name, value in vars(metric).items() if _is_numeric(value)}


def snapshot(metrics):
    """A copy of what each metric has counted, for ``restore``."""
    return [copy.deepcopy(each.state_dict() if hasattr(each, "set_state_dict") else vars(each)) for each in metrics]


def restore(metrics, states):
    """Undo what the metrics have counted since ``snapshot``. They stay the same objects: the package may hold them."""
    for metric, state in zip(metrics, states):
        metric.set_state_dict(state) if hasattr(metric, "set_state_dict") else vars(metric).update(state)


def write(metrics, states, path):
    """Give ``metrics``, fresh ones, the attributes that ``read`` gave.

    Args:
        path: of the file that has them, for messages.
    Raises:
        UserError: they are another metric's.
    """
    if not isinstance(states, list) or len(states) != len(metrics):
        raise UserError(f"{path}: it has no state of the {len(metrics)} metrics. Use the config it was trained with.")
    for metric, state in zip(metrics, states):
        kept = _state(metric)
        if not isinstance(state, dict) or kept.keys() != state.keys():
            raise UserError(
                f"{path}: it has no state of a {type(metric).__name__}. Use the config it was trained with."
            )
        if hasattr(metric, "set_state_dict"):
            if not all(isinstance(value, numbers.Real) or _is_nested_numbers(value) for value in state.values()):
                raise UserError(f"{path}: what it has of a {type(metric).__name__} is not all numbers.")
            metric.set_state_dict(state)
            continue
        for name, value in kept.items():
            setattr(metric, name, _like(value, state[name], f"{path}: {type(metric).__name__}.{name}"))
        others = [name for name, value in vars(metric).items() if not _is_numeric(value) and not _is_fixed(value)]
        if others:
            LOG.warning(
                "%s.%s cannot be saved: from here on this epoch, the metric counts only the steps after the checkpoint",
                type(metric).__name__,
                others[0],
            )


# ---- several processes

# Paddle's metrics: what they count, which can be added up
ADDED = {Accuracy: ("total", "count"), Auc: ("_stat_pos", "_stat_neg"), Precision: ("tp", "fp"), Recall: ("tp", "fn")}


def accumulated(metrics, names, processes):
    """Name -> number, over all that the processes have counted; the same on all of them."""
    with merged(metrics, names, processes):
        numbers = None
        if processes.is_first:  # the others have counted a part, which may be nothing
            numbers = {name: float(metric.accumulate()) for name, metric in zip(names, metrics)}
    return numbers if processes.number == 1 else processes.gather(numbers)[0]


@contextlib.contextmanager
def merged(metrics, names, processes):
    """Within this context the first process's metrics have counted what all processes have."""
    if processes.number == 1:
        yield
        return
    others = processes.gather([_of_process(metric) for metric in metrics])[1:]
    own = snapshot(metrics)
    if processes.is_first:
        for metric, name, *states in zip(metrics, names, *others):
            _merge(metric, name, states)
    try:
        yield
    finally:
        restore(metrics, own)


def _of_process(metric):
    """What a metric has counted on this process, for another's; None if it cannot be merged."""
    if hasattr(metric, "merge"):
        return metric.state_dict()
    added = ADDED.get(type(metric))
    return added and {name: copy.deepcopy(getattr(metric, name)) for name in added}


def _merge(metric, name, states):
    if None in states:
        if name not in _warned:
            _warned.add(name)
            LOG.warning(
                "%s: a %s cannot be merged (it has no merge(state)), so the log has it for the first process's "
                "examples alone",
                name, type(metric).__name__,
            )  # fmt: skip
    elif hasattr(metric, "merge"):
        for state in states:
            metric.merge(state)
    else:
        for attribute in ADDED[type(metric)]:
            parts = [getattr(metric, attribute), *(state[attribute] for state in states)]
            is_list = isinstance(parts[0], list)
            setattr(metric, attribute, [sum(each) for each in zip(*parts)] if is_list else sum(parts))


_warned: set = set()  # names of metrics that a warning has told of


def _is_numeric(value):
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, numbers.Real) for item in value)
    return isinstance(value, numbers.Real)


def _is_fixed(value):
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(item is None or isinstance(item, (str, bytes)) or callable(item) for item in items)


def _like(fresh, saved, what):
    """``saved`` as a value of the kind of ``fresh``, or a UserError."""
    if isinstance(fresh, numbers.Real) and isinstance(saved, numbers.Real):
        return saved
    array = np.asarray(saved) if isinstance(saved, list) and _is_nested_numbers(saved) else None
    if array is None or isinstance(fresh, numbers.Real):
        raise UserError(f"{what} is not what the metric keeps there. Use another epoch.")
    if isinstance(fresh, (list, tuple)):
        return type(fresh)(saved)
    if array.shape != fresh.shape:
        raise UserError(f"{what} has the shape {list(array.shape)}, not {list(fresh.shape)}. Use another epoch.")
    return array.astype(fresh.dtype)


def _is_nested_numbers(value, depth=8):
    if isinstance(value, list) and depth:
        sizes = {len(item) if isinstance(item, list) else None for item in value}
        return len(sizes) <= 1 and all(_is_nested_numbers(item, depth - 1) for item in value)
    return isinstance(value, numbers.Real)
