"""What a kind of task is: all that differs between classes, yes or no, numbers, and kinds of the user's own.

Shapes in comments: B batch, C width of the task's output, N labelled examples.
"""

from __future__ import annotations

import numpy as np

from dselect_k_model.metrics import takes


class Kind:
    """A kind of task. A subclass is made with the values of its ``keys``, and overrides what it needs.

    The methods of a kind that metrics read take an output [N, C] as float64 array: ``decisions`` gives a class [N],
    ``scores`` what rises with the probability of a positive [N], ``log_probabilities`` one column a class [N, classes],
    ``numbers`` the predicted number [N]. A metric can be used with the kinds that have its method (``Metric.reads``).
    """

    keys: dict = {}  # its keys in an entry of hyper_parameters.tasks: name -> Key; one with REQUIRED must be given
    training_keys: tuple = ()  # those that shape the training alone: a checkpoint fits other values of them
    metrics: tuple = ()  # names in ``METRICS``, where the config gives none
    out_size = 1  # C
    label_size = 1  # labels of an example
    labels: tuple = ()  # their names, where there are several
    label_dtype: str | None = None  # of the labels; None: the dtype of the output
    loss_factor = 1.0  # of its loss where the tasks' variances are learned (Kendall et al. 2018)
    class_num = 0  # number of classes that ``decisions`` chooses from
    class_names: tuple = ()  # what the labels are in a table, by class, and the predictions; (): numbers
    positive: int | None = None  # the class that f1 is about; None: the mean over all classes
    negatives_kept = 1.0  # the share of negatives that the reader keeps for training
    exports: tuple = ()  # names of what ``export`` gives, the output itself first
    # What predict.py writes: {"name", "of": an exported name, "take": how}, where ``take`` is "value", "argmax", "max"
    # or ["above", threshold]; "names": what to write for 0, 1, ..., if not the number. The first entry whose output has
    # been exported makes the column of a name.
    columns: tuple = ()
    prediction_metric: tuple = ()  # (printed name, column, "equal" or "difference"), for predict.py without model files

    # ---- labels

    def is_labelled(self, label):
        """The label mask, shaped like ``label``, a Paddle tensor or NumPy array. Missing here: below 0, or nan."""
        return label >= 0

    negative_is_missing = True  # as ``is_labelled`` says, for predict.py

    def out_of_range(self, label):
        """Mask of labels that the network cannot take; ``label`` is a NumPy array."""
        return np.zeros(np.shape(label), bool)

    label_words = "a number"  # what a label may be, for messages

    def is_wrong(self, column):
        """Mask of a table's fields that are no label of this kind: ``column`` is float64 [rows], nan where missing."""
        return np.zeros(len(column), bool)

    def from_columns(self, columns):
        """Labels from a table: float64 arrays [rows], nan where missing -> [rows], or [rows, label_size]."""
        labels = np.stack(columns, axis=1) if self.label_size > 1 else columns[0]
        dtype = self.label_dtype or "float32"
        return (np.where(np.isnan(labels), -1, labels) if dtype == "int64" else labels).astype(dtype)

    @classmethod
    def suggest(cls, summary):
        """An entry of ``tasks`` for a column of labels, as make_vocabulary.py prints it; None: not this kind.

        Args:
            summary: of the column: least, greatest, mean, deviation(), whole (all numbers are), and log: mean and
                deviation() of log(1 + number), if none is below 0.
        Returns:
            ({key: value}, a remark), or None.
        """
        return None

    def name_classes(self, names):
        """Have predictions say the names of the classes."""
        self.class_names = tuple(names)
        self.label_words = f"one of the classes {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        self.columns = tuple(
            {**column, "names": list(names)} if column["name"] == "prediction" else column for column in self.columns
        )

    # ---- training

    def for_training(self, output):
        """The output that training's losses and metrics read, of the network's output [B, C]."""
        return output

    def losses(self, output, label):
        """The loss of each example, Paddle [B, label_size]; any value where the label is missing.

        Args:
            output: Paddle tensor [B, C].
            label: Paddle tensor [B, label_size], 0 where it is missing.
        """
        raise NotImplementedError

    def batch_metrics(self, output, label):
        """For tools that keep no metrics: printed name -> Paddle [B, label_size], whose masked mean is printed."""
        return {}

    # ---- metrics over an epoch, in NumPy

    def create_metrics(self, classes, suffix):
        """The task's metrics: printed name -> metric.

        Args:
            classes: the metrics' classes, as the config asks for them.
            suffix: the task's, which ends a printed name.
        """
        return {metric.printed(suffix): metric(self) for metric in classes}

    def update_metrics(self, metrics, output, label, **about):
        """Count a batch.

        Args:
            metrics: as ``create_metrics`` gave them.
            output: float64 [B, C].
            label: float64 [B, label_size].
            about: ``weight``, float64 [B], and ``group``, int64 [B], where the config has them.
        """
        mask = self.is_labelled(label[:, 0])
        for metric in metrics.values():
            read = {name: item[mask] for name, item in about.items() if takes(metric.update, name)}
            metric.update(getattr(self, metric.reads)(output[mask]), label[mask, 0], **read)

    # ---- serving

    def export(self, output):
        """What an exported model offers: name -> Paddle tensor, for each of ``exports``."""
        raise NotImplementedError

    def label_names(self, suffix):
        """Names of the label columns in what predict.py writes."""
        return [f"label{suffix}"]
