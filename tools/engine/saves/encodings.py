"""The files that decide how raw values become inputs, such as a vocabulary, and whether a save goes with them.

A reader names them (``encoding_files``). A save's manifest and an exported model's signature have their digests.
"""

import collections
import logging
import os
import shutil

from engine.errors import UserError, clipped, user_errors
from engine.interface import offered
from engine.saves import manifests

LOG = logging.getLogger("engine")
File = collections.namedtuple("File", "path digest")


def find(reader, config):
    """The files that a reader names: name -> File; none for None, or a reader that names none.

    Raises:
        UserError: one cannot be read, or two have one name.
    """
    hook = None if reader is None else offered(reader, "encoding_files")
    if hook is None:
        return {}
    with user_errors(config["yaml_path"]):
        paths = hook(config)
        found = {os.path.basename(path): File(path, manifests.digest(path)) for path in paths}
    if len(found) < len(paths):
        raise UserError(f"two of these files have one name: {', '.join(paths)}. Rename one.")
    return found


def digests(found):
    """What a manifest or a signature says of ``find``'s files: name -> SHA-256."""
    return {name: file.digest for name, file in found.items()}


def check(then, found, where, prefix=None):
    """Refuse weights that were trained on inputs encoded otherwise. Weights that say nothing of it pass.

    Args:
        then: ``digests`` at the training.
        found: from ``find``, for the inputs at hand.
        where: the file with the weights or the signature, for messages.
        prefix: of the copies' paths, where there are copies of the training's files; see ``copy``.
    Raises:
        UserError: the files are not the training's.
    """
    if not then:
        return
    names = ", ".join(map(clipped, sorted(then)))
    if not found:
        LOG.warning("%s: it was trained with %s; this reader declares no such file (encoding_files)", where, names)
    elif {*then.values()} != {file.digest for file in found.values()}:
        paths = ", ".join(file.path for file in found.values())
        copies = "" if prefix is None else f" (a copy: {', '.join(prefix + clipped(name) for name in sorted(then))})"
        raise UserError(
            f"{where}: it was trained with a different {names}; with {paths} the same input would mean something else. "
            f"Point the config at the file used in training{copies}, or train again."
        )


def copy(found, prefix):
    """Copy the files to ``prefix`` + name.

    Raises:
        UserError: one has changed since ``find``.
    """
    for name, file in found.items():
        shutil.copyfile(file.path, prefix + name)
        if manifests.digest(prefix + name) != file.digest:
            raise UserError(f"{file.path}: it has changed since the training began. Restore it.")
