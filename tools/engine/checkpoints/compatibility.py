"""Does a checkpoint fit? It must be of the network that the config describes, and of inputs encoded by the same files.

A reader names the files that turn raw values into inputs, such as a vocabulary (``encoding_files``). A checkpoint's
manifest and an exported model's signature have their SHA-256.
"""

import collections
import logging
import os
import shutil

from engine.checkpoints import manifests
from engine.errors import UserError, clipped, shown, user_errors
from engine.interface import offered

LOG = logging.getLogger("engine")
PREFIX = "hyper_parameters."
EncodingFile = collections.namedtuple("EncodingFile", "path digest")


def check(weights, model, config, encoding):
    """Raise UserError unless ``weights`` (of ``weight_files``) fit the wrapper ``model`` and the reader's inputs.

    Args:
        config: flat config dict.
        encoding: from ``find_encoding``.
    """
    check_network(weights, model, config)
    check_encoding(weights.encoding, encoding, weights.path)


def check_network(weights, model, config):
    """Compare the config that a checkpoint was trained with to the current one.

    A package's ``network_config(config)`` gives the keys that decide what its network computes, and their values.
    For a package without that hook a difference is only a warning.

    Raises:
        UserError: the networks differ.
    """
    if weights.config is None:
        LOG.warning("%s: no %s, so its hyper-parameters cannot be checked", weights.path, manifests.MANIFEST)
        return
    network_config = offered(model, "network_config") or _hyper_parameters
    try:
        then = network_config(weights.config)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{weights.path}: the config it was trained with cannot be read ({clipped(error)}).") from error
    now = network_config(config)
    changed = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if not changed:
        return
    pairs = (f"{key} was {shown(then.get(key))} in training and is {shown(now.get(key))} now" for key in changed)
    differences = clipped("; ".join(pairs), 1500)
    if network_config is _hyper_parameters:
        LOG.warning("%s: %s", weights.path, differences)
        return
    remedy = " ".join(f"{key}={clipped(then.get(key))}" for key in changed)
    raise UserError(
        f"{weights.path}: these are the weights of another network: {differences}. "
        f"Use the config it was trained with, or: -o {remedy}"
    )


def _hyper_parameters(config):
    return {key: value for key, value in config.items() if key.startswith(PREFIX)}


def find_encoding(reader, config):
    """The files that a reader encodes inputs by: name -> EncodingFile. Empty without a reader or its hook.

    Raises:
        UserError: a file cannot be read, or two have the same name.
    """
    hook = None if reader is None else offered(reader, "encoding_files")
    if hook is None:
        return {}
    with user_errors(config["yaml_path"]):
        paths = hook(config)
        found = {os.path.basename(path): EncodingFile(path, manifests.digest(path)) for path in paths}
    if len(found) < len(paths):
        raise UserError(f"two of these files have one name: {', '.join(paths)}. Rename one.")
    return found


def digests(encoding):
    """Name -> SHA-256 of ``find_encoding``'s files, for a manifest or a signature."""
    return {name: file.digest for name, file in encoding.items()}


def check_encoding(then, encoding, where, prefix=None):
    """Refuse weights that were trained on inputs encoded by other files. Weights that record no files pass.

    Args:
        then: ``digests`` at the time of training, or None.
        encoding: from ``find_encoding``, now.
        where: the file with the weights or the signature, for messages.
        prefix: of the paths of copies, where ``copy_encoding`` made some.
    Raises:
        UserError: the files differ.
    """
    if not then:
        return
    names = ", ".join(map(clipped, sorted(then)))
    if not encoding:
        LOG.warning("%s: it was trained with %s; this reader declares no such file (encoding_files)", where, names)
    elif {*then.values()} != {file.digest for file in encoding.values()}:
        paths = ", ".join(file.path for file in encoding.values())
        copies = "" if prefix is None else f" (a copy: {', '.join(prefix + clipped(name) for name in sorted(then))})"
        raise UserError(
            f"{where}: it was trained with a different {names}; with {paths} the same input would mean something else. "
            f"Point the config at the file used in training{copies}, or train again."
        )


def copy_encoding(encoding, prefix):
    """Copy the files to ``prefix`` + name.

    Raises:
        UserError: one has changed since ``find_encoding``.
    """
    for name, file in encoding.items():
        shutil.copyfile(file.path, prefix + name)
        if manifests.digest(prefix + name) != file.digest:
            raise UserError(f"{file.path}: it has changed since the run began. Restore it.")
