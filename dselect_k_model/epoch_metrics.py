"""The metrics of all tasks over an epoch, its loss among them. What they count is in float64, in NumPy."""

import contextlib

import numpy as np
import paddle

from dselect_k_model.metrics import Mean, Metric, takes


class TaskLoss(Mean):
    """The mean of a task's losses over its labels."""

    higher_is_better = False

    def __init__(self, task):
        self.task = task
        super().__init__(task.kind)

    def of_examples(self, prediction, label):
        return prediction


class TotalLoss(Metric):
    """The tasks' epoch losses by their weights, plus the mean over the examples of all else in the loss.

    The mean of the batches' losses would be another number where labels are missing: a batch's loss of a task is over
    the batch's labels, however few. A task without any label adds nothing.

    Args:
        parts: by task, TaskLoss.
    """

    higher_is_better = False

    def __init__(self, parts):
        self.parts = parts
        super().__init__()

    def empty(self):
        return {"rest": 0.0, "examples": 0}

    def update(self, prediction, label):
        """Count a batch: ``prediction`` is the part of its loss beside the tasks', ``label`` its size."""
        self.kept["rest"] += float(prediction) * label
        self.kept["examples"] += label

    def accumulate(self):
        rest = self.kept["rest"] / self.kept["examples"] if self.kept["examples"] else 0.0
        return sum(part.task.weight * part.accumulate() for part in self.parts if part.kept["count"]) + rest


class EpochMetrics:
    """The metrics of all tasks: each task's own, the loss, and each task's loss.

    Args:
        tasks: list of Task.
    """

    def __init__(self, tasks):
        self.tasks = tasks
        self.by_task = [task.kind.create_metrics(task.metrics, task.suffix) for task in tasks]
        self.losses = [TaskLoss(task) for task in tasks]
        self.total = TotalLoss(self.losses)

    def named(self):
        """Printed name -> Metric, in the order of the log."""
        found = {name: metric for metrics in self.by_task for name, metric in metrics.items()}
        return {**found, "loss": self.total, **{f"loss{loss.task.suffix}": loss for loss in self.losses}}

    def update(self, outputs, labels, losses=None, penalty=0.0, about=None):
        """Count a batch.

        Args:
            outputs: by task, array or tensor [B, C].
            labels: by task, [B], [B, 1] or [B, label_size].
            losses: by task, [B, label_size], as ``tasks.Losses.by_label``; None: compute them.
            penalty: the part of the batch's loss beside the tasks', as ``tasks.Losses.penalty``.
            about: ``weight`` and ``group`` -> [B], those that there are.
        """
        self.total.update(penalty, len(outputs[0]))
        dtypes = {"weight": "float64", "group": "int64"}
        about = {name: np.asarray(item, dtypes[name]).reshape(-1) for name, item in (about or {}).items()}
        counts = about["weight"] > 0 if "weight" in about else slice(None)
        about = {name: item[counts] for name, item in about.items()}
        for t, (task, metrics, output, label) in enumerate(zip(self.tasks, self.by_task, outputs, labels)):
            output = np.asarray(output, "float64")[counts]
            label = np.asarray(label, "float64").reshape(-1, task.kind.label_size)[counts]
            read = {name: item for name, item in about.items() if takes(task.kind.update_metrics, name)}
            task.kind.update_metrics(metrics, output, label, **read)
            values = _losses(task.kind, output, label) if losses is None else np.asarray(losses[t], "float64")[counts]
            self._count_losses(self.losses[t], values.reshape(label.shape), label, about.get("weight"))

    @staticmethod
    def _count_losses(counted, values, label, weight):
        there = counted.kind.is_labelled(label)
        weight = None if weight is None else np.broadcast_to(weight[:, None], label.shape)[there]
        counted.update(values[there], label[there], weight)


def _losses(kind, output, label):
    """A kind's losses [B, label_size] of arrays, by the formula that training minimizes."""
    known = np.where(kind.is_labelled(label), label, 0).astype(kind.label_dtype or "float64")
    with contextlib.nullcontext() if paddle.in_dynamic_mode() else paddle.base.dygraph.guard():
        return kind.losses(paddle.to_tensor(output), paddle.to_tensor(known)).numpy()
