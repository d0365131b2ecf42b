"""When a training saves: after each epoch, inside one, and when a signal ends it; and which epochs it keeps."""

import logging
import math
import os
import signal

from engine.errors import Stopped, UserError
from engine.graphs.device import set_seeds
from engine.saves import folders, manifests, resume, runs

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
    Raises:
        UserError: the folder is in use, cannot be written, or has no room for a save.
    """

    def __init__(self, graph, config, settings, meter):
        self.graph, self.settings, self.meter = graph, settings, meter
        if settings.keep_best and not settings.keep_last:
            raise UserError("runner.keep_best is set, but keep_last is 0, which keeps every epoch. Set keep_last too.")
        keys = {key: value for key, value in config.items() if key.startswith(("runner.", "hyper_parameters."))}
        self.config = manifests.as_saved(keys)
        self.parent = settings.model_save_path
        self.lock = folders.lock(self.parent)  # held until the process ends
        folders.check_room(self.parent, graph.parameters())
        self.stop_signal = None
        self.undone = 0  # steps in a row
        self.unchecked_best = settings.keep_best  # until a step has given numbers
        self.run = runs.new_id()  # of a resumed run: the one it began with

    def first(self):
        """Where to begin: (epoch, batch, the meter's state, what the graph's metrics have counted).

        The last two are None at an epoch's beginning. See ``engine.saves.resume.start``.
        """
        start = resume.start(self.graph, self.settings, self.config)
        self.run = start.run or self.run
        return start[:4]

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
            self._check_keep_best()
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

    def _check_keep_best(self):
        """Once there are numbers: find out at the first step, not at the first epoch's end."""
        if self.unchecked_best is None:
            return
        known = self.meter.numbers(self.graph.metrics())
        if self.unchecked_best not in known:
            raise UserError(
                f"runner.keep_best is {self.unchecked_best!r}, but the numbers of a step are: {', '.join(known)}."
            )
        self.unchecked_best = None

    def after_epoch(self, epoch, numbers):
        """Save the epoch.

        Args:
            numbers: name -> float, over the epoch.
        """
        self._save(epoch, epoch + 1, 0, numbers=numbers)
        folders.remove(self.parent, resume.LAST_STEP)
        if self.settings.keep_last:
            self._delete_old(epoch)
        self.graph.write_data(self.parent)

    def _delete_old(self, newest):
        """Delete what ``keep_last`` and ``keep_best`` do not keep, if the newest epoch can be read back."""
        if manifests.read_if_sound(os.path.join(self.parent, str(newest))) is None:
            return
        names = [str(epoch) for epoch in folders.saved_epochs(self.parent) if epoch <= newest]
        epochs = [int(save.name) for save in runs.saves(self.parent, names) if save.run == self.run]
        kept = {epoch for epoch in epochs if epoch > newest - self.settings.keep_last}
        if self.settings.keep_best:
            known = {epoch: manifests.read_if_sound(os.path.join(self.parent, str(epoch))) for epoch in epochs}
            kept.add(_best(known, self.settings.keep_best))
        for epoch in set(epochs) - kept:
            folders.remove(self.parent, epoch)

    def _save(self, name, epoch, batch, numbers=None, so_far=None):
        finite = {key: value for key, value in (numbers or {}).items() if math.isfinite(value)}
        with folders.new_folder(self.parent, name) as folder:
            self.graph.write(folder)
            manifests.write(
                folder, self.graph.parameters(), graph=self.graph.name, run=self.run, epoch=epoch, batch=batch,
                schedule=self.graph.schedule_state(), numbers=finite, so_far=so_far, config=self.config,
            )  # fmt: skip

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


def _best(manifest_of, name):
    """The epoch whose mean of ``name`` is the smallest, if it is a loss, else the greatest; the later of equals."""
    sign = -1 if "loss" in name.lower() or "cost" in name.lower() else 1
    known = {e: m["numbers"][name] for e, m in manifest_of.items() if m is not None and name in m["numbers"]}
    return max(known, key=lambda epoch: (sign * known[epoch], epoch), default=None)
