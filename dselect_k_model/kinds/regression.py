"""A number: squared or Huber loss; mean absolute error and root mean squared error."""

import math

import numpy as np
import paddle

from dselect_k_model.config_key import Key
from dselect_k_model.kinds.kind import Kind

LARGEST = float(np.finfo(np.float32).max)
# Standard deviation over mean, of amounts for which ``suggest`` gives a log scale. Those spread further than an
# exponential distribution (1). Prices of diamonds have 1.0: on the validation rows, a log scale made their RMSE worse
# by a fiftieth, and their MAE no better.
WIDE = 1.5


class Regression(Kind):
    """A number. Labels are floats; nan: missing.

    The network's output is in standard units: (t - mean) / deviation for a label t, or for log(1 + t) with ``log``.
    Losses are in these units; metrics and exported values in those of the labels.
    """

    keys = {
        "mean": Key(float, 0.0, "The labels' mean, of log(1 + label) with log: make_vocabulary.py prints it."),
        "deviation": Key(float, 1.0, "The labels' standard deviation, likewise.", above=0),
        "log": Key(bool, False, "Whether the task is on a log scale, log(1 + label), for amounts >= 0."),
        "huber_delta": Key(
            float,
            0.0,
            "The error, in deviations, from which the loss grows linearly instead of squared; 0: squared everywhere.",
            low=0,
        ),
    }
    training_keys = ("huber_delta",)
    metrics = ("mae", "rmse")
    loss_factor = 0.5
    exports = ("standardised", "value")  # in the network's units, and in those of the labels
    columns = ({"name": "value", "of": "value", "take": "value"},)
    prediction_metric = ("mae", "value", "difference")
    negative_is_missing = False

    def __init__(self, mean=0.0, deviation=1.0, log=False, huber_delta=0.0):
        self.mean, self.deviation, self.log, self.huber_delta = mean, deviation, log, huber_delta
        self.label_words = f"a number{' >= 0' if log else ''} that fits float32"

    def is_labelled(self, label):
        return label == label  # nan is not itself

    def out_of_range(self, label):
        return np.asarray(label) < 0 if self.log else super().out_of_range(label)

    def is_wrong(self, column):
        wrong = abs(column) > LARGEST
        return wrong | (column < 0) if self.log else wrong

    @classmethod
    def suggest(cls, summary):
        remark = f"{summary.least:g} to {summary.greatest:g}"
        units = {"mean": summary.mean, "deviation": summary.deviation()}
        log = {}
        if summary.least >= 0 and summary.deviation() >= WIDE * summary.mean:
            units = {"mean": summary.log.mean, "deviation": summary.log.deviation()}
            log, remark = {"log": "true"}, f"{remark}, a few far above the mean: on a log scale"
        # YAML takes 1e-05 for a text
        numbers = {name: np.format_float_positional(float(f"{x:.6g}"), trim="0") for name, x in units.items()}
        return {"kind": "regression", **log, **numbers}, remark

    def losses(self, output, label):
        """e^2 for the error e in standard units.

        Or Huber's loss: e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2).
        """
        label = paddle.log1p(label) if self.log else label
        error = output - (label - self.mean) * (1.0 / self.deviation)
        if not self.huber_delta:
            return error * error
        near = paddle.clip(error, -self.huber_delta, self.huber_delta)
        return near * (error - 0.5 * near)

    def numbers(self, output):
        value = output[:, 0] * self.deviation + self.mean
        return np.expm1(np.clip(value, 0.0, math.log(LARGEST))) if self.log else value  # amounts are >= 0

    def export(self, output):
        value = output * self.deviation + self.mean
        # e to the power: the legacy programs of Paddle 3.x build no exp
        value = math.e ** paddle.clip(value, 0.0, math.log(LARGEST)) - 1.0 if self.log else value
        return {"standardised": output, "value": value}
