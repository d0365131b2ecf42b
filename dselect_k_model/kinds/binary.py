"""Yes or no: sigmoid cross-entropy, AUC and log-loss."""

import math

import numpy as np
import paddle.nn.functional as F

from dselect_k_model.config_key import STEP, Key
from dselect_k_model.kinds.kind import Kind


class Binary(Kind):
    """Yes or no. Labels are 0 or 1, of any dtype; below 0 or nan: missing."""

    keys = {
        "classes": Key("texts", (), "What the table has for no and for yes, if not 0 and 1: [no, yes], in quotes."),
        "positive_weight": Key(float, 1.0, "The weight of positive examples in the loss; metrics ignore it.", above=0),
        "negatives_kept": Key(
            float,
            1.0,
            "The share of negatives that an epoch of training keeps, drawn by tabular.reader; predictions are for all.",
            above=0,
            high=1,
            decides=STEP,
        ),
    }
    training_keys = ("positive_weight", "negatives_kept")
    metrics = ("auc", "logloss")
    class_num, positive = 2, 1
    exports = ("logits", "probabilities")
    columns = (
        {"name": "prediction", "of": "probabilities", "take": ["above", 0.5]},
        {"name": "prediction", "of": "logits", "take": ["above", 0.0]},
        {"name": "probability", "of": "probabilities", "take": "value"},
    )
    prediction_metric = ("Accuracy", "prediction", "equal")
    label_words = "0 or 1"

    def __init__(self, classes=(), positive_weight=1.0, negatives_kept=1.0):
        self.positive_weight, self.negatives_kept = positive_weight, negatives_kept
        if classes:
            if len(set(classes)) != 2 or not all(name.strip() for name in classes):
                raise ValueError(f"classes is {list(classes)}, but must be two different texts: for no and for yes.")
            self.name_classes(classes)

    def is_wrong(self, column):
        return (column != 0) & (column != 1)

    @classmethod
    def suggest(cls, summary):
        if not summary.whole or summary.least < 0 or summary.greatest > 1:
            return None
        return {"kind": "binary"}, f"{summary.least:g} to {summary.greatest:g}"

    def for_training(self, output):
        """With a share r of the negatives, the odds are 1 / r times those of all: the logit is greater by -log r."""
        return output if self.negatives_kept == 1 else output - math.log(self.negatives_kept)

    def losses(self, output, label):
        """Sigmoid cross-entropy, from the logit: stable at any size of it. A positive's part has its weight."""
        if self.positive_weight == 1:
            return F.binary_cross_entropy_with_logits(output, label, reduction="none")  # one operator
        return -(self.positive_weight * label * F.log_sigmoid(output) + (1.0 - label) * F.log_sigmoid(-output))

    def decisions(self, output):
        return (output[:, 0] > 0).astype(int)

    def scores(self, output):
        return output[:, 0]

    def log_probabilities(self, output):
        logit = output[:, :1]
        rest = np.log1p(np.exp(-np.abs(logit)))
        return np.concatenate([np.minimum(-logit, 0), np.minimum(logit, 0)], axis=1) - rest  # log(1 - p), log(p)

    def export(self, output):
        # e to the log of the sigmoid: the legacy programs of Paddle 3.x build no sigmoid
        return {"logits": output, "probabilities": math.e ** F.log_sigmoid(output)}
