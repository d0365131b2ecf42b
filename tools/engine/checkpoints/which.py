"""Which checkpoint is meant: of which run, the best one, those to evaluate, the one to export, the one to resume from.

Several runs into one folder leave epochs of each in it. Each manifest has the id of its run.
"""

import collections
import datetime
import logging
import math
import os
import secrets

from engine import directions
from engine.checkpoints import folders, manifests
from engine.errors import UserError
from engine.keys import BEST

LOG = logging.getLogger("engine")
LAST_STEP = "last_step"  # the checkpoint written inside an epoch; deleted when the epoch is written
NEWEST, ALL = "newest", "all"  # values of runner.infer_run, besides a run's id
UNKNOWN = "unknown"  # run of a checkpoint without a manifest, such as PaddleRec's
TRAINING, VALIDATION = "numbers", "validation"  # keys of a manifest's metrics

Checkpoint = collections.namedtuple("Checkpoint", "name run saved_at")  # run: None if the manifest cannot be read

# --------------------------------------------------------------------------------------- runs


def new_run_id():
    """An id for a run, such as 20261126-184212-3f9a: the time it began, and a random part."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def checkpoint(parent, name):
    """The ``Checkpoint`` in the folder ``parent``/``name``."""
    folder = os.path.join(parent, str(name))
    if not os.path.exists(os.path.join(folder, manifests.MANIFEST)):
        return Checkpoint(name, UNKNOWN, os.path.getmtime(folder))
    try:
        facts = manifests.read_facts(folder)
    except UserError:
        return Checkpoint(name, None, 0.0)
    return Checkpoint(name, facts["run"], facts["saved_at"])


def newest_run(found):
    """The run of the newest ``Checkpoint``, or None if there is none."""
    known = [each for each in found if each.run is not None]
    return max(known, key=lambda each: each.saved_at).run if known else None


def epochs_of_run(parent, wanted):
    """The epochs of one run: ``wanted`` is ``NEWEST``, ``ALL`` or an id. A warning names those of other runs.

    Raises:
        UserError: there is no such run.
    """
    found = [checkpoint(parent, epoch) for epoch in folders.saved_epochs(parent)]
    if wanted == ALL:
        return [each.name for each in found]
    runs = sorted({each.run for each in found if each.run is not None})
    run = newest_run(found) if wanted == NEWEST else wanted
    if wanted != NEWEST and wanted not in runs:
        raise UserError(
            f"runner.infer_run is {wanted}, but the runs in {parent} are: {', '.join(runs) or 'none'}. "
            f"Set it to one of them, {NEWEST} or {ALL}."
        )
    others = [f"{each.name} ({each.run})" for each in found if each.run not in (run, None)]
    if others:
        LOG.warning(
            "%s: skipped epochs that are not of run %s: %s. To use them, set runner.infer_run to their run or to "
            "%s.", parent, run, ", ".join(others), ALL,
        )  # fmt: skip
    return [each.name for each in found if each.run in (run, None)]  # an unreadable one is refused when it is loaded


# ---------------------------------------------------------------------------------------- best


def ranked(metrics, name, higher_is_better):
    """The epochs of ``metrics`` (epoch -> name -> number) where one is finite, the best first, equals in order."""
    sign = 1 if higher_is_better else -1
    found = {epoch: sign * each[name] for epoch, each in metrics.items() if math.isfinite(each.get(name, math.nan))}
    return sorted(found, key=lambda epoch: (-found[epoch], epoch))


def best(parent, epochs, name, source, higher_is_better=None):
    """The epoch whose metric is best, the earliest of equals; None if no sound checkpoint has the metric.

    Args:
        parent: folder of the checkpoints.
        epochs: those to choose from.
        name: of the metric.
        source: ``TRAINING`` or ``VALIDATION``.
        higher_is_better: metric -> bool; what it lacks is read from the manifests, or guessed with a warning.
    """
    facts = _facts(parent, epochs)
    stated = {}
    for each in facts.values():
        stated.update(each.get("higher_is_better", {}))
    stated = directions.stated([name], {**stated, **(higher_is_better or {})})
    higher = stated.get(name, directions.guessed(name))
    for epoch in ranked({epoch: each[source] or {} for epoch, each in facts.items()}, name, higher):
        if manifests.read_if_sound(os.path.join(parent, str(epoch))) is not None:
            if not stated:
                guess = f"its manifest states no direction, assumed: {directions.words(higher)}"
                LOG.warning("%s: epoch %d is the best by %s (%s)", parent, epoch, name, guess)
            return epoch
    return None


def metrics(parent, epochs, source):
    """Epoch -> its metrics, name -> number, for the epochs that have any."""
    return {epoch: each[source] for epoch, each in _facts(parent, epochs).items() if each[source] is not None}


def _facts(parent, epochs):
    found = {}
    for epoch in epochs:
        try:
            found[epoch] = manifests.read_facts(os.path.join(parent, str(epoch)))
        except UserError:
            continue
    return found


# ---------------------------------------------------------------- to evaluate, export or resume


def to_evaluate(settings):
    """The run's epochs from ``infer_start_epoch`` to before ``infer_end_epoch``; None: to the last one.

    Warnings name what is outside this range, or missing in it.

    Raises:
        UserError: there is none.
    """
    start, end, folder = settings.infer_start_epoch, settings.infer_end_epoch, settings.infer_load_path
    available = epochs_of_run(folder, settings.infer_run)
    found = [epoch for epoch in available if start <= epoch and (end is None or epoch < end)]
    if not found:
        wanted = f"from {start} on" if end is None else f"{start} to {end - 1}"
        raise UserError(
            f"runner.infer_load_path: {folder} has none of the epochs {wanted} (infer_start_epoch, infer_end_epoch). "
            f"It has: {', '.join(map(str, available)) or 'none'}."
        )
    outside = ", ".join(str(epoch) for epoch in available if epoch not in found)
    if outside:
        LOG.warning("%s: not evaluated (infer_start_epoch, infer_end_epoch): epoch %s", folder, outside)
    wanted = range(start, found[-1] + 1 if end is None else end)
    missing = wanted.stop - wanted.start - len(found)  # len() has a limit
    if missing:
        first = next(epoch for epoch in wanted if epoch not in found)
        more = f" and {missing - 1} more" if missing > 1 else ""
        LOG.warning("%s: skipped missing epochs: %d%s", folder, first, more)
    return found


def chosen_epoch(settings, key, purpose):
    """The epoch that the key named ``key`` asks for (a number, ``BEST``, or None for the newest) to ``purpose`` it.

    Raises:
        UserError: there is no such epoch.
    """
    available, wanted = epochs_of_run(settings.infer_load_path, settings.infer_run), getattr(settings, key)
    if wanted == BEST:
        return _best_by_validation(settings, key, available)
    if wanted in available or (wanted is None and available):
        return available[-1] if wanted is None else wanted
    raise UserError(
        f"runner.infer_load_path: {settings.infer_load_path} has no epoch {'at all' if wanted is None else wanted} "
        f"to {purpose} ({key}). It has: {', '.join(map(str, available)) or 'none'}."
    )


def _best_by_validation(settings, key, available):
    parent, name = settings.infer_load_path, settings.keep_best
    if name is None:
        raise UserError(
            f"runner.{key} is {BEST}, but keep_best does not say by which metric of the validation. "
            "Set it as in training, for instance -o runner.keep_best=loss."
        )
    found = best(parent, available, name, VALIDATION)
    if found is None:
        known = sorted({each for values in metrics(parent, available, VALIDATION).values() for each in values})
        raise UserError(
            f"runner.{key} is {BEST}, but no epoch in {parent} has a validation metric {name} (keep_best). "
            f"Available: {', '.join(known) or 'none; train with runner.validation_data_dir'}."
        )
    LOG.info("best %s of the validation: epoch %d", name, found)
    return found


def to_resume(settings):
    """(folder, its manifest or None) as ``runner.resume`` says; (None, None): start from scratch.

    For ``auto`` it is the newest sound checkpoint of the newest run in ``model_save_path``.

    Raises:
        UserError: the checkpoint asked for is broken.
    """
    choice, parent = settings.resume, settings.model_save_path
    if choice == "off":
        return None, None
    if choice != "auto":
        return choice, manifests.read(choice)
    inside_epoch = [LAST_STEP] * os.path.isdir(os.path.join(parent, LAST_STEP))
    available = [checkpoint(parent, name) for name in (*inside_epoch, *folders.saved_epochs(parent))]
    run = newest_run(available)
    paths = [os.path.join(parent, str(each.name)) for each in available if each.run in (run, None)]
    found = [(path, manifest) for path in paths if (manifest := manifests.read_if_sound(path)) is not None]
    if not found:
        LOG.info("nothing to resume from in %s: training starts from scratch", parent)
        return None, None
    return max(found, key=lambda pair: (pair[1]["saved_at"], pair[1]["epoch"], pair[1]["batch"]))
