"""The summary at the end of a run, with the command to type next; the first and last line of the JSON log."""

import logging
import os
import signal
import time

from engine.checkpoints import manifests
from engine.checkpoints.which import LAST_STEP
from engine.errors import Stopped
from engine.journal import Journal
from engine.keys import BEST
from engine.meter import rounded
from engine.tools import TOOLS, command_line

LOG = logging.getLogger("engine")


class Report:
    """For a ``with`` block around the run: an error that leaves it ends the JSON log too.

    Lines of the summary never contain ``name: <number>``: scripts that read the log look for that pattern.

    Args:
        tool: the Tool of this run.
        config: flat config dict.
        settings: the tools' own settings.
        overrides: texts KEY=VALUE, as given on the command line.
    """

    def __init__(self, tool, config, settings, overrides):
        self.tool, self.config, self.settings, self.overrides = tool, config, settings, overrides
        self.journal, self.started = (
            Journal(settings.log_json if settings.processes.is_first else None),
            time.perf_counter(),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is not None and kind is not Stopped:
            self.end("error", error=str(error) or kind.__name__)
        self.journal.close()

    def begin(self, **facts):
        """Open the JSON log, and write its first line.

        Raises:
            UserError: it cannot be written.
        """
        self.journal.begin(tool=self.tool.name, **facts, versions=manifests.versions(), config=self.config)

    def end(self, outcome="done", **facts):
        """Write the JSON log's last line."""
        self.journal.record("end", outcome=outcome, seconds=time.perf_counter() - self.started, **facts)

    def end_of_training(self, results, best, source, stop=None):
        """Summarise a training run.

        Args:
            results: saved epoch -> its metrics, name -> number.
            best: the best epoch by ``keep_best``, or None.
            source: of the metrics: "training" or "validation".
            stop: the Stopped that ended it, if one did.
        """
        settings, done = self.settings, max(results, default=-1) + 1
        LOG.info(
            "trained %d of %d epochs; this run took %.1f s; checkpoints are in %s",
            done, settings.epochs, time.perf_counter() - self.started, settings.model_save_path,
        )  # fmt: skip
        facts = {"epochs": done, "saves": settings.model_save_path, **self._log_best(results, best, source)}
        if stop is None:
            if self._has_test_data():
                self._log_next(self.tool.next, **self._epochs_to_evaluate(done, source))
            self.end("done", **facts)
            return
        name = signal.Signals(stop.signal_number).name
        path = os.path.join(settings.model_save_path, LAST_STEP)
        LOG.info("stopped by %s after a step, which is saved in %s", name, path)
        self._log_next(self.tool.name, resume="auto")
        self.end("stopped", signal=name, **facts)

    def end_of_evaluation(self, results, can_be_exported):
        """Summarise an evaluation.

        Args:
            results: epoch -> its metrics, name -> number.
            can_be_exported: whether tools/export.py is for this package.
        """
        epochs = "1 epoch" if len(results) == 1 else f"{len(results)} epochs"
        LOG.info("evaluated %s; this run took %.1f s", epochs, time.perf_counter() - self.started)
        facts = self._log_epoch(results, max(results), "last evaluated epoch: {} (of the test data)")
        if can_be_exported:  # test data must not choose an epoch
            chosen = BEST if self.settings.infer_epoch == BEST else facts["epoch"]
            self._log_next(self.tool.next, export_epoch=chosen)
        self.end("done", **facts)

    def end_of_export(self):
        """Say how to use an exported model."""
        if self._has_test_data():
            on = [name for name in ("use_gpu", "use_xpu", "use_npu") if getattr(self.settings, name) is True]
            self._log_next(self.tool.next, **dict.fromkeys(on, "false"))  # predictions are computed on the CPU
        self.end("done")

    def _log_best(self, results, best, source):
        """Log the metrics of the best epoch by ``keep_best``, else of the last one; returns them as facts."""
        if not results:
            return {}
        if best is None:
            return {"best_by": None, **self._log_epoch(results, max(results), f"last epoch: {{}} (of the {source})")}
        name = self.settings.keep_best
        words = f"best epoch: {{}} (by {name} of the {source})"
        return {"best_by": name, **self._log_epoch(results, best, words)}

    @staticmethod
    def _log_epoch(results, epoch, words):
        metrics = "".join(f", {name} {rounded(number)}" for name, number in results[epoch].items())
        LOG.info("%s%s", words.format(epoch), metrics)
        return {"epoch": epoch, "numbers": results[epoch]}

    def _epochs_to_evaluate(self, epochs, source):
        """Keys for the tool that evaluates what a run of so many epochs has saved."""
        settings, changes = self.settings, {}
        if settings.infer_load_path != settings.model_save_path:
            changes["infer_load_path"] = settings.model_save_path
        if settings.keep_best and source == "validation":
            changes["infer_epoch"] = BEST
        elif settings.infer_epoch is None and (settings.infer_end_epoch or epochs) < epochs:
            changes["infer_end_epoch"] = epochs
        return changes

    def _has_test_data(self):
        return self.settings.test_data_dir is not None and self.settings.infer_batch_size is not None

    def _log_next(self, name, **changes):
        LOG.info("next: %s", command_line(TOOLS[name], self.config["yaml_path"], self.overrides, **changes))
