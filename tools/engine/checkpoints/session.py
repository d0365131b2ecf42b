"""One training run on the disk: resuming, writing and deleting checkpoints, ending on a signal or by patience."""

import collections
import logging
import math
import os
import signal
import threading

from engine import directions
from engine.checkpoints import agreement, compatibility, folders, manifests, which
from engine.config import all_defaults
from engine.errors import Stopped, UserError, clipped, shown
from engine.interface import offered
from engine.journal import SILENT
from engine.keys import RUNNER_KEYS
from engine.processes import STOP_SIGNALS
from engine.seeds import set_seeds

LOG = logging.getLogger("engine")
# so_far, counted: state of the meter and of the graph's metrics, None at an epoch's beginning;
# run: the id of the resumed run, None if training starts from scratch
Start = collections.namedtuple("Start", "epoch batch so_far counted run", defaults=(0, 0, None, None, None))


class Session:
    """A training run and its folder of checkpoints. Leaving the ``with`` block unlocks the folder.

    Random states are not part of a checkpoint. Instead paddle, numpy and random are seeded before each batch is loaded
    and before each step, from ``runner.seed`` and the position. So a resumed run draws what an uninterrupted one does.
    (What a reader draws is so with ``num_workers`` 0 only: worker processes read ahead.)

    Args:
        graph: DynamicGraph or StaticGraph.
        config: flat config dict.
        settings: the tools' own settings.
        meter: Meter, whose state inside an epoch is part of a checkpoint.
        validated: names of the validation's metrics; None without a validation.
        journal: gets a record of each checkpoint.
        higher_is_better: metric -> bool; None: ``graph.higher_is_better()``.
    Raises:
        UserError: the folder is in use, cannot be written, or has no room for a checkpoint; or keys contradict.
    """

    def __init__(self, graph, config, settings, meter, validated=None, journal=SILENT, higher_is_better=None):
        self.graph, self.settings, self.meter, self.journal = graph, settings, meter, journal
        self.processes = settings.processes
        if settings.patience and (validated is None or not settings.keep_best):
            missing = "validation_data_dir" if validated is None else "keep_best"
            raise UserError(f"runner.patience is set, but {missing} is not: it needs a metric of the validation.")
        self.source = which.TRAINING if validated is None else which.VALIDATION
        stated = graph.higher_is_better() if higher_is_better is None else higher_is_better
        best = settings.keep_best
        self.is_guessed = best is not None and not directions.stated([best], stated)
        self.higher_is_better = {**stated, best: directions.guessed(best)} if self.is_guessed else stated
        keys = {key: value for key, value in config.items() if key.startswith(("runner.", "hyper_parameters."))}
        self.config = manifests.as_saved(keys)
        self.parent = settings.model_save_path
        self.stop_signal = None
        self.handlers = {}  # of signals, as they were before ``listen``
        self.undone = 0  # steps in a row
        self.unchecked_best = settings.keep_best  # until the names of the metrics are known
        self.lock = None
        try:
            self.processes.first(self._lock, takes_long=True)
            if validated is not None:
                self._check_keep_best(validated, "the validation")
        except UserError:
            self._unlock()
            raise
        self.encoding = compatibility.digests(graph.package.encoding)
        self.run = self.processes.first(which.new_run_id)  # ``first`` replaces it by the resumed run's

    def _lock(self):
        self.lock = folders.lock(self.parent)
        parts = self.processes.number if self.graph.shards.exist else 1  # this process has one of them
        folders.check_room(self.parent, self.graph.parameters(), parts)

    def _unlock(self):
        if self.lock is not None:
            self.lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Unlock the folder and restore the signal handlers."""
        self._unlock()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def first(self):
        """Resume if so configured: (epoch, batch, state of the meter, state of the graph's metrics) to begin with."""
        start = resume(self.graph, self.settings, self.config)
        self.run = start.run or self.run
        if self.settings.resume == "auto" and start.epoch and not start.batch:
            # the killed run may not have come to that
            self.processes.first(lambda: self._clear_away(start.epoch - 1), takes_long=True)
        agreement.reach(self.graph, "at the start")
        so_far = start[2:4] if self.processes.is_first else (None, None)  # it has the counts of all processes
        return (*start[:2], *so_far)

    def is_over(self, epoch):
        """Whether ``patience`` has run out before ``epoch``. Read from the manifests, so that a resumed run agrees."""
        if not self.settings.patience:
            return False
        found = self.processes.first(lambda: self.best(epoch - 1), takes_long=True)
        if found is None or epoch - 1 - found < self.settings.patience:
            return False
        name = self.settings.keep_best
        LOG.info("%s has not been better since epoch %d: training ends (runner.patience)", name, found)
        return True

    # ---- steps

    def before_batch(self, epoch, batch_id):
        """Seed what a reader draws while it loads the batch: the same on all processes."""
        set_seeds(self.settings.seed, epoch, batch_id, 1)

    def before_step(self, epoch, batch_id):
        """Seed what the step draws: on each process something else."""
        set_seeds(self.settings.seed, epoch, batch_id, *([] if self.processes.is_first else [0, self.processes.rank]))
        if self.settings.skip_not_finite:
            self.before = self.graph.snapshot()

    def after_step(self, epoch, batch_id, not_finite):
        """Undo the step after a NotFinite (else None), save if it is due, and end the run after a signal."""
        if not_finite is not None:
            self._undo(not_finite, epoch, batch_id)
        else:
            self.undone = 0
            if self.unchecked_best is not None:  # at the first step, not an epoch later
                self._check_keep_best(self.meter.numbers(self.graph.metrics()), "a step")
        interval, done = self.settings.save_interval_steps, batch_id + 1
        stops = self.stop_signal is not None if self.processes.number == 1 else self.processes.must_stop
        if stops or (interval and done % interval == 0):
            self._save(which.LAST_STEP, epoch, done, so_far={**self.meter.state(), "counted": self.graph.counted()})
        if stops:
            raise Stopped(self.stop_signal or signal.SIGTERM)

    def _undo(self, error, epoch, batch_id):
        where = f"epoch {epoch}, batch {batch_id}: {error}"
        if self.undone >= self.settings.skip_not_finite:
            raise UserError(
                f"{where}. Training has stopped; earlier checkpoints are untouched. A lower learning rate may help."
            ) from error
        self.undone += 1
        self.graph.restore(self.before)
        LOG.warning("%s. The step is undone, and training continues (runner.skip_not_finite)", where)

    def _check_keep_best(self, known, whose):
        wanted, self.unchecked_best = self.unchecked_best, None
        if wanted is None:
            return
        if wanted not in known:
            raise UserError(f"runner.keep_best is {wanted!r}, but the metrics of {whose} are: {', '.join(known)}.")
        if self.is_guessed:
            LOG.warning(
                "runner.keep_best: the package does not state a direction of %s (higher_is_better); assumed: %s",
                wanted, directions.words(self.higher_is_better[wanted]),
            )  # fmt: skip

    # ---- checkpoints

    def after_epoch(self, epoch, numbers, validation=None):
        """Write the epoch's checkpoint with the metrics of training and validation; delete what it replaces."""
        self._save(epoch, epoch + 1, 0, numbers=numbers, validation=validation)
        self.processes.first(lambda: self._clear_away(epoch), takes_long=True)
        self.graph.write_data(self.parent)

    def _clear_away(self, newest):
        """Delete what the checkpoint of the epoch ``newest`` replaces."""
        folders.remove(self.parent, which.LAST_STEP)
        if self.settings.keep_last:
            self._delete_old(newest)

    def _delete_old(self, newest):
        """Delete what neither ``keep_last`` nor ``keep_best`` keeps, if the newest epoch can be read back."""
        if manifests.read_if_sound(os.path.join(self.parent, str(newest))) is None:
            return
        epochs = self._own_epochs(newest)
        kept = {epoch for epoch in epochs if epoch > newest - self.settings.keep_last}
        if self.settings.keep_best:
            kept.add(self.best(newest))
        for epoch in set(epochs) - kept:
            folders.remove(self.parent, epoch)

    def best(self, newest=math.inf):
        """The best of this run's epochs up to ``newest`` by ``keep_best``; None if there is none, or no such key."""
        name = self.settings.keep_best
        return name and which.best(self.parent, self._own_epochs(newest), name, self.source, self.higher_is_better)

    def results(self):
        """Epoch -> name -> number, for each epoch of this run: the metrics that ``keep_best`` refers to."""
        epochs = self._own_epochs(math.inf)
        return {**{epoch: {} for epoch in epochs}, **which.metrics(self.parent, epochs, self.source)}

    def _own_epochs(self, newest):
        epochs = [epoch for epoch in folders.saved_epochs(self.parent) if epoch <= newest]
        return [epoch for epoch in epochs if which.checkpoint(self.parent, epoch).run == self.run]

    def _save(self, name, epoch, batch, **counted):
        agreement.reach(self.graph, f"at epoch {epoch}, batch {batch}")
        with self.graph.whole():
            self.processes.first(lambda: self._write(name, epoch, batch, **counted), takes_long=True)

    def _write(self, name, epoch, batch, numbers=None, validation=None, so_far=None):
        metrics = {**(numbers or {}), **(validation or {})}
        with folders.new_folder(self.parent, name) as folder:
            self.graph.write(folder)
            manifests.write(
                folder, self.graph.parameters(), graph=self.graph.name, run=self.run, epoch=epoch, batch=batch,
                schedule=self.graph.schedule_state(), so_far=so_far, config=self.config,
                processes=self.processes.number,
                numbers=_finite(numbers or {}), validation=None if validation is None else _finite(validation),
                higher_is_better=directions.stated(metrics, self.higher_is_better),
                **({"encoding": self.encoding} if self.encoding else {}),
            )  # fmt: skip
        where = {"folder": os.path.join(self.parent, str(name)), "next_epoch": epoch, "next_batch": batch}
        self.journal.record("save", **where)

    # ---- signals

    def listen(self):
        """From now on SIGTERM, Ctrl-C and a closed terminal end the run after its step; a second signal, at once.

        All processes of a job end after the same step. They pass over further signals, for the launcher repeats
        what the terminal has sent.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP, a shell's script SIGINT
                self.handlers[number] = signal.signal(number, self._stop)
                if self.processes.number > 1 and hasattr(signal, "siginterrupt"):
                    signal.siginterrupt(number, False)  # Paddle's store fails where a signal interrupts it

    def _stop(self, number, _):
        self.stop_signal, self.processes.is_told_to_stop = self.stop_signal or number, True
        if self.processes.number > 1:
            LOG.info("%s: saving after this step or the next", signal.Signals(number).name)
            return
        LOG.info("%s: saving after this step; a second signal ends the run at once", signal.Signals(number).name)
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)


def _finite(numbers):
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


# ------------------------------------------------------------------------------------- resume


def resume(graph, settings, config):
    """Load the checkpoint that ``runner.resume`` asks for into the graph. Returns its Start.

    Raises:
        UserError: the checkpoint is missing or broken, or its config does not fit.
    """
    folder, manifest = settings.processes.first(lambda: which.to_resume(settings), takes_long=True)
    if folder is None:
        return Start()
    weights_only = "Use runner.model_init_path to start from its weights"
    if manifest is None:
        raise UserError(f"{folder}: without {manifests.MANIFEST} its position is unknown. {weights_only}.")
    position = manifest["epoch"], manifest["batch"]
    if manifest["graph"] != graph.name:
        raise UserError(
            f"{folder}: it was saved by the {clipped(manifest['graph'])} graph. {weights_only}, or continue with the "
            "tool that saved it."
        )
    defaults = manifests.as_saved(all_defaults(offered(graph.model, "config_defaults")))
    _check_config(*(_with_defaults(each, defaults) for each in (manifest["config"], config)), folder, position)
    graph.resume(folder, manifest["schedule"])
    LOG.info("resumed from %s: epoch %d, batch %d", folder, *position)
    _tell_of_other_number(manifest.get("processes", 1), settings.processes.number)
    so_far, counted = manifest["so_far"], None
    if so_far is not None:
        if settings.use_save_data:
            LOG.warning("result.npy of epoch %d will begin with batch %d: earlier ones are not saved", *position)
        counted = so_far.pop("counted")
    return Start(*position, so_far, counted, manifest["run"])


def _tell_of_other_number(before, now):
    if before != now:
        LOG.warning(
            "this run had %d processes and has %d now: each computes other rows of a batch, so the sums round "
            "otherwise, dropout and noise are drawn anew, and a reader with shares of its own gives other batches",
            before, now,
        )  # fmt: skip


def _with_defaults(config, defaults):
    """Fill in defaults, so that omitting a key equals writing its default."""
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def _check_config(saved, config, folder, position):
    """Refuse a config under which the run would end elsewhere; warn about other changes."""
    key = "runner.epochs"
    if saved.get(key) != config.get(key):
        values = shown(saved.get(key)), config.get(key)
        LOG.warning("%s was %s and is %s now: a schedule over the whole run changes its course", key, *values)
    changed = sorted(key for key in {*saved, *config} if saved.get(key) != config.get(key) and _decides_steps(key))
    if not changed:
        return
    pairs = (f"{key} was {shown(saved.get(key))} and is {shown(config.get(key))} now" for key in changed)
    differences = clipped("; ".join(pairs), 1500)
    if position[1] or any(key.startswith("hyper_parameters.") for key in changed):
        raise UserError(
            f"{folder} was saved under another config ({differences}), so its run cannot be resumed. "
            "Restore these values, or start from its weights with runner.model_init_path."
        )
    LOG.warning("resumed under another config: %s", differences)


def _decides_steps(key):
    """Whether a key decides what a training step computes. Any key of the package may."""
    known = RUNNER_KEYS.get(key[len("runner.") :]) if key.startswith("runner.") else None
    return known is None or known.decides
