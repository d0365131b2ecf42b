"""A column of categories -> ids: by a list of values, a hash, or bins of a number; one id a row, or a list of them."""

import collections
import functools
import itertools
import math
import re
import zlib
from typing import NamedTuple, Union

import numpy as np

from tabular.columns import Texts, pyarrow
from tabular.values import one_way

POOLINGS = ("mean", "sum")
MOST_IDS = 2**31 - 2  # which int32 holds
FEW_FOR_ARROW = 8  # values in the list for each text that is looked up; with more, Python's dict is faster
WHOLE = re.compile(r"-?\d+")


class KnownIds:
    """The id of a value is its position in a list, from 1; 0 is for other values and for empty fields.

    Raises:
        ValueError: a value is empty, or twice in the list.
    """

    of_numbers = False

    def __init__(self, column, values):
        self.values, self.size = [str(value) for value in values], len(values) + 1
        spellings = collections.Counter(map(one_way, self.values))
        if spellings.get("") or len(spellings) < len(self.values):
            value = max(spellings, key=lambda value: (value == "", spellings[value]))
            raise ValueError(f"a value of {column} is empty or a duplicate: {value!r}")
        self.id_of = {one_way(value): i for i, value in enumerate(self.values, 1)}

    def are_whole(self):
        """Whether all values are whole numbers, and there is one."""
        return bool(self.values) and all(map(WHOLE.fullmatch, self.values))

    @functools.cached_property
    def _values_of_arrow(self):
        return pyarrow().array(list(self.id_of), pyarrow().string())

    def of(self, texts):
        """Texts, a list or ``columns.Texts`` -> int32 [number of texts]."""
        if isinstance(texts, Texts) and len(self.id_of) <= FEW_FOR_ARROW * len(texts):
            places = pyarrow().compute.index_in(texts.array, value_set=self._values_of_arrow)
            return places.fill_null(-1).to_numpy() + np.int32(1)
        return np.fromiter(map(self.id_of.get, texts, itertools.repeat(0)), np.int32, len(texts))


class HashedIds:
    """The id of a value is a hash of its text, from 1 to ``number``; 0 is for empty fields alone.

    CRC-32, spread over the ids by Knuth's multiplicative hash (The Art of Computer Programming, vol. 3, section 6.4).

    Raises:
        ValueError: ``number`` is out of range.
    """

    of_numbers = False

    def __init__(self, column, number):
        if type(number) is not int or not 1 <= number <= MOST_IDS:
            raise ValueError(f"hash of {column} is {number!r}, but must be a whole number from 1 to {MOST_IDS}")
        self.number, self.size = number, number + 1

    def are_whole(self):
        """False: the values are not known."""
        return False

    def of(self, texts):
        """int32 [number of texts]."""
        codes = np.fromiter(map(zlib.crc32, map(str.encode, texts)), np.uint64, len(texts))
        spread = codes * np.uint64(2654435769) & np.uint64(2**32 - 1)  # 2^32 / golden ratio
        ids = (spread * np.uint64(self.number) >> np.uint64(32)).astype(np.int32) + 1
        return np.where(np.fromiter(map(bool, texts), bool, len(texts)), ids, 0).astype(np.int32)


class BinIds:
    """The id of a number is that of its bin, from 1: up to the first edge, up to the second one, ..., above the last.

    An edge belongs to the bin below it; 0 is for empty fields alone.

    Raises:
        ValueError: the edges do not rise.
    """

    of_numbers = True

    def __init__(self, column, edges):
        self.edges = [float(edge) for edge in edges]
        if not all(map(math.isfinite, self.edges)) or self.edges != sorted(set(self.edges)):
            raise ValueError(f"the edges of {column} do not rise")
        self.size = len(edges) + 2

    def of(self, numbers):
        """float64 [N], nan where a field is empty -> int32 [N]."""
        ids = 1 + np.searchsorted(self.edges, numbers, side="left")
        return np.where(np.isnan(numbers), 0, ids).astype(np.int32)


class Category(NamedTuple):
    """How a column of categories is encoded.

    Args:
        column: its name.
        ids: which may be another column's too.
        pooling: of a list of ids, one of ``POOLINGS``; "" if a row has one id.
        separator: what separates the ids of a list that is a text; "": lists are no texts.
        like: name of the column whose ids and embeddings it has; "": its own.
    """

    column: str
    ids: Union[KnownIds, HashedIds, BinIds]
    pooling: str = ""
    separator: str = ""
    like: str = ""


IDS = {"values": KnownIds, "hash": HashedIds, "edges": BinIds}  # by the key in vocabulary.json


def read(entries):
    """The Category of each of ``categories`` in vocabulary.json.

    Raises:
        ValueError, KeyError, TypeError: one is not as make_vocabulary.py writes it.
    """
    own = {}
    for entry in entries:
        if "like" not in entry:
            column, given = str(entry["column"]), [name for name in IDS if name in entry] or ["values"]
            if len(given) > 1:
                raise ValueError(f"{column} has {' and '.join(given)}, but only one of them can say what its ids are")
            own[column] = IDS[given[0]](column, entry[given[0]])
    found = []
    for entry in entries:
        column, like = str(entry["column"]), str(entry.get("like", ""))
        if like and like not in own:
            raise ValueError(f"{column} is like {like}, which has no ids of its own")
        pooling, separator = (str(entry.get(key, "")) for key in ("pooling", "separator"))
        if own[like or column].of_numbers and (pooling or like):
            raise ValueError(f"{column} has bins, which no list and no other column can have")
        if pooling not in ("", *POOLINGS):
            raise ValueError(f"pooling of {column} is {pooling!r}, but must be {' or '.join(POOLINGS)}")
        found.append(Category(column, own[like or column], pooling, separator, like))
    return found
