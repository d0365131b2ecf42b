"""Is a save the weights of the network that the config describes? Asked before any weight is taken over."""

import logging

from engine.errors import UserError, clipped, shown
from engine.interface import offered
from engine.saves.manifests import MANIFEST

LOG = logging.getLogger("engine")
PREFIX = "hyper_parameters."


def check(model, weights, config):
    """Compare the config that a save was trained under with the one at hand.

    A package says by ``network_config(config)`` which keys, and their values in force, decide what its
    network computes; if it does not, a difference is only logged.

    Args:
        model: the package's wrapper.
        weights: weight_files.Weights.
        config: flat config dict.
    Raises:
        UserError: they describe different networks.
    """
    if weights.config is None:
        LOG.warning("%s: there is no %s, so its hyper-parameters cannot be checked", weights.path, MANIFEST)
        return
    network_config = offered(model, "network_config")
    then, now = (_deciding(network_config, each) for each in (weights.config, config))
    if isinstance(then, ValueError):
        raise UserError(f"{weights.path}: the config it was trained with cannot be read ({clipped(then)}).")
    changed = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if not changed:
        return
    differences = "; ".join(
        f"{key} was {shown(then.get(key))} in training and is {shown(now.get(key))} now" for key in changed
    )
    differences = clipped(differences, 1500)
    if network_config is None:
        LOG.warning("%s: %s", weights.path, differences)
        return
    remedy = " ".join(f"{key}={clipped(then.get(key))}" for key in changed)
    raise UserError(
        f"{weights.path}: these are the weights of another network: {differences}. "
        f"Use the config it was trained with, or: -o {remedy}"
    )


def _deciding(network_config, config):
    if network_config is None:
        return {key: value for key, value in config.items() if key.startswith(PREFIX)}
    try:
        return network_config(config)
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))
