"""Which saves of a folder were made by the same training run. Training again into a folder leaves both in it."""

import collections
import datetime
import logging
import os
import secrets

from engine.errors import UserError
from engine.saves import folders, manifests

LOG = logging.getLogger("engine")
NEWEST, ALL = "newest", "all"  # values of runner.infer_run, beside a run's id
UNKNOWN = "unknown"  # the id of saves without a manifest, such as PaddleRec's

Save = collections.namedtuple("Save", "name run saved_at")  # run is None if the manifest cannot be read


def new_id():
    """An id for a run, such as 20261126-184212-3f9a: it says when the run began."""
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def saves(parent, names):
    """A ``Save`` for each folder ``parent``/name."""
    return [_save(os.path.join(parent, name), name) for name in names]


def newest(found):
    """The run of the newest of ``saves``, or None if there is none."""
    known = [save for save in found if save.run is not None]
    return max(known, key=lambda save: save.saved_at).run if known else None


def epochs(parent, wanted):
    """Saved epochs of one run, sorted; a line in the log tells which others were left out.

    Args:
        parent: folder of the epoch folders.
        wanted: ``NEWEST``, ``ALL``, or a run's id.
    Raises:
        UserError: there is no such run.
    """
    found = saves(parent, map(str, folders.saved_epochs(parent)))
    if wanted == ALL:
        return [int(save.name) for save in found]
    runs = sorted({save.run for save in found if save.run is not None})
    run = newest(found) if wanted == NEWEST else wanted
    if wanted != NEWEST and wanted not in runs:
        raise UserError(
            f"runner.infer_run is {wanted}, but the runs saved in {parent} are: {', '.join(runs) or 'none'}. "
            f"Give one of them, {NEWEST} or {ALL}."
        )
    others = [save for save in found if save.run not in (run, None)]
    if others:
        LOG.warning(
            "%s: these epochs are of another run than %s and are left out: %s. To read them, set runner.infer_run to "
            "their run or to %s.",
            parent,
            run,
            ", ".join(f"{save.name} ({save.run})" for save in others),
            ALL,
        )
    return [int(save.name) for save in found if save.run in (run, None)]  # a broken one is refused when it is read


def _save(folder, name):
    if not os.path.exists(os.path.join(folder, manifests.MANIFEST)):
        return Save(name, UNKNOWN, os.path.getmtime(folder))
    try:
        facts = manifests.read_facts(folder)
    except UserError:
        return Save(name, None, 0.0)
    return Save(name, facts.get("run", UNKNOWN), facts["saved_at"])
