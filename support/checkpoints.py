"""Small checkpoints for tests that read no weights."""

import json
import pathlib

from engine.checkpoints import folders, manifests

FACTS = {"graph": "static", "run": "a", "batch": 0, "config": {}, "schedule": None, "numbers": {}, "validation": None}
FACTS["so_far"] = None


def write_checkpoint(parent, name, **facts):
    """Write ``parent``/name: one file and a manifest with ``FACTS`` and ``facts``."""
    epoch = facts.pop("epoch", name + 1 if isinstance(name, int) else 0)
    with folders.new_folder(str(parent), name) as folder:
        pathlib.Path(folder, "file").write_text("content")
        manifests.write(folder, {}, **{**FACTS, "epoch": epoch})
    change_manifest(parent / str(name), **facts)
    return parent / str(name)


def change_manifest(folder, **facts):
    """Replace facts of a manifest."""
    path = folder / manifests.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
