"""Several yes/no labels in one task, such as the tags of a document: each has a logit, and each may be missing."""

import math

from dselect_k_model.config_key import REQUIRED, Key
from dselect_k_model.kinds.binary import Binary
from dselect_k_model.metrics import Metric


class MeanOfLabels(Metric):
    """The mean of one metric over the labels for which it is defined. It counts nothing itself."""

    def __init__(self, metrics):
        self.metrics, self.higher_is_better = metrics, metrics[0].higher_is_better
        super().__init__()

    def empty(self):
        return {}

    def accumulate(self):
        known = [value for value in (metric.accumulate() for metric in self.metrics) if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan


class MultiLabel(Binary):
    """Yes or no for each of ``labels``. Labels are [B, number of labels], 0 or 1; below 0 or nan: missing.

    The loss is the mean over all labels that are not missing. Each metric is printed as the mean over the labels and
    for each label: ``auc_tags``, ``auc_tags_sports``.
    """

    keys = {
        "labels": Key("texts", REQUIRED, "The names of the labels, in the order of the reader's columns."),
        "positive_weight": Binary.keys["positive_weight"],
    }
    columns: tuple = (*Binary.columns, {"name": "prediction", "of": "logits", "take": ["above", 0.0]})
    prediction_metric: tuple = ()

    def __init__(self, labels, positive_weight=1.0):
        if len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(str.isprintable, labels)):
            raise ValueError(f"labels is {list(labels)!r}, but must be at least two different names of one line.")
        super().__init__(positive_weight=positive_weight)
        self.labels, self.out_size, self.label_size = tuple(labels), len(labels), len(labels)

    @classmethod
    def suggest(cls, summary):
        return None  # one column does not show it

    def create_metrics(self, classes, suffix):
        found = {}
        for metric_class in classes:
            by_label = [metric_class(Binary()) for _ in self.labels]
            for column, metric in enumerate(by_label):
                metric.column = column
            name = metric_class.printed(suffix)
            found[name] = MeanOfLabels(by_label)
            found.update(zip([f"{name}_{label}" for label in self.labels], by_label))
        return found

    def update_metrics(self, metrics, output, label, **about):
        for name, metric in metrics.items():
            if not isinstance(metric, MeanOfLabels):
                one = slice(metric.column, metric.column + 1)
                Binary.update_metrics(self, {name: metric}, output[:, one], label[:, one], **about)

    def label_names(self, suffix):
        return [f"label{suffix}_{label}" for label in self.labels]
