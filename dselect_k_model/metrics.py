"""Metrics of a task, kept over an epoch: one class each, and a row of ``METRICS`` that a config names it by.

A metric is undefined, nan, while nothing it needs has been counted: without a labelled example, or AUC without a
positive. What a metric keeps can be merged, so that several processes can each count a part of the data.
"""

import math

import numpy as np


class Metric:
    """A metric over the labelled examples since the last reset. A subclass gives the attributes and the methods below.

    Args:
        kind: the kind of task (``kinds.Kind``) that it is for.
    """

    name = ""  # as it is printed, before the task's suffix
    reads = ""  # the method of a kind whose result ``update`` gets; a metric is only for kinds that have it
    higher_is_better = True

    def __init__(self, kind=None):
        self.kind = kind
        self.reset()

    def empty(self):
        """What it keeps before the first example: name -> number or array."""
        raise NotImplementedError

    def update(self, prediction, label):
        """Count labelled examples: ``prediction`` [N, ...] as ``reads`` says, ``label`` [N]; float64 arrays."""
        raise NotImplementedError

    def accumulate(self):
        """The metric as a float; nan where it is undefined."""
        raise NotImplementedError

    def merge(self, state):
        """Count what another metric of this class has counted: its ``state_dict()``. Numbers and arrays are added."""
        for name, value in state.items():
            self.kept[name] = self.kept[name] + (value if np.ndim(value) == 0 else np.asarray(value))

    def reset(self):
        self.kept = self.empty()

    def state_dict(self):
        """What it has counted: name -> number or array."""
        return dict(self.kept)

    def set_state_dict(self, state):
        self.reset()
        self.merge(state)


class Mean(Metric):
    """The mean of ``of_examples(prediction, label)`` [N] over the labelled examples."""

    def of_examples(self, prediction, label):
        raise NotImplementedError

    def empty(self):
        return {"sum": 0.0, "count": 0}

    def update(self, prediction, label):
        values = self.of_examples(prediction, label)
        self.kept["sum"] += float(np.sum(values))
        self.kept["count"] += np.size(values)

    def accumulate(self):
        return self.kept["sum"] / self.kept["count"] if self.kept["count"] else math.nan


class Accuracy(Mean):
    """Share of examples whose decision is the label."""

    name, reads = "Accuracy", "decisions"

    def of_examples(self, prediction, label):
        return prediction == label


class LogLoss(Mean):
    """Mean of -log p(label), p being the predicted probability. A yes/no label may be a probability itself."""

    name, reads, higher_is_better = "logloss", "log_probabilities", False

    def of_examples(self, prediction, label):
        if prediction.shape[1] == 2:
            return -(label * prediction[:, 1] + (1 - label) * prediction[:, 0])
        return -np.take_along_axis(prediction, label[:, None].astype(int), axis=1)


class MeanAbsoluteError(Mean):
    """Mean of |y - t|."""

    name, reads, higher_is_better = "mae", "numbers", False

    def of_examples(self, prediction, label):
        return np.abs(prediction - label)


class MeanSquaredError(Mean):
    """Mean of (y - t)^2."""

    name, reads, higher_is_better = "mse", "numbers", False

    def of_examples(self, prediction, label):
        return (prediction - label) ** 2


class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean of (y - t)^2."""

    name = "rmse"

    def accumulate(self):
        return math.sqrt(super().accumulate())


class F1(Metric):
    """2 TP / (2 TP + FP + FN) of the kind's positive class; without one, the mean over all classes that occur.

    A class occurs if it is a label or a decision; the mean is scikit-learn's macro average.
    """

    name, reads = "f1", "decisions"

    def empty(self):
        zeros = np.zeros(self.kind.class_num, int)
        return {"true_positives": zeros, "decided": zeros, "labelled": zeros}

    def update(self, prediction, label):
        right = prediction == label
        for name, classes in (("true_positives", label[right]), ("decided", prediction), ("labelled", label)):
            self.kept[name] = self.kept[name] + np.bincount(classes.astype(int), minlength=self.kind.class_num)

    def accumulate(self):
        occurrences = np.asarray(self.kept["decided"]) + self.kept["labelled"]
        chosen = np.arange(len(occurrences)) if self.kind.positive is None else [self.kind.positive]
        chosen = [i for i in chosen if occurrences[i]]
        if not chosen:
            return math.nan
        return float(np.mean(2 * np.asarray(self.kept["true_positives"])[chosen] / occurrences[chosen]))


class _Ranking(Metric):
    """A metric of the order of the scores. It keeps each example's score and label, five bytes an example."""

    reads = "scores"

    def empty(self):
        return {"scores": np.zeros(0, "float32"), "labels": np.zeros(0, "uint8")}

    def reset(self):
        self.parts = [self.empty()]

    def update(self, prediction, label):
        self.merge({"scores": prediction, "labels": label > 0.5})

    def merge(self, state):
        self.parts.append(
            {name: np.asarray(state[name], part.dtype).reshape(-1) for name, part in self.empty().items()}
        )

    def state_dict(self):
        self.parts = [{name: np.concatenate([part[name] for part in self.parts]) for name in self.empty()}]
        return self.parts[0]

    def _whole(self):
        """(scores [N], whether an example is positive [N])."""
        state = self.state_dict()
        return state["scores"], state["labels"] > 0


class Auc(_Ranking):
    """Area under the ROC curve, exact: the share of pairs (positive, negative) in the right order, ties half."""

    name = "auc"

    def accumulate(self):
        scores, positive = self._whole()
        positives = int(positive.sum())
        pairs = positives * (len(positive) - positives)
        if not pairs:
            return math.nan
        _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # from 1; equal scores share a mean rank
        return float((ranks[positive].sum() - positives * (positives + 1) / 2) / pairs)


class PrAuc(_Ranking):
    """Area under the precision-recall curve as average precision: sum of (R_i - R_{i-1}) P_i over all thresholds."""

    name = "pr_auc"

    def accumulate(self):
        scores, positive = self._whole()
        if not positive.any():
            return math.nan
        _, inverse, counts = np.unique(-scores, return_inverse=True, return_counts=True)
        found = np.bincount(inverse.reshape(-1), weights=positive, minlength=len(counts))  # positives by threshold
        precision = np.cumsum(found) / np.cumsum(counts)
        return float(np.sum(found * precision) / positive.sum())


METRICS = {
    "accuracy": Accuracy,
    "auc": Auc,
    "f1": F1,
    "logloss": LogLoss,
    "mae": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "pr_auc": PrAuc,
    "rmse": RootMeanSquaredError,
}
