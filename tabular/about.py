"""The weight and the group of each row of a table: which rows are bad for lack of them, and what the network gets.

``about`` in arguments: "weight" and "group" -> column, those that there are.
"""

import hashlib

import numpy as np

from dselect_k_model import weights

WEIGHTS_ARE = f"A weight is {weights.WORDS}."


def columns(about):
    """(Columns that are read as numbers, columns that are read as texts)."""
    return tuple([about[name]] if name in about else [] for name in ("weight", "group"))


def refuse(rows, about):
    """Mark the rows of a ``columns.Rows`` as bad that have no group, or no weight that an example may have."""
    if "weight" in about:
        _refuse_weights(rows, about["weight"])
    if "group" in about:
        codes, texts = rows.categories[about["group"]]
        empty = np.array([not text for text in texts])
        rows.refuse(empty[codes], lambda i: f"the group {about['group']} is empty")


def _refuse_weights(rows, name):
    column = rows.numbers[name]

    def why(i):
        return f"the weight {name} is {'empty' if np.isnan(column[i]) else f'{column[i]:g}'}, not {weights.WORDS}"

    rows.refuse(weights.is_wrong(column), why)


def arrays(rows, about):
    """What the network gets, of all rows: [weight float32 [N], group int64 [N]], those that there are.

    A weight that no row may have is 0: only predictions read such a row.
    """
    numbers, texts = columns(about)
    made = [np.where(weights.is_wrong(rows.numbers[n]), 0, rows.numbers[n]).astype(np.float32) for n in numbers]
    return made + [_hashed(*rows.categories[name]) for name in texts]


def _hashed(codes, texts):
    """int64 [N]: a number for each row made of its text, the same in every file and process."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)[codes]
