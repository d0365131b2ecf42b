"""The best of the saved epochs, by a number in their manifests."""

import math
import os

from engine.errors import UserError
from engine.saves import manifests

TRAINING, VALIDATION = "numbers", "validation"  # whose numbers: their names in a manifest
LESS_IS_BETTER = ("loss", "cost", "error", "mae", "mse", "perplexity")  # within a name, such as rmse2; else greater is


def find(parent, epochs, name, source):
    """The epoch whose number is best, the earliest of equals; None if none has such a number.

    Args:
        parent: folder of the epoch folders.
        epochs: those to choose from; one whose save is broken is not chosen.
        name: of the number.
        source: ``TRAINING`` or ``VALIDATION``.
    """
    for epoch in in_order(numbers(parent, epochs, source), name):
        if manifests.read_if_sound(os.path.join(parent, str(epoch))) is not None:
            return epoch
    return None


def less_is_better(name):
    """Whether less of a number is better, by its name."""
    return any(word in name.lower() for word in LESS_IS_BETTER)


def in_order(found, name):
    """The epochs that have the number, the best one first.

    Args:
        found: epoch -> its numbers, name -> number.
        name: of the number.
    """
    sign = -1 if less_is_better(name) else 1
    known = {epoch: sign * value[name] for epoch, value in found.items() if name in value}
    known = {epoch: value for epoch, value in known.items() if math.isfinite(value)}
    return sorted(known, key=lambda epoch: (-known[epoch], epoch))


def numbers(parent, epochs, source):
    """Epoch -> its numbers, name -> number, for the epochs that have them."""
    found = {}
    for epoch in epochs:
        try:
            facts = manifests.read_facts(os.path.join(parent, str(epoch)))
        except UserError:
            continue
        if facts.get(source) is not None:
            found[epoch] = facts[source]
    return found
