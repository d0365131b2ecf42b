"""A number: squared or Huber loss; mean absolute error and root mean squared error."""

import numpy as np
import paddle

from dselect_k_model.config_key import Key
from dselect_k_model.kinds.kind import Kind

LARGEST = float(np.finfo(np.float32).max)


class Regression(Kind):
    """A number. Labels are floats; nan: missing."""

    keys = {
        "huber_delta": Key(
            float, 0.0, "The error from which the loss grows linearly instead of squared; 0: squared everywhere.", low=0
        )
    }
    training_keys = ("huber_delta",)
    metrics = ("mae", "rmse")
    loss_factor = 0.5
    exports = ("value",)
    columns = ({"name": "value", "of": "value", "take": "value"},)
    prediction_metric = ("mae", "value", "difference")
    negative_is_missing = False
    label_words = "a number that fits float32"

    def __init__(self, huber_delta=0.0):
        self.huber_delta = huber_delta

    def is_labelled(self, label):
        return label == label  # nan is not itself

    def is_wrong(self, column):
        return abs(column) > LARGEST

    @classmethod
    def suggest(cls, summary):
        variance, remark = summary.deviation() ** 2, f"{summary.least:g} to {summary.greatest:g}"
        if 0.25 <= variance <= 4:
            return {"kind": "regression"}, remark
        weight = np.format_float_positional(float(f"{1 / variance:.2g}"), trim="0")  # YAML takes 1e-05 for a text
        return {"kind": "regression", "weight": weight}, f"1 / variance, so that the losses are of one size; {remark}"

    def losses(self, output, label):
        """(y - t)^2, or Huber's loss: e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2)."""
        error = output - label
        if not self.huber_delta:
            return error * error
        near = paddle.clip(error, -self.huber_delta, self.huber_delta)
        return near * (error - 0.5 * near)

    def numbers(self, output):
        return output[:, 0]

    def export(self, output):
        return {"value": output}
