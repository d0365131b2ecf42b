"""One of several classes: softmax cross-entropy, accuracy."""

import numpy as np
import paddle
import paddle.nn.functional as F

from dselect_k_model.config_key import REQUIRED, Key
from dselect_k_model.kinds.kind import Kind

MOST_SUGGESTED = 1000  # classes; a column of more whole numbers is taken for a regression


class Classes(Kind):
    """One of ``classes`` classes. Labels are int64, from 0 to classes - 1; below 0: missing."""

    keys = {"classes": Key("classes", REQUIRED, "The number of classes, or their names as the table has them.")}
    metrics = ("accuracy",)
    label_dtype = "int64"
    exports = ("logits", "probabilities")
    columns = (
        {"name": "prediction", "of": "logits", "take": "argmax"},
        {"name": "prediction", "of": "probabilities", "take": "argmax"},
        {"name": "probability", "of": "probabilities", "take": "max"},
    )
    prediction_metric = ("Accuracy", "prediction", "equal")

    def __init__(self, classes):
        self.out_size = self.class_num = classes if isinstance(classes, int) else len(classes)
        self.label_words = f"a class: a whole number from 0 to {self.class_num - 1}"
        if not isinstance(classes, int):
            self.name_classes(classes)

    def out_of_range(self, label):
        return np.asarray(label) >= self.class_num

    def is_wrong(self, column):
        return (column != np.floor(column)) | (column < 0) | (column >= self.class_num)

    @classmethod
    def suggest(cls, summary):
        if not summary.whole or summary.least < 0 or not 1 < summary.greatest < MOST_SUGGESTED:
            return None  # 0 and 1 are yes and no
        remark, least = f"{summary.least:g} to {summary.greatest:g}", summary.least
        if least:
            empty = "class 0 is" if least == 1 else f"classes 0 to {least - 1:g} are"
            remark += f"; classes start at 0: {empty} empty; subtract {least:g}"
        return {"classes": int(summary.greatest) + 1}, remark

    def losses(self, output, label):
        """Softmax cross-entropy."""
        return F.cross_entropy(output, label, ignore_index=-1, reduction="none")

    def batch_metrics(self, output, label):
        return {"Accuracy": paddle.cast(paddle.topk(output, 1)[1] == label, output.dtype)}

    def decisions(self, output):
        return output.argmax(axis=1)

    def log_probabilities(self, output):
        shifted = output - output.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def export(self, output):
        return {"logits": output, "probabilities": F.softmax(output)}
