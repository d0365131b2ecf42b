"""How a config key is declared and checked: by the model, its readers, the tools and the experiments alike.

A table of keys is a dict name -> ``Key``. Checks, messages, ``--print-config`` and docs/keys.md all read it.
"""

import dataclasses
import difflib
import math
import os
from typing import Any, Optional

REQUIRED = object()  # a default: the config must give a value
NETWORK, STEP = "network", "step"  # what a key may decide; see Key


@dataclasses.dataclass(frozen=True)
class Key:
    """One key.

    Args:
        type: ``bool``, ``int``, ``float``, ``str`` or ``list``; or one of

            "choice"    one of ``choices``
            "name"      one of ``choices``, or module.name for an object of the user's
            "path"      a text, in which a leading ~ is the user's home
            "sizes"     a list of whole numbers from 1 to ``high``
            "seeds"     a list of different whole numbers >= 0
            "weights"   a list of numbers >= 0, not all of them 0
            "texts"     a list of texts
            "classes"   a whole number from 2, or a list of at least two different texts
            "mapping"   keys, which are texts, and values
            "mappings"  a list of mappings

        default: value where the config gives none, or ``REQUIRED``.
        meaning: a sentence or two that name what the key sets.
        low, above, high: range of a number; ``low`` and ``high`` are allowed, ``above`` is not.
        choices: allowed values; a number may have some as well.
        job: the job that needs the key ("train", "infer", "export"); "" if all do.
        decides: ``NETWORK`` if a checkpoint fits no other value, ``STEP`` if a resumed run would compute other steps
            with another value, "" otherwise.
    """

    type: Any
    default: Any
    meaning: str
    low: Optional[float] = None
    above: Optional[float] = None
    high: Optional[float] = None
    choices: tuple = ()
    job: str = ""
    decides: str = ""

    @property
    def is_required(self):
        """Whether the config must give a value."""
        return self.default is REQUIRED

    def check(self, name, value):
        """Return ``value`` as the declared type.

        Args:
            name: full name of the key, for messages.
            value: from a config. Numbers may be texts: YAML reads 1e-3 as one.
        Raises:
            ValueError: the type is wrong, or the value is out of range.
        """
        for choice in self.choices:
            if str(value).lower() == str(choice).lower():
                return choice
        checked = CHECKS[self.type](self, value)
        if checked is None:
            raise ValueError(f"{name} is {repr(value)[:200]}, but must be {self.wanted()}. {self.meaning}")
        if self.type in (str, "path") and not _can_be_a_path(checked):
            raise ValueError(f"{name} is {checked[:200]!a}, which has a character that no path has.")
        return checked

    def wanted(self):
        """What a value must be, in words."""
        words = [] if self.type == "choice" else [DESCRIPTIONS[self.type] + self._range()]
        if self.type == "name":
            words.insert(0, ", ".join(self.choices))
        else:
            words += [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in self.choices]
        return " or ".join(words)

    def _range(self):
        limits = ((">=", self.low), (">", self.above), ("<=", self.high))
        if self.type == "sizes":
            return f" to {self.high:g}" if self.high is not None else ""
        found = [
            f"{sign} {limit:g}" if limit < 1e6 else f"{sign} {limit}" for sign, limit in limits if limit is not None
        ]
        return " " + " and ".join(found) if found else ""


def as_number(value):
    """A finite float, from a number or a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number(key, value):
    number = as_number(value)
    if number is None or (key.type is int and not number.is_integer()):
        return None
    below = (key.low is not None and number < key.low) or (key.above is not None and number <= key.above)
    return None if below or (key.high is not None and number > key.high) else key.type(number)


def _text(key, value):
    if value is False and key.default == "off":  # YAML 1.1 reads off as false
        return "off"
    if isinstance(value, (int, float)) and not isinstance(value, bool):  # a folder may be named 0
        return str(value)
    return value if isinstance(value, str) else None


def _name(key, value):
    parts = str(value).split(".")
    return str(value) if len(parts) > 1 and all(part.isidentifier() for part in parts) else None


def _numbers(value):
    numbers = [as_number(item) for item in value] if isinstance(value, (list, tuple)) else [None]
    return None if None in numbers else numbers


def _sizes(key, value):
    numbers = _numbers(value)
    if numbers is None or not all(x.is_integer() and 1 <= x <= (key.high or math.inf) for x in numbers):
        return None
    return tuple(int(x) for x in numbers)


def _seeds(key, value):
    numbers = _numbers(value)
    if not numbers or not all(x.is_integer() and x >= 0 for x in numbers) or len(set(numbers)) < len(numbers):
        return None
    return tuple(int(x) for x in numbers)


def _weights(key, value):
    numbers = _numbers(value)
    if numbers is None or any(x < 0 for x in numbers) or (numbers and not any(numbers)):
        return None
    return tuple(numbers)


def _mapping(key, value):
    return value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None


def _classes(key, value):
    if not isinstance(value, (list, tuple)):
        number = as_number(value)
        return int(number) if number is not None and number.is_integer() and number >= 2 else None
    names = [name for name in value if isinstance(name, str) and name.strip()]
    return tuple(names) if len(set(names)) == len(value) >= 2 else None


def _list_of(item_type):
    def check(key, value):
        fits = isinstance(value, (list, tuple)) and all(isinstance(item, item_type) for item in value)
        return tuple(value) if fits else None

    return check


CHECKS = {
    bool: lambda key, value: value if isinstance(value, bool) else None,
    int: _number,
    float: _number,
    str: _text,
    list: _list_of(object),
    "choice": lambda key, value: None,
    "name": _name,
    "path": _text,
    "sizes": _sizes,
    "seeds": _seeds,
    "weights": _weights,
    "texts": _list_of(str),
    "classes": _classes,
    "mapping": _mapping,
    "mappings": _list_of(dict),
}
DESCRIPTIONS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    "name": "module.name",
    "path": "a path",
    "sizes": "a list of whole numbers from 1",
    "seeds": "a list of different whole numbers >= 0",
    "weights": "a list of numbers >= 0, not all of them 0",
    "texts": "a list of texts",
    "classes": 'a whole number >= 2, or a list of at least two different texts ("yes" and "no" in quotes)',
    "mapping": "keys with values",
    "mappings": "a list of mappings",
}


def check_all(keys, given, prefix="", owner="this model"):
    """Check every value of a mapping by a table of keys.

    Args:
        keys: name -> Key.
        given: name -> value.
        prefix: what messages put before a name.
        owner: whose keys they are, for messages.
    Returns:
        name -> value, for every key of the table.
    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
    """
    for name in given:
        if name not in keys:
            raise ValueError(unknown(name, keys, prefix, owner))
    for name, key in keys.items():
        if key.is_required and name not in given:
            raise ValueError(f"{prefix}{name} is missing. {key.meaning}")
    return {n: key.check(prefix + n, given[n]) if n in given else key.default for n, key in keys.items()}


def unknown(name, keys, prefix, owner):
    """The message for a name that is not in ``keys``."""
    near = difflib.get_close_matches(str(name), keys, 1)
    hint = f"; did you mean {prefix}{near[0]}?" if near else f". Known keys: {', '.join(sorted(keys)) or 'none'}."
    return f"{prefix}{name} is not a key of {owner}{hint}"


def _can_be_a_path(text):
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
