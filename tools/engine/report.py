"""The end of a run in a few lines: what it came to, and what to type next. Its beginning and end in the JSON log."""

import logging
import os
import signal
import time

from engine.errors import Stopped
from engine.journal import Journal
from engine.keys import BEST
from engine.meter import rounded
from engine.saves import best, manifests
from engine.saves.resume import LAST_STEP

LOG = logging.getLogger("engine")


class Report:
    """For a ``with`` block around the run: an error that leaves it ends the JSON log too.

    Its lines have no number after a name and a colon, as the log's other lines do: scripts look for these.

    Args:
        commands: Commands, of this run.
        config: flat config dict.
        settings: the tools' own settings.
    """

    def __init__(self, commands, config, settings):
        self.commands, self.config, self.settings = commands, config, settings
        self.journal, self.started = Journal(settings.log_json), time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is not None and kind is not Stopped:
            self.end("error", error=str(error) or kind.__name__)

    def begin(self, **facts):
        """Open the JSON log, and write its first line.

        Raises:
            UserError: it cannot be written.
        """
        self.journal.begin(tool=self.commands.tool, **facts, versions=manifests.versions(), config=self.config)

    def end(self, outcome="done", **facts):
        """Write the JSON log's last line."""
        self.journal.record("end", outcome=outcome, seconds=time.perf_counter() - self.started, **facts)

    def end_of_training(self, results, whose, stop=None):
        """Say what a training has come to.

        Args:
            results: saved epoch -> its numbers, name -> number.
            whose: "training" or "validation".
            stop: the Stopped that ended it, if one did.
        """
        settings, done = self.settings, max(results, default=-1) + 1
        LOG.info(
            "trained %d of %d epochs; this run took %.1f s; saves are in %s",
            done, settings.epochs, time.perf_counter() - self.started, settings.model_save_path,
        )  # fmt: skip
        facts = {"epochs": done, "saves": settings.model_save_path, **self._tell_best(results, whose)}
        if stop is None:
            self._tell_next(self._evaluation(done, whose))
            self.end("done", **facts)
            return
        number = signal.Signals(stop.signal_number).name
        LOG.info("stopped by %s after a step, which is saved in %s", number, self._path_of(LAST_STEP))
        self._tell_next(self.commands.again(resume="auto"))
        self.end("stopped", signal=number, **facts)

    def _path_of(self, name):
        return os.path.join(self.settings.model_save_path, name)

    def end_of_evaluation(self, results, can_be_exported):
        """Say what an evaluation has come to.

        Args:
            results: epoch -> its numbers, name -> number.
            can_be_exported: whether tools/export.py is for this package.
        """
        epochs = "1 epoch" if len(results) == 1 else f"{len(results)} epochs"
        LOG.info("evaluated %s; this run took %.1f s", epochs, time.perf_counter() - self.started)
        facts = self._tell(results, max(results), "last epoch: {} (of the test data)")
        if can_be_exported:  # the test data are no way to choose an epoch
            chosen = BEST if self.settings.infer_epoch == BEST else facts["epoch"]
            self._tell_next(self.commands.of("export", export_epoch=chosen))
        self.end("done", **facts)

    def end_of_export(self):
        """Say how to go on from an exported model."""
        if self._can_be_tested():
            on = [name for name in ("use_gpu", "use_xpu", "use_npu") if getattr(self.settings, name) is True]
            self._tell_next(self.commands.of("predict", **dict.fromkeys(on, "false")))  # it computes on the CPU
        self.end("done")

    def _tell_best(self, results, whose):
        """Tell the numbers of the best epoch by ``keep_best``, else of the last one; give them as facts."""
        if not results:
            return {}
        name = self.settings.keep_best
        in_order = best.in_order(results, name) if name else []
        if not in_order:
            return {"best_by": None, **self._tell(results, max(results), f"last epoch: {{}} (of the {whose})")}
        return {"best_by": name, **self._tell(results, in_order[0], f"best epoch: {{}} (by {name} of the {whose})")}

    @staticmethod
    def _tell(results, epoch, words):
        figures = "".join(f", {each} {rounded(number)}" for each, number in results[epoch].items())
        LOG.info("%s%s", words.format(epoch), figures)
        return {"epoch": epoch, "numbers": results[epoch]}

    def _evaluation(self, epochs, whose):
        """The command that evaluates what a training of so many epochs has saved; None without data for it."""
        settings, changes = self.settings, {}
        if not self._can_be_tested():
            return None
        if settings.infer_load_path != settings.model_save_path:
            changes["infer_load_path"] = settings.model_save_path
        if settings.keep_best and whose == "validation":
            changes["infer_epoch"] = BEST
        elif settings.infer_epoch is None and settings.infer_end_epoch < epochs:
            changes["infer_end_epoch"] = epochs
        return self.commands.of({"trainer": "infer", "static_trainer": "static_infer"}[self.commands.tool], **changes)

    def _can_be_tested(self):
        return self.settings.test_data_dir is not None and self.settings.infer_batch_size is not None

    @staticmethod
    def _tell_next(command):
        if command is not None:
            LOG.info("next: %s", command)
