"""Validation during training: the same metrics as ``infer.py`` would print with the validation data as test data."""

import contextlib
import itertools
import types

from engine import loop, progress
from engine.batches import CustomBatches, open_batches
from engine.errors import UserError
from engine.journal import SILENT
from engine.meter import Meter
from engine.seeds import random_states_kept, set_seeds


class Validation:
    """Evaluates the network in training, in a graph of its own, so that nothing it does changes the training.

    Args:
        graph: the DynamicGraph or StaticGraph in training.
        reader: the package's reader, or None: the package makes its own batches.
        config: flat config dict of the training.
        settings: the tools' own settings.
        scalars: function (name, value, epoch) that records a metric elsewhere as well, or None.
        journal: records the metrics as well.
    Raises:
        UserError: the data or the package's wrapper cannot be used for an evaluation.
    """

    def __init__(self, graph, reader, config, settings, scalars, journal):
        if settings.infer_batch_size is None:
            raise UserError("runner.infer_batch_size is missing: validation_data_dir is set, and needs it.")
        config = {**config, "runner.job": "infer", "runner.test_data_dir": config["runner.validation_data_dir"]}
        settings = types.SimpleNamespace(**{**vars(settings), "use_save_data": False})
        self.training, self.seed, self.scalars = graph, settings.seed, scalars
        with random_states_kept():
            if reader is not None:
                self.batches, config = open_batches(reader, settings, config, "validate")
            self.graph = graph.for_evaluation(config, settings)
            by_rows = self.graph.evaluates_by_rows
            if reader is None:
                self.batches = CustomBatches(self.graph.model.create_data_loader(), settings.processes, by_rows)
            elif by_rows:
                self.batches.spread_by_rows()
        bars = progress.bars(settings.progress, self.batches.steps) if settings.processes.is_first else None
        self.meter = self._new_meter(bars, journal)

    def _new_meter(self, open_bar=None, journal=SILENT):
        at_end = self.graph.values_at_end()
        return Meter(
            self.graph.name, "infer", None, None, at_end, "validation", open_bar, journal,
            self.graph.higher_is_better(), self.graph.processes, self.graph.evaluates_by_rows,
        )  # fmt: skip

    def names(self):
        """Names of its metrics. Evaluates one batch, so that a mistake is reported before the first epoch."""
        meter = self._new_meter()
        with self._same_weights_and_seeds():
            loop.evaluate(self.graph, lambda *_: itertools.islice(self.batches(0), 1), 0, meter)
        return list(meter.numbers(self.graph.metrics()))

    def __call__(self, epoch):
        """Evaluate after an epoch, and write the line; returns the metrics by name."""
        with self._same_weights_and_seeds():
            loop.evaluate(self.graph, self.batches, epoch, self.meter)
        metrics = self.meter.close(epoch, self.graph.metrics())
        if self.scalars is not None:
            for name, value in metrics.items():
                self.scalars(name, value, epoch)
        return metrics

    @contextlib.contextmanager
    def _same_weights_and_seeds(self):
        with random_states_kept():
            set_seeds(self.seed)
            self.graph.take(self.training.parameters())
            yield
