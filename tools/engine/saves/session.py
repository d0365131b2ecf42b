"""When a training saves: after each epoch, inside one, and when a signal ends it; and which epochs it keeps."""

import logging
import math
import os
import signal

from engine.errors import Stopped, UserError
from engine.graphs.device import set_seeds
from engine.journal import SILENT
from engine.saves import best, encodings, folders, manifests, resume, runs

LOG = logging.getLogger("engine")
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


class Session:
    """Saves a training run and takes it up again.

    Random states are not saved: paddle, numpy and random are seeded again before each step, from the
    seed and the position, in a resumed run as in any other.

    Args:
        graph: DynamicGraph or StaticGraph.
        config: flat config dict.
        settings: the tools' own settings.
        meter: Meter, whose means of the epoch so far are saved too.
        validated: names of the validation's numbers; None where there is no validation.
        journal: is told of each save.
    Raises:
        UserError: the folder is in use, cannot be written, or has no room for a save; or keys do not fit together.
    """

    def __init__(self, graph, config, settings, meter, validated=None, journal=SILENT):
        self.graph, self.settings, self.meter, self.journal = graph, settings, meter, journal
        if settings.patience and (validated is None or not settings.keep_best):
            missing = "validation_data_dir" if validated is None else "keep_best"
            raise UserError(f"runner.patience is set, but {missing} is not: it ends by a number of the validation.")
        self.source = best.TRAINING if validated is None else best.VALIDATION
        keys = {key: value for key, value in config.items() if key.startswith(("runner.", "hyper_parameters."))}
        self.config = manifests.as_saved(keys)
        self.parent = settings.model_save_path
        self.lock = folders.lock(self.parent)  # held until the process ends
        folders.check_room(self.parent, graph.parameters())
        self.stop_signal = None
        self.undone = 0  # steps in a row
        self.unchecked_best = settings.keep_best  # until there are numbers
        if validated is not None:
            self._check_keep_best(validated, "the validation")
        self.encoding = encodings.digests(graph.package.encoding)
        self.run = runs.new_id()  # of a resumed run: the one it began with

    def first(self):
        """Where to begin: (epoch, batch, the meter's state, what the graph's metrics have counted).

        The last two are None at an epoch's beginning. See ``engine.saves.resume.start``.
        """
        start = resume.start(self.graph, self.settings, self.config)
        self.run = start.run or self.run
        if self.settings.resume == "auto" and start.epoch and not start.batch:
            self._clear_away(start.epoch - 1)  # or a run killed between its last save and this would keep too much
        return start[:4]

    def is_over(self, epoch):
        """Whether ``patience`` has run out before ``epoch`` begins, by the manifests of the epochs before it.

        So a resumed run ends where an undisturbed one does.
        """
        patience, name = self.settings.patience, self.settings.keep_best
        found = best.find(self.parent, self._own_epochs(epoch - 1), name, self.source) if patience else None
        if found is None or epoch - 1 - found < patience:
            return False
        LOG.info("%s has not been better since epoch %d: training ends (runner.patience)", name, found)
        return True

    # ---- saving

    def before_step(self, epoch, batch_id):
        """Make what is random in the step depend on its position alone."""
        set_seeds(self.settings.seed, epoch, batch_id)
        if self.settings.skip_not_finite:
            self.before = self.graph.snapshot()

    def after_step(self, epoch, batch_id, not_finite):
        """Undo the step if it was not finite, save if it is due, and end the run if a signal has come.

        Args:
            not_finite: the step's NotFinite, or None.
        """
        if not_finite is not None:
            self._undo(not_finite, epoch, batch_id)
        else:
            self.undone = 0
            if self.unchecked_best is not None:  # found out at the first step, not at the first epoch's end
                self._check_keep_best(self.meter.numbers(self.graph.metrics()), "a step")
        interval, done = self.settings.save_interval_steps, batch_id + 1
        if self.stop_signal is not None or (interval and done % interval == 0):
            self._save(resume.LAST_STEP, epoch, done, so_far={**self.meter.state(), "counted": self.graph.counted()})
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)

    def _undo(self, error, epoch, batch_id):
        where = f"epoch {epoch}, batch {batch_id}: {error}"
        if self.undone >= self.settings.skip_not_finite:
            raise UserError(
                f"{where}. Training has stopped; the epochs saved before are untouched. A lower learning rate may help."
            ) from error
        self.undone += 1
        self.graph.restore(self.before)
        LOG.warning("%s. The step is undone, and training continues (runner.skip_not_finite)", where)

    def _check_keep_best(self, known, whose):
        wanted, self.unchecked_best = self.unchecked_best, None
        if wanted is not None and wanted not in known:
            raise UserError(f"runner.keep_best is {wanted!r}, but the numbers of {whose} are: {', '.join(known)}.")

    def after_epoch(self, epoch, numbers, validation=None):
        """Save the epoch.

        Args:
            numbers: name -> float, over the epoch.
            validation: the same of the validation after it, or None.
        """
        self._save(epoch, epoch + 1, 0, numbers=numbers, validation=validation)
        self._clear_away(epoch)
        self.graph.write_data(self.parent)

    def _clear_away(self, newest):
        """Delete what the save of the epoch ``newest`` has made superfluous."""
        folders.remove(self.parent, resume.LAST_STEP)
        if self.settings.keep_last:
            self._delete_old(newest)

    def _delete_old(self, newest):
        """Delete what ``keep_last`` and ``keep_best`` do not keep, if the newest epoch can be read back."""
        if manifests.read_if_sound(os.path.join(self.parent, str(newest))) is None:
            return
        epochs = self._own_epochs(newest)
        kept = {epoch for epoch in epochs if epoch > newest - self.settings.keep_last}
        if self.settings.keep_best:
            kept.add(best.find(self.parent, epochs, self.settings.keep_best, self.source))
        for epoch in set(epochs) - kept:
            folders.remove(self.parent, epoch)

    def results(self):
        """The numbers that tell which epoch is best, of each saved epoch of this run: epoch -> name -> number.

        An epoch saved without a validation has none, if they are the validation's.
        """
        epochs = self._own_epochs(math.inf)
        return {**{epoch: {} for epoch in epochs}, **best.numbers(self.parent, epochs, self.source)}

    def _own_epochs(self, newest):
        """The saved epochs of this run up to ``newest``."""
        names = [str(epoch) for epoch in folders.saved_epochs(self.parent) if epoch <= newest]
        return [int(save.name) for save in runs.saves(self.parent, names) if save.run == self.run]

    def _save(self, name, epoch, batch, numbers=None, validation=None, so_far=None):
        with folders.new_folder(self.parent, name) as folder:
            self.graph.write(folder)
            manifests.write(
                folder, self.graph.parameters(), graph=self.graph.name, run=self.run, epoch=epoch, batch=batch,
                schedule=self.graph.schedule_state(), so_far=so_far, config=self.config,
                numbers=_finite(numbers or {}), validation=None if validation is None else _finite(validation),
                **({"encoding": self.encoding} if self.encoding else {}),
            )  # fmt: skip
        where = {"folder": os.path.join(self.parent, str(name)), "next_epoch": epoch, "next_batch": batch}
        self.journal.record("save", **where)

    # ---- signals

    def listen(self):
        """From now on SIGTERM, Ctrl-C and a closed terminal end the run after its step; a second signal, at once."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP, a shell's script SIGINT
                signal.signal(number, self._stop)

    def _stop(self, number, _):
        LOG.info("%s: saving after this step; a second signal ends the run at once", signal.Signals(number).name)
        self.stop_signal = number
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)


def _finite(numbers):
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
