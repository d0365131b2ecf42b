"""Validation in training: what ``infer.py`` would print of the network, were its test data the validation's."""

import contextlib
import itertools
import types

from engine import loop, progress
from engine.batches import CustomBatches, open_batches
from engine.errors import UserError
from engine.graphs.device import random_states_kept, set_seeds
from engine.journal import SILENT
from engine.meter import Meter


class Validation:
    """Evaluates the network in training, in a graph of its own, so that nothing it does changes the training.

    Args:
        graph: the DynamicGraph or StaticGraph in training.
        reader: the package's reader, or None: the package makes its own batches.
        config: flat config dict of the training.
        settings: the tools' own settings.
        scalars: function (name, value, epoch) that records a number elsewhere as well, or None.
        place: Paddle's place.
        journal: takes the numbers as well.
    Raises:
        UserError: the data or the package's wrapper do not do for an evaluation.
    """

    def __init__(self, graph, reader, config, settings, scalars, place, journal):
        if settings.infer_batch_size is None:
            raise UserError("runner.infer_batch_size is missing: validation_data_dir is set, and needs it.")
        config = {**config, "runner.job": "infer", "runner.test_data_dir": config["runner.validation_data_dir"]}
        settings = types.SimpleNamespace(**{**vars(settings), "use_save_data": False})
        self.training, self.seed, self.scalars = graph, settings.seed, scalars
        with random_states_kept():
            if reader is not None:
                self.batches, config = open_batches(reader, settings, config, "validate", place)
            self.graph = graph.for_evaluation(config, settings)
            if reader is None:
                self.batches = CustomBatches(self.graph.model.create_data_loader())
        open_bar = progress.bars(settings.progress, self.batches.steps)
        self.meter = self._new_meter(open_bar, journal)

    def _new_meter(self, open_bar=None, journal=SILENT):
        at_end = self.graph.values_at_end()
        return Meter(self.graph.name, "infer", None, None, at_end, "validation", open_bar, journal)

    def names(self):
        """Names of its numbers. One batch is evaluated: what is wrong shows before the training, not an epoch later."""
        meter = self._new_meter()
        with self._brought_up_to_date():
            loop.evaluate(self.graph, lambda *_: itertools.islice(self.batches(0), 1), 0, meter)
        return list(meter.numbers(self.graph.metrics()))

    def __call__(self, epoch):
        """Evaluate after an epoch, and write the line: the numbers by name."""
        with self._brought_up_to_date():
            loop.evaluate(self.graph, self.batches, epoch, self.meter)
        numbers = self.meter.close(epoch, self.graph.metrics())
        if self.scalars is not None:
            for name, value in numbers.items():
                self.scalars(name, value, epoch)
        return numbers

    @contextlib.contextmanager
    def _brought_up_to_date(self):
        with random_states_kept():
            set_seeds(self.seed)
            self.graph.take(self.training.parameters())
            yield
