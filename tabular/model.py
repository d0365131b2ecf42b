"""An exported model in a program of one's own: rows in, the tasks' answers out. See docs/tables.md.

No other module of this package imports the tools: here the model is run as tools/predict.py runs it.
"""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Mapping

import numpy as np

from tabular.vocabulary import Vocabulary

TOOLS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools")
sys.path.insert(0, TOOLS)
try:
    warnings.filterwarnings("ignore", "No ccache found")  # what Paddle says when it is imported
    from engine.checkpoints.compatibility import EncodingFile
    from engine.checkpoints.manifests import digest
    from engine.errors import UserError
    from engine.graphs.process_settings import fast_path_at_first
    from engine.serving.exported import ExportedModel
    from engine.serving.signature import PREFIX
finally:
    sys.path.remove(TOOLS)  # its scripts have names that a user's modules may have

LOG = logging.getLogger("dselect_k")


class Model:
    """An exported model of tables. Several threads may use it: one predicts at a time.

    Args:
        folder: that tools/export.py wrote.
        batch_size: how many rows the network takes at once. The last bits of an answer depend on it and on ``threads``.
        threads: of the mathematics; None: one for each core. Afterwards Paddle Inference sets Paddle's own computations
            to one thread.
    Raises:
        ValueError: the folder has no whole export of a model of tables, or this Paddle cannot run it.
    """

    def __init__(self, folder, batch_size=1024, threads=None):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be a whole number >= 1.")
        self.batch_size, self.lock = batch_size, threading.Lock()
        with _value_errors(), _warnings_alone(), fast_path_at_first():
            self.exported = ExportedModel(folder, threads)
            self.vocabulary = _vocabulary(self.exported)
            self.answers_to_none, _ = self.exported.predicted_of_none()
        self.unknown = {}  # category -> values without an id so far, how many a warning told, the largest share it told

    def predict(self, table):
        """The tasks' answers for some rows.

        Args:
            table: of pandas, pyarrow or polars; or a dict of lists or arrays; or rows: a list of dicts. It needs the
                columns of the vocabulary; others are not read. ``Vocabulary`` says what a field may be.
        Returns:
            Column -> array [N], in the order of the rows: what tools/predict.py writes, without ``index`` and labels.
        Raises:
            ValueError: a column is missing, or a field cannot be read; the message names column and row.
        """
        inputs, unknown = self.vocabulary.inputs_of(_columns(table, self.vocabulary.inputs()))
        starts = range(0, len(inputs[0]), self.batch_size)
        with self.lock, _value_errors(), _warnings_alone():
            self._warn_of_unknown(unknown)
            batches = [self._answers([array[i : i + self.batch_size] for array in inputs]) for i in starts]
        batches = batches or [self.answers_to_none]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _answers(self, inputs):
        columns, _ = self.exported.predicted(inputs)
        return columns

    def _warn_of_unknown(self, unknown):
        """Warn of values without an id: of the first, of a larger share than was told, and of ten times as many."""
        for name, (number, filled, examples) in unknown.items():
            counted, told, told_share = self.unknown.get(name, (0, 0, 0.0))
            counted, share = counted + number, number / max(filled, 1)
            if number and (share > told_share or counted >= 10 * told):
                LOG.warning(
                    f"{100 * share:.0f}% of the values of {name} ({number} of {filled}) are not in "
                    f"{self.vocabulary.path} and count as unknown (id 0), such as {', '.join(map(repr, examples))}"
                )
                told, told_share = counted, max(share, told_share)
            self.unknown[name] = counted, told, told_share


@contextlib.contextmanager
def _value_errors():
    """Turn the tools' UserError into a ValueError."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def _warnings_alone():
    """Log no more than warnings, unless the program has set a level: Paddle's own handler would show everything."""
    logs = [log for log in map(logging.getLogger, ("engine", "dselect_k")) if log.level == logging.NOTSET]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log in logs:
            log.setLevel(logging.NOTSET)


def _vocabulary(exported):
    """The vocabulary in an exported model's folder, which must be that of its training."""
    names = list(exported.signature.get("encoding", ()))
    if len(names) != 1:
        raise ValueError(
            f"{exported.folder}: this export has {len(names)} vocabularies, but a model of tables has one. "
            "Export a model whose reader is tabular.reader."
        )
    path = os.path.join(exported.folder, f"{PREFIX}.{names[0]}")
    vocabulary = Vocabulary(path)
    exported.check_encoding({names[0]: EncodingFile(path, digest(path))})
    return vocabulary


def _columns(table, names):
    """A user's table as ``Vocabulary`` takes it: rows become a dict of lists, name -> [N]."""
    if isinstance(table, Mapping) or (hasattr(table, "__len__") and hasattr(table, "columns")):
        return table
    if not isinstance(table, (list, tuple)):
        raise ValueError(
            "the rows must be a table of pandas, pyarrow or polars, a dict of lists, or a list of dicts, not "
            f"{type(table).__name__}."
        )
    for row, fields in enumerate(table):
        if not isinstance(fields, Mapping):
            raise ValueError(f"row {row} is {fields!r:.100}, but must be a dict: column -> value.")
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"row {row}: there is no {missing[0]!r}. Give None for an empty field.")
    return {name: [fields[name] for fields in table] for name in names}
