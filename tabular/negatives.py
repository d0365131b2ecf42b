"""Which rows an epoch leaves out because only a share of a task's negatives is kept."""

import numpy as np


def _is_there(label, kind):
    """bool [N]: whether a row has a label of a task, [N] or [N, label_size]."""
    there = kind.is_labelled(label)
    return there.any(axis=1) if there.ndim > 1 else there


def has_label(labels, kinds):
    """bool [N]: whether a row has a label of any task; ``labels`` by task."""
    return np.any([_is_there(label, kind) for kind, label in zip(kinds, labels)], axis=0)


def leave_out(labels, kinds, rng):
    """Draw which negatives are kept, for each task by itself.

    Args:
        labels: by task, as ``Kind.from_columns`` gives them.
        kinds: by task.
        rng: np.random.Generator.
    Returns:
        (labels, missing where a negative is left out; bool [N]: the rows that have lost their last label).
    """
    kept = list(labels)
    for t, kind in enumerate(kinds):
        if kind.negatives_kept < 1:
            is_out = (labels[t] == 0) & (rng.random(len(labels[t])) >= kind.negatives_kept)
            kept[t] = np.where(is_out, np.nan, labels[t]).astype(labels[t].dtype)
    return kept, has_label(labels, kinds) & ~has_label(kept, kinds)


def expected(labels, kinds):
    """How many rows ``leave_out`` leaves without a label, on average."""
    chance = has_label(labels, kinds).astype(float)
    for kind, label in zip(kinds, labels):
        there = _is_there(label, kind)
        is_negative = there & (label == 0) if kind.negatives_kept < 1 else np.zeros(len(label), bool)
        chance *= np.where(there, is_negative * (1 - kind.negatives_kept), 1.0)
    return float(chance.sum())
