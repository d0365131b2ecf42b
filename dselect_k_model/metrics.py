"""Metrics of a task, kept over an epoch: one class each, and a row of ``METRICS`` that a config names it by.

A metric is undefined, nan, while nothing it needs has been counted: without a labelled example, or AUC without a
positive. What a metric keeps can be merged, so that several processes can each count a part of the data.

Examples may have weights. A weight of 2 then counts as the example twice, in all metrics but those at K.
"""

import inspect
import math
import re

import numpy as np

from dselect_k_model.users_objects import find


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

    @classmethod
    def printed(cls, suffix):
        """Its name as it is printed, for a task of this suffix."""
        return f"{cls.name}{suffix}"

    def update(self, prediction, label):
        """Count labelled examples: ``prediction`` [N, ...] as ``reads`` says, ``label`` [N]; float64 arrays.

        A subclass's may have further parameters. ``weight=None`` gets the examples' weights, float64 [N], all above 0,
        where the config has weights; a metric without this parameter is then refused. ``group=None`` gets their
        groups, int64 [N]; a metric with this parameter is refused where the config has none.
        """
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

    def update(self, prediction, label, weight=None):
        values = self.of_examples(prediction, label)
        self.kept["sum"] += float(np.sum(values) if weight is None else np.dot(np.reshape(values, -1), weight))
        self.kept["count"] += np.size(values) if weight is None else float(np.sum(weight))

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

    def update(self, prediction, label, weight=None):
        right = (prediction == label) * (1 if weight is None else weight)
        for name, classes, weights in (
            ("true_positives", label, right),
            ("decided", prediction, weight),
            ("labelled", label, weight),
        ):
            self.kept[name] = self.kept[name] + np.bincount(classes.astype(int), weights, self.kind.class_num)

    def accumulate(self):
        occurrences = np.asarray(self.kept["decided"]) + self.kept["labelled"]
        chosen = np.arange(len(occurrences)) if self.kind.positive is None else [self.kind.positive]
        chosen = [i for i in chosen if occurrences[i]]
        if not chosen:
            return math.nan
        return float(np.mean(2 * np.asarray(self.kept["true_positives"])[chosen] / occurrences[chosen]))


class _Ranking(Metric):
    """A metric of the order of the scores. It keeps each example's score and label, and its weight if there are any.

    That is five bytes an example, and four for a weight: scores are compared, and weights kept, as float32.
    """

    reads = "scores"

    def empty(self):
        return {"scores": np.zeros(0, "float32"), "labels": np.zeros(0, "uint8"), "weights": np.zeros(0, "float32")}

    def reset(self):
        self.parts = [self.empty()]

    def update(self, prediction, label, weight=None):
        self.merge({"scores": prediction, "labels": label > 0.5, "weights": [] if weight is None else weight})

    def merge(self, state):
        self.parts.append(
            {name: np.asarray(state[name], part.dtype).reshape(-1) for name, part in self.empty().items()}
        )

    def state_dict(self):
        self.parts = [{name: np.concatenate([part[name] for part in self.parts]) for name in self.empty()}]
        return self.parts[0]

    def _whole(self):
        """(scores [N], whether an example is positive [N], weights float64 [N], all 1 without weights)."""
        state = self.state_dict()
        weights = state["weights"] if len(state["weights"]) else np.ones(len(state["scores"]))
        return state["scores"], state["labels"] > 0, weights.astype("float64")


class Auc(_Ranking):
    """Area under the ROC curve, exact: the share of pairs (positive, negative) in the right order, ties half."""

    name = "auc"

    def accumulate(self):
        scores, positive, weights = self._whole()
        _, inverse = np.unique(scores, return_inverse=True)
        ups, downs = (np.bincount(inverse.reshape(-1), weights * which) for which in (positive, ~positive))
        pairs = ups.sum() * downs.sum()
        return float(np.sum(ups * (np.cumsum(downs) - downs / 2)) / pairs) if pairs else math.nan


class PrAuc(_Ranking):
    """Area under the precision-recall curve as average precision: sum of (R_i - R_{i-1}) P_i over all thresholds."""

    name = "pr_auc"

    def accumulate(self):
        scores, positive, weights = self._whole()
        if not positive.any():
            return math.nan
        _, inverse = np.unique(-scores, return_inverse=True)
        found, all_found = (np.bincount(inverse.reshape(-1), w) for w in (weights * positive, weights))  # by threshold
        precision = np.cumsum(found) / np.cumsum(all_found)
        return float(np.sum(found * precision) / found.sum())


# ------------------------------------------------------------------------------------- within groups


class _Grouped(_Ranking):
    """A metric of the order of the scores within each group, such as the rows of one user: a mean over the groups.

    It keeps eight bytes an example more than the other rankings.
    """

    def empty(self):
        return {**super().empty(), "groups": np.zeros(0, "int64")}

    def update(self, prediction, label, weight=None, group=None):
        weight = [] if weight is None else weight
        self.merge({"scores": prediction, "labels": label > 0.5, "weights": weight, "groups": group})

    def accumulate(self):
        """The mean of ``of_groups`` over the groups for which it is defined."""
        groups = self.state_dict()["groups"]
        if not len(groups):
            return math.nan
        scores, positive, weights = self._whole()
        values, weights = self.of_groups(_Ties(scores, positive, weights, groups))
        defined = ~np.isnan(values) & (weights > 0)
        return float(np.average(values[defined], weights=weights[defined])) if defined.any() else math.nan

    def of_groups(self, ties):
        """(value, nan where it is undefined; weight) of each group, two arrays [G]; ``ties``: _Ties."""
        raise NotImplementedError


class _Ties:
    """Examples by group and, within a group, from the highest score to the lowest; those of one score are a tie.

    N examples, T ties, G groups. Arguments: arrays [N], as ``_Ranking._whole`` gives them, and the groups.
    """

    def __init__(self, scores, positive, weights, groups):
        order = np.lexsort((-scores, groups))
        scores, positive, groups, self.weights = scores[order], positive[order], groups[order], weights[order]
        new_group = np.concatenate([[True], groups[1:] != groups[:-1]])
        new_tie = new_group | np.concatenate([[True], scores[1:] != scores[:-1]])
        self.positive, self.tie = positive, np.cumsum(new_tie) - 1  # of each example
        self.group = (np.cumsum(new_group) - 1)[new_tie]  # of each tie
        self.first = np.flatnonzero(new_group[new_tie])  # tie of each group
        self.sizes = np.bincount(self.tie)
        begins = np.flatnonzero(new_tie)
        self.ranks = begins - begins[self.first][self.group]  # of each tie's first example, from 0

    def add(self, of_examples):
        """The sum of an array [N] within each tie: float64 [T]."""
        return np.bincount(self.tie, of_examples)

    def add_groups(self, of_ties):
        """The sum of an array [T] within each group: float64 [G]."""
        return np.bincount(self.group, of_ties)


class GroupAuc(_Grouped):
    """AUC within each group that has a positive and a negative; their mean by the groups' examples or weights."""

    name = "gauc"

    def of_groups(self, ties):
        ups, downs = ties.add(ties.weights * ties.positive), ties.add(ties.weights * ~ties.positive)
        all_ups, all_downs = ties.add_groups(ups), ties.add_groups(downs)
        with np.errstate(invalid="ignore", divide="ignore"):
            # shares, so that one group's large weights do not swallow another's small ones in the sum
            ups, downs = np.nan_to_num(ups / all_ups[ties.group]), np.nan_to_num(downs / all_downs[ties.group])
        above = np.cumsum(downs) - downs
        above -= above[ties.first][ties.group]
        aucs = 1 - ties.add_groups(ups * (above + downs / 2))
        return np.where((all_ups > 0) & (all_downs > 0), aucs, math.nan), all_ups + all_downs


class _AtK(_Grouped):
    """A metric of each group's K examples with the highest scores.

    Where scores are equal, it is the expected value over all orders of these examples. Groups without a positive are
    left out. Weights do not change a group's order or value: each group counts with the mean weight of its examples.
    """

    k = 0  # of a subclass that ``at`` gives

    @classmethod
    def at(cls, k):
        """The metric for this K, a class."""
        return type(f"{cls.__name__}{k}", (cls,), {"k": k, "name": f"{cls.name}_{k}"})

    @classmethod
    def printed(cls, suffix):
        return f"{cls.name}_{suffix.lstrip('_')}"  # the task's number is no digit of K

    def of_groups(self, ties):
        positives = ties.add(ties.positive)
        values, has_positive = self.at_k(ties, positives), ties.add_groups(positives) > 0
        weights = ties.add_groups(ties.add(ties.weights)) / ties.add_groups(ties.sizes)
        return np.where(has_positive, values, math.nan), weights

    def at_k(self, ties, positives):
        """The value of each group [G]; ``positives`` [T] is the number of them in each tie."""
        raise NotImplementedError


class Ndcg(_AtK):
    """Normalised discounted cumulative gain at K: a positive at rank r, from 1, gains 1 / log2(r + 1), others nothing.

    A group's sum over its first K ranks is divided by the greatest that is possible, all positives first.
    """

    name = "ndcg"

    def at_k(self, ties, positives):
        longest = int(min(self.k, (ties.ranks + ties.sizes).max()))
        gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, longest + 2)))])  # of the first 0, 1, ...
        begins, ends = np.minimum(ties.ranks, longest), np.minimum(ties.ranks + ties.sizes, longest)
        found = ties.add_groups(positives / ties.sizes * (gains[ends] - gains[begins]))
        best = gains[np.minimum(ties.add_groups(positives).astype(int), longest)]
        return found / np.where(best > 0, best, 1)


class HitRate(_AtK):
    """Hit rate at K: the share of groups with a positive among their first K examples."""

    name = "hit_rate"

    def at_k(self, ties, positives):
        taken = np.clip(self.k - ties.ranks, 0, ties.sizes)  # how many of a tie are among the first K
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, ties.sizes.max() + 1)))])  # of 0!, 1!, ...
        negatives = ties.sizes - positives.astype(int)
        rest = negatives - taken
        # log of the chance that none of those taken is positive: C(negatives, taken) / C(size, taken)
        none = logs[negatives] - logs[np.maximum(rest, 0)] - logs[ties.sizes] + logs[ties.sizes - taken]
        return 1 - np.exp(ties.add_groups(np.where(rest < 0, -np.inf, none)))


AT_K = {"hit_rate": HitRate, "ndcg": Ndcg}
METRICS = {
    "accuracy": Accuracy,
    "auc": Auc,
    "f1": F1,
    "gauc": GroupAuc,
    "hit_rate_K": HitRate,
    "logloss": LogLoss,
    "mae": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "ndcg_K": Ndcg,
    "pr_auc": PrAuc,
    "rmse": RootMeanSquaredError,
}


def find_metric(name, where):
    """The class of the metric that a config names: a row of ``METRICS``, with a number for K, or the user's own.

    Args:
        name: such as auc, ndcg_10 or module.name.
        where: the config key, for messages.
    Raises:
        ValueError: there is no such metric.
    """
    family, _, number = str(name).rpartition("_")
    if family not in AT_K:
        return find(METRICS, name, where, Metric)
    if not re.fullmatch("[1-9][0-9]{0,8}", number):
        raise ValueError(
            f"{where} has {name}, but {family}_ needs a whole number K from 1: {family}_10 is of each group's 10 "
            "examples with the highest scores."
        )
    return AT_K[family].at(int(number))


def takes(update, name):
    """Whether a metric's or a kind's ``update`` has a parameter for the examples' ``name``: weight or group."""
    parameters = inspect.signature(update).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
