"""The tasks that a config describes, and the loss that training minimizes.

A label may be missing. Its example is then not part of the task's loss and metrics, as if it were not there. Examples
may have weights: losses and metrics are then weighted means, and an example of weight 0 is as if it were not there.
Shapes in comments: B batch, C width of a task's output.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import paddle

from dselect_k_model import processes
from dselect_k_model.config_key import NETWORK, STEP, Key, check_all
from dselect_k_model.kinds import KINDS, Kind
from dselect_k_model.metrics import METRICS, find_metric
from dselect_k_model.users_objects import find

PREFIX = "hyper_parameters."
KEYS = {  # of every task, beside those of its kind
    "name": Key(str, None, "The task's name, which ends the names of its metrics; without one, its number does."),
    "kind": Key("name", None, "The kind of task; it may be omitted where classes is given.", choices=tuple(KINDS)),
    "weight": Key(float, 1.0, "The weight of the task's loss.", low=0, decides=STEP),
    "tower_sizes": Key("sizes", None, "The widths of the tower's hidden layers.", high=65536, decides=NETWORK),
    "metrics": Key("texts", None, f"The metrics to report: {', '.join(METRICS)}, or module.name of your own."),
}
LEAST_SHARE = 1e-37  # less than the share of one label of weights.LEAST in any batch
TRAINING_KEYS = ("weight", "metrics")  # they shape the training or the log alone: a checkpoint fits other values


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the network.

    Args:
        kind: an object of a class in ``KINDS``, or of the user's.
        suffix: what ends the names of its metrics: 1, 2, ... or _ and the task's name.
        weight: of its loss.
        tower_sizes: widths of its tower's hidden layers.
        metrics: classes of its metrics.
    """

    kind: Kind
    suffix: str
    weight: float = 1.0
    tower_sizes: tuple = (50, 50)
    metrics: tuple = ()

    @property
    def title(self):
        """What to call it in a message: its name or number."""
        return self.suffix[1:] if self.suffix.startswith("_") else self.suffix

    def named(self, values):
        """The same dict with this task's suffix at each name."""
        return {f"{name}{self.suffix}": value for name, value in values.items()}


def parse(entries, tower_size):
    """The tasks that ``hyper_parameters.tasks`` describes: a list of Task.

    Args:
        entries: mappings, as YAML gives them.
        tower_size: width of the hidden layers of a tower whose entry gives no ``tower_sizes``.
    Raises:
        ValueError: a key is unknown or missing, a value is not allowed, or two tasks have one name.
    """
    found = [_parse_one(number, entry, tower_size) for number, entry in enumerate(entries)]
    names = [task.suffix for task in found]
    if len(set(names)) < len(names):
        raise ValueError(f"{PREFIX}tasks has two tasks of one name: {', '.join(names)}.")
    return found


def _parse_one(number, entry, tower_size):
    where = f"{PREFIX}tasks[{number}]."
    entry = {str(name): value for name, value in entry.items()}
    kind_class, kind_name = kind_of(entry, where)
    values = check_all({**KEYS, **kind_class.keys}, entry, where, f"a task of kind {kind_name}")
    name = values["name"]
    if "name" in entry and not (
        isinstance(entry["name"], str) and name and name.strip() == name and name.isprintable()
    ):
        raise ValueError(f"{where}name is {entry['name']!r}, but must be a text of one line; put it in quotes.")
    try:
        kind = kind_class(**{key: values[key] for key in kind_class.keys})
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    sizes = (tower_size, tower_size) if values["tower_sizes"] is None else values["tower_sizes"]
    metrics = _metrics(kind, kind_name, values["metrics"], where)
    return Task(kind, f"_{name}" if name else str(number + 1), values["weight"], sizes, metrics)


def kind_of(entry, where):
    """(class of the kind, its name) that an entry of ``tasks`` describes: ``kind``, or the kind whose key it has."""
    name = entry.get("kind")
    if name is None:
        required = {n: [k for k, key in kind.keys.items() if key.is_required] for n, kind in KINDS.items()}
        name = next((n for n, keys in required.items() if keys and all(k in entry for k in keys)), None)
    if name is None:
        raise ValueError(
            f"{where[:-1]} is {entry!r}, but needs classes: n, or a kind: {', '.join(KINDS)}, or module.name."
        )
    name = KEYS["kind"].check(f"{where}kind", name)
    return find(KINDS, name, f"{where}kind", Kind), name


def _metrics(kind, kind_name, names, where):
    found = []
    for name in kind.metrics if names is None else names:
        metric = find_metric(name, f"{where}metrics")
        if not hasattr(kind, metric.reads):
            known = [n for n, m in METRICS.items() if hasattr(kind, m.reads)]
            raise ValueError(
                f"{where}metrics has {name}, which is not defined for a task of kind {kind_name}. "
                f"Choose from: {', '.join(known)}."
            )
        found.append(metric)
    return tuple(found)


# ------------------------------------------------------------------------------------- the loss


class Labels(NamedTuple):
    """A task's labels, as ``mask_missing`` gives them."""

    label: Any  # [B, label_size], 0 where it is missing
    factor: Any  # [B, label_size], of the outputs' dtype: a mean over the labels is the mean of values times factors


def mask_missing(tasks, labels, dtype, over_job=False, weight=None):
    """By task, its Labels: a factor is 0 where the label is missing, else its weight over the mean of all weights.

    Args:
        tasks: list of Task.
        labels: by task, [B], [B, 1] or [B, label_size].
        dtype: of the outputs.
        over_job: the mean of the weights is that over the rows of all processes: see ``processes``.
        weight: of the examples, [B] or [B, 1]; None: 1 for each.
    """
    found, masks = [], []
    for task, label in zip(tasks, labels):
        label = paddle.reshape(paddle.cast(label, task.kind.label_dtype or dtype), [-1, task.kind.label_size])
        is_there = task.kind.is_labelled(label)
        mask = paddle.cast(is_there, dtype)
        masks.append(mask if weight is None else mask * paddle.reshape(paddle.cast(weight, dtype), [-1, 1]))
        found.append(paddle.where(is_there, label, paddle.zeros_like(label)))
    shares = [paddle.mean(mask) for mask in masks]
    if over_job and processes.number() > 1:
        shares = processes.mean(paddle.stack(shares), paddle.shape(masks[0])[0])
    factors = [mask / paddle.clip(shares[t], min=LEAST_SHARE) for t, mask in enumerate(masks)]
    return [Labels(*of_task) for of_task in zip(found, factors)]


def for_training(tasks, outputs):
    """The outputs that training's losses and metrics read: see ``Kind.for_training``."""
    return [task.kind.for_training(output) for task, output in zip(tasks, outputs)]


class Losses(NamedTuple):
    """What ``losses`` computes."""

    named: dict[str, Any]  # printed name -> scalar: ``loss``, then each task's as ``loss`` and its suffix
    by_label: list  # by task, [B, label_size]; any value where the label is missing
    penalty: Any  # the part of ``loss`` beside the tasks' weighted losses, a scalar
    minimized: Any  # what training minimizes, a scalar: ``loss``, unless the tasks are balanced by learned variances


def losses(tasks, outputs, masked, penalty=None, log_variances=None):
    """What training minimizes, and each task's part of it.

    A task's loss is the mean over its labels by their examples' weights, 0 if all are missing. ``loss`` is their sum by
    the tasks' weights plus the penalty, in training and evaluation alike. With ``log_variances`` s, training minimizes
    another sum, of Kendall et al. 2018 (arXiv 1705.07115): exp(-s) times each loss, half of it for a regression, plus
    s / 2, for s = log of the task's variance.

    Args:
        tasks: list of Task.
        outputs: by task, [B, C].
        masked: the labels, as ``mask_missing`` gives them.
        penalty: scalar, the gates' terms; None: without.
        log_variances: [T], trained; None: fixed weights.
    Returns:
        Losses.
    """
    by_label, task_losses = [], []
    for task, output, labels in zip(tasks, outputs, masked):
        by_label.append(paddle.reshape(task.kind.losses(output, labels.label), [-1, task.kind.label_size]))
        task_losses.append(_mean_of_labelled(by_label[-1], labels))
    rest = paddle.zeros([], task_losses[0].dtype) if penalty is None else penalty
    loss = minimized = paddle.add_n([task.weight * loss for task, loss in zip(tasks, task_losses)]) + rest
    if log_variances is not None:
        parts = []
        for t, (task, of_task) in enumerate(zip(tasks, task_losses)):
            factor = task.weight * task.kind.loss_factor * paddle.mean(math.e ** -log_variances[t])
            parts.append(factor * of_task + 0.5 * paddle.mean(log_variances[t]))
        minimized = paddle.add_n(parts) + rest
    named = {"loss": loss, **{f"loss{task.suffix}": of_task for task, of_task in zip(tasks, task_losses)}}
    return Losses(named, by_label, rest, minimized)


def _mean_of_labelled(values, labels):
    """Mean of the values [B, label_size] that have a label, by their weights; 0 if none has.

    Where the factors are the job's, the mean of this over the processes, weighted by their rows, is the job's.
    """
    # means, not sums: the legacy programs of Paddle 3.x build no sum
    return paddle.mean(values * labels.factor)


def batch_metrics(tasks, outputs, masked):
    """Metrics of this batch alone, for tools that keep none over an epoch: printed name -> scalar.

    For the arguments see ``losses``.
    """
    found = {}
    for task, output, labels in zip(tasks, outputs, masked):
        values = task.kind.batch_metrics(output, labels.label)
        found.update(task.named({name: _mean_of_labelled(value, labels) for name, value in values.items()}))
    return found
