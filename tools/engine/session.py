"""A training run's saves: after each epoch, inside one, when a signal ends it; and where to go on."""

import json
import logging
import os
import signal

from engine import checkpoint
from engine.device import set_seeds
from engine.errors import Stopped, UserError

LOG = logging.getLogger("engine")
LAST_STEP = "last_step"  # the folder saved inside an epoch; gone once the epoch is
# Settings that a resumed run may change without a word: they do not decide what the steps compute,
# but for epochs, of which a line in the log tells.
FREE = (
    "epochs print_interval use_gpu use_xpu use_npu num_workers use_visual strict resume save_interval_steps keep_last "
    "model_save_path model_init_path train_data_dir test_data_dir thread_num use_auc auc_num use_save_data "
    "use_inference save_inference_feed_varnames save_inference_fetch_varnames infer_batch_size infer_reader_path "
    "infer_load_path infer_start_epoch infer_end_epoch infer_drop_last"
).split()


class Session:
    """Saves a training run and takes it up again.

    Random states are not saved: paddle, numpy and random are seeded anew before each step, from the
    seed and the position, in a resumed run as in any other.

    Args:
        graph: DynamicGraph or StaticGraph.
        config: flat config dict.
        settings: the tools' own settings.
    """

    def __init__(self, graph, config, settings):
        self.graph, self.settings = graph, settings
        decisive = {key: value for key, value in config.items() if key.startswith(("runner.", "hyper_parameters."))}
        self.config = json.loads(json.dumps(decisive, default=str))  # as the manifest will give it back
        self.parent = settings.model_save_path
        self.lock = checkpoint.lock(self.parent)  # held until the process ends
        self.stop_signal = None

    # ---- going on

    def first(self):
        """(epoch, batch) to begin at, the state of a saved run taken up if ``runner.resume`` says so."""
        folder, manifest = self._save_to_resume()
        if folder is None:
            return 0, 0
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
        LOG.info("resumed from %s: epoch %d, batch %d", folder, *position)
        return position

    def _save_to_resume(self):
        """(folder, its manifest or None), or (None, None) if training starts anew."""
        choice = self.settings.resume
        if choice == "off":
            return None, None
        if choice != "auto":
            return choice, checkpoint.read_manifest(choice)
        names = [LAST_STEP] + [str(epoch) for epoch in checkpoint.saved_epochs(self.parent)]
        folders = [os.path.join(self.parent, name) for name in names]
        found = []
        for folder in folders:
            if os.path.isdir(folder):
                try:
                    manifest = checkpoint.read_manifest(folder)
                except UserError as error:
                    LOG.warning("not resumed from: %s", error)
                    continue
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
        changed = sorted(
            key for key in set(saved) | set(self.config)
            if saved.get(key) != self.config.get(key) and key.split(".", 1)[-1] not in FREE
        )  # fmt: skip
        if not changed:
            return
        shown = checkpoint.shown
        told = "; ".join(f"{key}: {shown(saved.get(key))} then, {shown(self.config.get(key))} now" for key in changed)
        told = checkpoint.clipped(told, 1500)
        if position[1] or any(key.startswith("hyper_parameters.") for key in changed):
            raise UserError(
                f"{folder} was saved under another config ({told}), under which its training cannot go on. "
                "Restore these, or start from its weights with runner.model_init_path."
            )
        LOG.warning("resumed under another config: %s", told)

    # ---- saving

    def before_step(self, epoch, batch_id):
        """Make what is random in the step depend on its position alone."""
        set_seeds(self.settings.seed, epoch, batch_id)

    def after_step(self, epoch, batch_id):
        """Save if it is due, and end the run if a signal has come."""
        interval, done = self.settings.save_interval_steps, batch_id + 1
        if self.stop_signal is not None or (interval and done % interval == 0):
            self._save(LAST_STEP, epoch, done)
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)

    def after_epoch(self, epoch):
        """Save the epoch."""
        self._save(epoch, epoch + 1, 0)
        checkpoint.remove(self.parent, LAST_STEP)
        if self.settings.keep_last:
            for old in checkpoint.saved_epochs(self.parent):
                if old <= epoch - self.settings.keep_last:
                    checkpoint.remove(self.parent, old)
        self.graph.write_data(self.parent)

    def _save(self, name, epoch, batch):
        with checkpoint.new_folder(self.parent, name) as folder:
            self.graph.write(folder)
            checkpoint.write_manifest(
                folder, graph=self.graph.name, epoch=epoch, batch=batch,
                schedule=self.graph.schedule_state(), config=self.config,
            )  # fmt: skip

    # ---- signals

    def listen(self):
        """From now on SIGTERM and Ctrl-C end the run after the step under way; a second one ends it at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number, _):
        LOG.info("%s: saving after this step; once more ends at once", signal.Signals(number).name)
        self.stop_signal = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
