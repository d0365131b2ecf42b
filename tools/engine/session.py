"""A training run's saves: after each epoch, inside one, when a signal ends it; and where to go on."""

import json
import logging
import math
import os
import signal

from engine import checkpoint, runs
from engine.config import all_defaults
from engine.device import set_seeds
from engine.errors import Stopped, UserError

LOG = logging.getLogger("engine")
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
LAST_STEP = "last_step"  # the folder saved inside an epoch; gone once the epoch is
# Settings that a resumed run may change without a word: they do not decide what the steps compute,
# but for epochs, of which a line in the log tells.
FREE = (
    "epochs print_interval use_gpu use_xpu use_npu num_workers use_visual strict resume save_interval_steps keep_last "
    "keep_best skip_not_finite tune_process "
    "model_save_path model_init_path train_data_dir test_data_dir thread_num use_auc auc_num use_save_data "
    "use_inference save_inference_feed_varnames save_inference_fetch_varnames infer_batch_size infer_reader_path "
    "infer_load_path infer_run infer_start_epoch infer_end_epoch infer_drop_last "
    "export_epoch export_path export_format predict_path predict_threads"
).split()


class Session:
    """Saves a training run and takes it up again.

    Random states are not saved: paddle, numpy and random are seeded anew before each step, from the
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
        decisive = {key: value for key, value in config.items() if key.startswith(("runner.", "hyper_parameters."))}
        self.config = _as_saved(decisive)
        self.defaults = _as_saved(all_defaults(getattr(graph.model, "config_defaults", {})))
        self.parent = settings.model_save_path
        self.lock = checkpoint.lock(self.parent)  # held until the process ends
        checkpoint.check_room(self.parent, graph.parameters())
        self.stop_signal = None
        self.undone = 0  # steps in a row
        self.unchecked_best = settings.keep_best  # until a step has given numbers
        self.run = runs.new_id()  # of a resumed run: the one it began with

    # ---- going on

    def first(self):
        """Where to begin, the state of a saved run taken up if ``runner.resume`` says so.

        Returns:
            (epoch, batch, the meter's state, what the graph's metrics have counted); None for the last two
            at an epoch's beginning.
        """
        folder, manifest = self._save_to_resume()
        if folder is None:
            return 0, 0, None, None
        if manifest is None:
            raise UserError(
                f"{folder}: it has no {checkpoint.MANIFEST}, so there is no saying where it was. "
                "Use runner.model_init_path to start from its weights."
            )
        position = manifest["epoch"], manifest["batch"]
        if manifest["graph"] != self.graph.name:
            other = checkpoint.clipped(manifest["graph"])
            raise UserError(
                f"{folder}: it was saved by the {other} graph. Go on with that tool, or use "
                "runner.model_init_path to start from its weights."
            )
        self._check_config(manifest["config"], folder, position)
        self.graph.resume(folder, manifest["schedule"])
        self.run = manifest.get("run", self.run)
        LOG.info("resumed from %s: epoch %d, batch %d", folder, *position)
        if manifest["so_far"] is None:
            return *position, None, None
        if self.settings.use_save_data:
            LOG.warning("result.npy of epoch %d will begin with batch %d: earlier ones are not saved", *position)
        counted = manifest["so_far"].pop("counted")
        return *position, manifest["so_far"], counted

    def _save_to_resume(self):
        """(folder, its manifest or None), or (None, None) if training starts anew."""
        choice = self.settings.resume
        if choice == "off":
            return None, None
        if choice != "auto":
            return choice, checkpoint.read_manifest(choice)
        names = [LAST_STEP] * os.path.isdir(os.path.join(self.parent, LAST_STEP))
        names += [str(epoch) for epoch in checkpoint.saved_epochs(self.parent)]
        saves = runs.saves(self.parent, names)
        newest, found = runs.newest(saves), []
        for save in saves:
            folder = os.path.join(self.parent, save.name)
            manifest = self._manifest(folder) if save.run in (newest, None) else None
            if manifest is not None:
                found.append((folder, manifest))
        if not found:
            LOG.info("nothing to resume from in %s: training starts anew", self.parent)
            return None, None
        return max(found, key=lambda save: (save[1]["saved_at"], save[1]["epoch"], save[1]["batch"]))

    def _check_config(self, saved, folder, position):
        if saved.get("runner.epochs") != self.config.get("runner.epochs"):
            LOG.warning(
                "runner.epochs was %s, now it is %s: a schedule over the whole training has another course",
                checkpoint.shown(saved.get("runner.epochs")), self.config.get("runner.epochs"),
            )  # fmt: skip
        then, now = self._in_force(saved), self._in_force(self.config)
        changed = sorted(
            key for key in set(then) | set(now)
            if then.get(key) != now.get(key) and key.split(".", 1)[-1] not in FREE
        )  # fmt: skip
        if not changed:
            return
        shown = checkpoint.shown
        told = "; ".join(f"{key}: {shown(then.get(key))} then, {shown(now.get(key))} now" for key in changed)
        told = checkpoint.clipped(told, 1500)
        if position[1] or any(key.startswith("hyper_parameters.") for key in changed):
            raise UserError(
                f"{folder} was saved under another config ({told}), under which its training cannot go on. "
                "Restore these, or start from its weights with runner.model_init_path."
            )
        LOG.warning("resumed under another config: %s", told)

    def _in_force(self, config):
        """A config, with the defaults for what it leaves out: whether a key is written down decides nothing."""
        return {**self.defaults, **{key: value for key, value in config.items() if value is not None}}

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
            self._save(LAST_STEP, epoch, done, so_far={**self.meter.state(), "counted": self.graph.counted()})
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)

    def _undo(self, error, epoch, batch_id):
        where = f"epoch {epoch}, batch {batch_id}: {error}"
        if self.undone >= self.settings.skip_not_finite:
            raise UserError(
                f"{where}. Training has stopped; the epochs saved before are as they were. "
                "A lower learning rate may help."
            ) from error
        self.undone += 1
        self.graph.restore(self.before)
        LOG.warning("%s. The step is undone, and training goes on (runner.skip_not_finite)", where)

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
        checkpoint.remove(self.parent, LAST_STEP)
        if self.settings.keep_last:
            self._delete_old(epoch)
        self.graph.write_data(self.parent)

    def _delete_old(self, newest):
        """Delete what ``keep_last`` and ``keep_best`` do not keep, if the newest epoch can be read back."""
        if self._manifest(os.path.join(self.parent, str(newest))) is None:
            return
        names = [str(epoch) for epoch in checkpoint.saved_epochs(self.parent) if epoch <= newest]
        epochs = [int(save.name) for save in runs.saves(self.parent, names) if save.run == self.run]
        kept = {epoch for epoch in epochs if epoch > newest - self.settings.keep_last}
        if self.settings.keep_best:
            manifests = {epoch: self._manifest(os.path.join(self.parent, str(epoch))) for epoch in epochs}
            kept.add(_best(manifests, self.settings.keep_best))
        for epoch in set(epochs) - kept:
            checkpoint.remove(self.parent, epoch)

    def _manifest(self, folder):
        """The folder's manifest; None, and a line in the log, if it cannot be resumed from."""
        try:
            return checkpoint.read_manifest(folder)
        except UserError as error:
            LOG.warning("left out: %s", error)
            return None

    def _save(self, name, epoch, batch, numbers=None, so_far=None):
        finite = {key: value for key, value in (numbers or {}).items() if math.isfinite(value)}
        with checkpoint.new_folder(self.parent, name) as folder:
            self.graph.write(folder)
            checkpoint.write_manifest(
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
        LOG.info("%s: saving after this step; once more ends at once", signal.Signals(number).name)
        self.stop_signal = number
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)


def _as_saved(config):
    """A config as a manifest gives it back."""
    return json.loads(json.dumps(config, default=str))


def _best(manifests, name):
    """The epoch whose mean of ``name`` is the smallest, if it is a loss, else the greatest; the later of equals."""
    sign = -1 if "loss" in name.lower() or "cost" in name.lower() else 1
    known = {e: m["numbers"][name] for e, m in manifests.items() if m is not None and name in m["numbers"]}
    return max(known, key=lambda epoch: (sign * known[epoch], epoch), default=None)
