"""Where a training is resumed: from the save asked for, or from the newest sound save of the newest run."""

import collections
import logging
import os

from engine.config import all_defaults
from engine.errors import UserError, clipped, shown
from engine.interface import offered
from engine.keys import RUNNER_KEYS
from engine.saves import folders, manifests, runs

LOG = logging.getLogger("engine")
LAST_STEP = "last_step"  # the folder saved inside an epoch; gone once the epoch is

# so_far, counted: what the meter and the graph's metrics have counted of the epoch, None at its beginning;
# run: the id of the resumed run, None if training starts from scratch
Start = collections.namedtuple("Start", "epoch batch so_far counted run")


def start(graph, settings, config):
    """Take up the state of a saved run if ``runner.resume`` says so.

    Args:
        graph: DynamicGraph or StaticGraph, which takes the state.
        settings: the tools' own settings.
        config: this run's keys, as its manifests will have them.
    Returns:
        Start.
    Raises:
        UserError: the save asked for is missing or broken, or was made under a config that does not fit.
    """
    folder, manifest = choose(settings)
    if folder is None:
        return Start(0, 0, None, None, None)
    if manifest is None:
        raise UserError(
            f"{folder}: it has no {manifests.MANIFEST}, so its position in the training is unknown. "
            "Use runner.model_init_path to start from its weights."
        )
    position = manifest["epoch"], manifest["batch"]
    if manifest["graph"] != graph.name:
        raise UserError(
            f"{folder}: it was saved by the {clipped(manifest['graph'])} graph. Continue with that tool, or use "
            "runner.model_init_path to start from its weights."
        )
    defaults = manifests.as_saved(all_defaults(offered(graph.model, "config_defaults")))
    _check_config(*(_in_force(each, defaults) for each in (manifest["config"], config)), folder, position)
    graph.resume(folder, manifest["schedule"])
    LOG.info("resumed from %s: epoch %d, batch %d", folder, *position)
    so_far, counted = manifest["so_far"], None
    if so_far is not None:
        if settings.use_save_data:
            LOG.warning("result.npy of epoch %d will begin with batch %d: earlier ones are not saved", *position)
        counted = so_far.pop("counted")
    return Start(*position, so_far, counted, manifest.get("run"))


def choose(settings):
    """(folder, its manifest or None), or (None, None) if training starts from scratch."""
    choice, parent = settings.resume, settings.model_save_path
    if choice == "off":
        return None, None
    if choice != "auto":
        return choice, manifests.read(choice)
    names = [LAST_STEP] * os.path.isdir(os.path.join(parent, LAST_STEP))
    names += [str(epoch) for epoch in folders.saved_epochs(parent)]
    saves = runs.saves(parent, names)
    newest, found = runs.newest(saves), []
    for save in saves:
        folder = os.path.join(parent, save.name)
        manifest = manifests.read_if_sound(folder) if save.run in (newest, None) else None
        if manifest is not None:
            found.append((folder, manifest))
    if not found:
        LOG.info("nothing to resume from in %s: training starts from scratch", parent)
        return None, None
    return max(found, key=lambda save: (save[1]["saved_at"], save[1]["epoch"], save[1]["batch"]))


def _in_force(config, defaults):
    """A config with the defaults for what it leaves out: whether a key is written down decides nothing."""
    return {**defaults, **{key: value for key, value in config.items() if value is not None}}


def _check_config(saved, config, folder, position):
    """Refuse a config under which the training would end elsewhere; log what else has changed."""
    epochs = "runner.epochs"
    if saved.get(epochs) != config.get(epochs):
        LOG.warning(
            "%s was %s, now it is %s: a schedule over the whole training takes another course",
            epochs, shown(saved.get(epochs)), config.get(epochs),
        )  # fmt: skip
    changed = sorted(key for key in {*saved, *config} if saved.get(key) != config.get(key) and _decides_steps(key))
    if not changed:
        return
    told = "; ".join(f"{key}: {shown(saved.get(key))} then, {shown(config.get(key))} now" for key in changed)
    told = clipped(told, 1500)
    if position[1] or any(key.startswith("hyper_parameters.") for key in changed):
        raise UserError(
            f"{folder} was saved under another config ({told}), under which its training cannot continue. "
            "Restore these values, or start from its weights with runner.model_init_path."
        )
    LOG.warning("resumed under another config: %s", told)


def _decides_steps(key):
    """Whether a key decides what a training step computes: all of a package's own may."""
    known = RUNNER_KEYS.get(key[len("runner.") :]) if key.startswith("runner.") else None
    return known is None or known.steps
