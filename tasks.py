"""The kinds of task: how wide a task's output is, its loss, its metrics, its labels, what is exported of it.

A label may be missing: below 0 for classes (whole numbers) and binary tasks, NaN for binary tasks and
regressions. Such an example is left out of the task's loss and metrics, which are as if it had not been there.

Shapes in comments: B batch, C the width of a task's output.
"""

import dataclasses
import math

import numpy as np
import paddle
import paddle.nn.functional as F

# ------------------------------------------------------------------------------------- metrics


class Mean:
    """Mean of a number of each labelled example, over all batches since the last reset.

    Args:
        of_examples: function (output [N, C], label [N]) of float64 arrays -> [N].
        root: take the mean's square root.
    """

    def __init__(self, of_examples, root=False):
        self.of_examples, self.root = of_examples, root
        self.reset()

    def reset(self):
        self.sum, self.count = 0.0, 0

    def update(self, output, label):
        """Count labelled examples: output [N, C], label [N], float64."""
        self.sum += float(np.sum(self.of_examples(output, label)))
        self.count += len(label)

    def accumulate(self):
        """The mean as a float; 0 before the first example."""
        mean = self.sum / self.count if self.count else 0.0
        return math.sqrt(mean) if self.root else mean

    def state_dict(self):
        """What it has counted: name -> number or array."""
        return {"sum": self.sum, "count": self.count}

    def set_state_dict(self, state):
        self.sum, self.count = float(state["sum"]), int(state["count"])


class TotalLoss:
    """An epoch's loss: the tasks' epoch losses by their weights, and the mean over the examples of all else in it.

    The mean of the batches' losses would be another number where labels are missing: a batch's loss of a task is
    over the batch's labelled examples, however few.

    Args:
        parts: pairs (weight, Mean of the task's losses).
    """

    task = None  # of all of them

    def __init__(self, parts):
        self.parts = parts
        self.reset()

    def reset(self):
        self.rest, self.examples = 0.0, 0

    def update(self, rest, examples):
        """Count a batch: what its loss had beside the weighted losses, and its size."""
        self.rest += float(rest) * examples
        self.examples += examples

    def accumulate(self):
        """The loss as a float."""
        rest = self.rest / self.examples if self.examples else 0.0
        return sum(weight * mean.accumulate() for weight, mean in self.parts) + rest

    def state_dict(self):
        """What it has counted itself: name -> number."""
        return {"rest": self.rest, "examples": self.examples}

    def set_state_dict(self, state):
        self.rest, self.examples = float(state["rest"]), int(state["examples"])


class Auc:
    """Area under the ROC curve, exact: the share of pairs (positive, negative) in the right order, ties half.

    It keeps each example's score and label, five bytes an example.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.scores, self.labels = [], []

    def update(self, output, label):
        """Count labelled examples: output [N, 1] rises with the probability of a positive, label [N]."""
        self.scores.append(output[:, 0].astype("float32"))
        self.labels.append(label > 0.5)

    def accumulate(self):
        """The area as a float; 0.5 while there is no pair to compare."""
        scores, positive = self._whole()
        positives = int(positive.sum())
        pairs = positives * (len(positive) - positives)
        if not pairs:
            return 0.5
        values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # from 1; equal scores share a mean rank
        return float((ranks[positive].sum() - positives * (positives + 1) / 2) / pairs)

    def _whole(self):
        if not self.scores:
            return np.zeros(0, "float32"), np.zeros(0, bool)
        self.scores, self.labels = [np.concatenate(self.scores)], [np.concatenate(self.labels)]
        return self.scores[0], self.labels[0]

    def state_dict(self):
        """What it has counted: name -> array."""
        scores, labels = self._whole()
        return {"scores": scores, "labels": labels.astype("uint8")}

    def set_state_dict(self, state):
        self.scores = [np.asarray(state["scores"], "float32").reshape(-1)]
        self.labels = [np.asarray(state["labels"]).reshape(-1) > 0]


# ----------------------------------------------------------------------------- the kinds of task


@dataclasses.dataclass(frozen=True)
class Classes:
    """One of ``class_num`` classes: softmax cross-entropy, accuracy. Labels int64, from 0 to class_num - 1."""

    class_num: int
    label_dtype = "int64"
    exports = ("logits", "probabilities")

    @property
    def out_size(self):
        return self.class_num

    def losses(self, logits, label):
        """Cross-entropy of each example [B, 1]; what it is for a label below 0 means nothing."""
        return F.cross_entropy(logits, label, ignore_index=-1, reduction="none")

    def numpy_losses(self, logits, label):
        with np.errstate(invalid="ignore"):  # logits that are not finite: the loss is not either, which is told
            shifted = logits - logits.max(axis=1, keepdims=True)
        return np.log(np.exp(shifted).sum(axis=1)) - np.take_along_axis(shifted, label[:, None].astype(int), 1)[:, 0]

    def metrics(self):
        """Name -> metric."""
        return {"Accuracy": Mean(lambda logits, label: logits.argmax(axis=1) == label)}

    def export(self, logits):
        """Output name -> tensor."""
        return {"logits": logits, "probabilities": F.softmax(logits)}


@dataclasses.dataclass(frozen=True)
class Binary:
    """Yes or no: sigmoid cross-entropy, AUC and log-loss. Labels 0 or 1, any dtype.

    Args:
        positive_weight: weight of the positives in the loss (not in the metrics).
    """

    positive_weight: float = 1.0
    label_dtype = "float32"
    exports = ("logits", "probabilities")
    out_size = 1

    def losses(self, logits, label):
        """Sigmoid cross-entropy of each example [B, 1], from the logit: stable at any size of it."""
        return -(self.positive_weight * label * F.log_sigmoid(logits) + (1.0 - label) * F.log_sigmoid(-logits))

    def numpy_losses(self, logits, label):
        positive, negative = np.logaddexp(0, -logits[:, 0]), np.logaddexp(0, logits[:, 0])
        return self.positive_weight * label * positive + (1 - label) * negative

    def metrics(self):
        return {"auc": Auc(), "logloss": Mean(Binary().numpy_losses)}

    def export(self, logits):
        # e to the log of the sigmoid: the legacy programs of Paddle 3.x build no sigmoid
        return {"logits": logits, "probabilities": math.e ** F.log_sigmoid(logits)}


@dataclasses.dataclass(frozen=True)
class Regression:
    """A number: squared or Huber error; mean absolute error and root mean squared error. Labels float32.

    Args:
        huber_delta: error from which the loss grows linearly, not squared; 0: squared everywhere.
    """

    huber_delta: float = 0.0
    label_dtype = "float32"
    exports = ("value",)
    out_size = 1

    def losses(self, output, label):
        """(y - t)^2 of each example [B, 1], or Huber's loss: e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2)."""
        error = output - label
        if not self.huber_delta:
            return error * error
        near = paddle.clip(error, -self.huber_delta, self.huber_delta)
        return near * (error - 0.5 * near)

    def numpy_losses(self, output, label):
        error = output[:, 0] - label
        if not self.huber_delta:
            return error**2
        near = np.clip(error, -self.huber_delta, self.huber_delta)
        return near * (error - near / 2)

    def metrics(self):
        return {
            "mae": Mean(lambda output, label: np.abs(output[:, 0] - label)),
            "rmse": Mean(lambda output, label: (output[:, 0] - label) ** 2, root=True),
        }

    def export(self, output):
        return {"value": output}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the network.

    Args:
        kind: Classes, Binary or Regression.
        suffix: what ends the names of its numbers: 1, 2, ... or _ and the task's name.
        weight: of its loss.
        tower_sizes: widths of its tower's hidden layers.
    """

    kind: object
    suffix: str
    weight: float = 1.0
    tower_sizes: tuple = (50, 50)

    def named(self, values):
        """The same dict with this task's suffix at each name."""
        return {f"{name}{self.suffix}": value for name, value in values.items()}


# ------------------------------------------------------------------- what a batch of them gives


def labelled(task, label):
    """(label with 0 where it is missing, 1 or 0 where it is there or not), float32 or the task's dtype, [B, 1]."""
    label = paddle.reshape(paddle.cast(label, task.kind.label_dtype), [-1, 1])
    there = label == label if isinstance(task.kind, Regression) else label >= 0  # nan is not itself, nor >= 0
    there = paddle.cast(there, "float32")
    return paddle.where(there > 0, label, paddle.zeros_like(label)), there


def losses(tasks, outputs, labels, penalty=None, log_variances=None):
    """What training minimizes, and each task's part of it.

    A task's loss is the mean over its labelled examples, 0 if there is none. They are summed by the
    tasks' weights or, with ``log_variances`` s, as in Kendall et al. 2018 (arXiv 1705.07115): exp(-s)
    times the loss, half of it for a regression, plus s / 2, for s = log of the task's variance.

    Args:
        tasks: Tasks.
        outputs: by task, [B, C].
        labels: by task, [B] or [B, 1].
        penalty: scalar, the gates' terms; None: without.
        log_variances: [T], trained; None: fixed weights.
    Returns:
        {printed name: scalar}: ``loss``, then each task's as ``loss`` and its suffix.
    """
    of_tasks = [_mean_loss(task, output, label) for task, output, label in zip(tasks, outputs, labels)]
    if log_variances is None:
        parts = [task.weight * loss for task, loss in zip(tasks, of_tasks)]
    else:
        parts = []
        for t, (task, loss) in enumerate(zip(tasks, of_tasks)):
            factor = task.weight * (0.5 if isinstance(task.kind, Regression) else 1.0)
            parts.append(factor * loss * paddle.mean(math.e ** -log_variances[t]) + 0.5 * paddle.mean(log_variances[t]))
    total = paddle.add_n(parts)
    if penalty is not None:
        total = total + penalty
    return {"loss": total, **{f"loss{task.suffix}": loss for task, loss in zip(tasks, of_tasks)}}


def _mean_loss(task, output, label):
    label, there = labelled(task, label)
    of_examples = paddle.reshape(task.kind.losses(output, label), [-1, 1])
    # means, not sums: the legacy programs of Paddle 3.x build no sum
    share = paddle.mean(there)
    return paddle.mean(of_examples * there) / (share + paddle.cast(share == 0, "float32"))


def batch_accuracies(tasks, outputs, labels):
    """Accuracy over this batch of each task with classes, for tools that keep no metrics: printed name -> scalar."""
    found = {}
    for task, output, label in zip(tasks, outputs, labels):
        if isinstance(task.kind, Classes):
            label, there = labelled(task, label)
            right = paddle.cast(paddle.topk(output, 1)[1] == label, "float32")
            share = paddle.mean(there)
            found[f"Accuracy{task.suffix}"] = paddle.mean(right * there) / (share + paddle.cast(share == 0, "float32"))
    return found


def create_metrics(tasks):
    """The metrics of all tasks, the loss over the epoch, and each task's: (metrics, names)."""
    metrics = {}
    of_losses = [Mean(task.kind.numpy_losses) for task in tasks]
    for t, (task, of_loss) in enumerate(zip(tasks, of_losses)):
        of_loss.task = t
        for name, metric in task.named(task.kind.metrics()).items():
            metric.task = t
            metrics[name] = metric
    metrics["loss"] = TotalLoss([(task.weight, of_loss) for task, of_loss in zip(tasks, of_losses)])
    metrics.update((f"loss{task.suffix}", of_loss) for task, of_loss in zip(tasks, of_losses))
    return list(metrics.values()), list(metrics)


def beside_the_tasks(tasks, losses):
    """What a batch's loss has beside its tasks' weighted losses; ``losses`` as the function of this name gives them."""
    return losses["loss"] - paddle.add_n([task.weight * losses[f"loss{task.suffix}"] for task in tasks])


def update_metrics(tasks, metrics, outputs, labels, rest=0.0):
    """Count a batch.

    Args:
        tasks: Tasks.
        metrics: as ``create_metrics`` gave them.
        outputs: by task, array [B, C].
        labels: by task, array [B] or [B, 1].
        rest: what the batch's loss has beside the tasks' (``beside_the_tasks``).
    """
    for metric in metrics:
        if metric.task is None:
            metric.update(rest, len(outputs[0]))
    for t, task in enumerate(tasks):
        label = np.asarray(labels[t], "float64").reshape(-1)
        there = ~np.isnan(label) & ((label >= 0) | isinstance(task.kind, Regression))
        output = np.asarray(outputs[t], "float64")[there]
        for metric in metrics:
            if metric.task == t:
                metric.update(output, label[there])


# ----------------------------------------------------------------- the experts that they use


def experts_of_tasks(tasks, weights, over=""):
    """The experts that each task uses, for a log: title -> expert's number, from 0, as text -> weight.

    Args:
        tasks: Tasks.
        weights: by task, array [n].
        over: what a weight is a mean over, if it is one.
    """
    return {
        f"task {task.suffix.strip('_')} experts{over}": {str(i): float(w) for i, w in enumerate(of_task) if w > 0}
        for task, of_task in zip(tasks, weights)
    }


class MeanWeights:
    """Mean weights of per-example gates, over all examples of an evaluation, or over the last batch of training."""

    def __init__(self):
        self.sums, self.examples = (), 0

    def count(self, weights, examples, training):
        """Count a batch: by task, the experts' mean weights, array [n]; in training it replaces the last one."""
        sums = [np.asarray(w, "float64") * examples for w in weights]
        if self.examples and not training:
            sums, examples = [a + b for a, b in zip(self.sums, sums)], self.examples + examples
        self.sums, self.examples, self.training = sums, examples, training

    def of_tasks(self, tasks):
        """See ``experts_of_tasks``; {} before the first batch."""
        if not self.examples:
            return {}
        over = f", mean weights over {'the last batch' if self.training else 'all examples'}"
        return experts_of_tasks(tasks, [total / self.examples for total in self.sums], over)
