"""Which saved epochs are evaluated or exported, by the keys that say so."""

import logging

from engine.errors import UserError
from engine.keys import BEST
from engine.saves import best, runs

LOG = logging.getLogger("engine")


def evaluated(settings):
    """The epochs from ``infer_start_epoch`` to before ``infer_end_epoch``; a line in the log tells of missing ones.

    Raises:
        UserError: there is none.
    """
    wanted = range(settings.infer_start_epoch, settings.infer_end_epoch)
    there = runs.epochs(settings.infer_load_path, settings.infer_run)
    found = [epoch for epoch in there if epoch in wanted]
    if not found:
        raise UserError(
            f"runner.infer_load_path: {settings.infer_load_path} has none of the epochs "
            f"{wanted.start} to {wanted.stop - 1} (infer_start_epoch, infer_end_epoch). It has: "
            f"{', '.join(map(str, there)) or 'none'}."
        )
    missing = wanted.stop - wanted.start - len(found)  # len() has a limit
    if missing:
        first = next(epoch for epoch in wanted if epoch not in found)
        LOG.warning(
            "epoch %d%s is not in %s and left out",
            first,
            f" (and {missing - 1} more)" if missing > 1 else "",
            settings.infer_load_path,
        )
    return found


def epoch(settings, key, purpose):
    """The saved epoch that a key names: its number, ``BEST``, or None for the newest.

    Args:
        key: name of the key.
        purpose: what is done with the epoch, for a message.
    Raises:
        UserError: there is no such epoch.
    """
    there, wanted = runs.epochs(settings.infer_load_path, settings.infer_run), getattr(settings, key)
    if wanted == BEST:
        return _best(settings, key, there)
    if wanted in there or (wanted is None and there):
        return there[-1] if wanted is None else wanted
    raise UserError(
        f"runner.infer_load_path: {settings.infer_load_path} has no epoch {'at all' if wanted is None else wanted} "
        f"to {purpose} ({key}). It has: {', '.join(map(str, there)) or 'none'}."
    )


def _best(settings, key, there):
    parent, name = settings.infer_load_path, settings.keep_best
    if name is None:
        raise UserError(
            f"runner.{key} is {BEST}, but keep_best does not say by which number of the validation. "
            "Set it as in the training, for instance -o runner.keep_best=loss."
        )
    found = best.find(parent, there, name, best.VALIDATION)
    if found is None:
        known = {name for numbers in best.numbers(parent, there, best.VALIDATION).values() for name in numbers}
        raise UserError(
            f"runner.{key} is {BEST}, but no epoch in {parent} was saved with a validation's {name} (keep_best). "
            f"Their validations have: {', '.join(sorted(known)) or 'nothing; train with runner.validation_data_dir'}."
        )
    LOG.info("best %s of the validation: epoch %d", name, found)
    return found
