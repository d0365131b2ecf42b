"""What a field of a table means, as a category or as a number, whether it comes from CSV, Parquet or Python.

A category is identified by its text. Programs write the same value in several ways, so each value has one text here:

- true and false, in any case: ``true``, ``false``.
- A whole number with a decimal point, as in a column that became float because of a gap: ``3.0`` is ``3``.
- A float in scientific notation: ``1e-05`` is ``0.00001``.
- A date or time: no zeros at the end of the fraction, a blank between date and time, midnight as the date alone, a
  time with a zone as the time in UTC. So the text does not depend on the unit or the zone in which it is stored.

Blanks around a value are trimmed. Blanks alone, None and NaN are an empty field. This file needs neither paddle nor
pyarrow.
"""

import datetime
import decimal
import math
import re
import uuid

import numpy as np

# What pyarrow reads as an empty field in a column of numbers
NULL_TEXTS = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|N/A|NA|NULL|NaN|n/a|nan|null".split("|")
)
BOOLEAN = r"(?i:true|false)"
# As programs write a float: one digit before the exponent, and a point or a sign, which ids such as 1e5 lack
SCIENTIFIC = r"-?\d\.\d+[eE][-+]?\d+|-?\d[eE][-+]\d+"
WHOLE_WITH_POINT = r"-?(?:0|[1-9]\d*)\.0+|-0"
DATE, CLOCK, ZONE = r"\d{4}-\d{2}-\d{2}", r"\d{2}:\d{2}:\d{2}(?:\.\d+)?", r" ?(?:Z|UTC|[-+]\d{2}(?::?\d{2})?)"
TIME = rf"{DATE}[T ](?:{CLOCK}|\d{{2}}:\d{{2}})(?:{ZONE})?|{CLOCK}"
# All that may be written in several ways; a pattern for pyarrow too
SEVERAL_WAYS = rf"^(?:{BOOLEAN}|{SCIENTIFIC}|{WHOLE_WITH_POINT}|{TIME})$"
_SEVERAL_WAYS = re.compile(SEVERAL_WAYS, re.ASCII)
_OF_FLOAT = re.compile(rf"{SCIENTIFIC}|-?\d+\.0")  # as programs write a float without a fraction
_TIME = re.compile(rf"(?:({DATE})[T ])?(\d{{2}}:\d{{2}})(?::(\d{{2}}))?(?:\.(\d+))?({ZONE})?", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf(?:inity)?", re.IGNORECASE | re.ASCII)
_NAN = re.compile(r"[-+]?nan(?:\(\w*\))?", re.IGNORECASE | re.ASCII)  # all that pyarrow reads as one
FIRST_INEXACT = 2**53  # from here on a float64 may be a rounded whole number


def text_of(value):
    """The text of a category.

    Args:
        value: text, number, truth value, date or time, of Python, NumPy (a scalar) or pyarrow; None, NaN and the like.
    Returns:
        "" for an empty field.
    Raises:
        ValueError: the value has no exact text, or is none of these.
    """
    value = _python_value(value)
    if isinstance(value, str):
        return one_way(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (float, np.floating)):
        return _text_of_float(value)
    if isinstance(value, decimal.Decimal):
        return one_way(f"{value:f}")
    if isinstance(value, np.datetime64):
        unit = np.datetime_data(value.dtype)[0]
        is_coarse = unit in ("Y", "M", "W", "D", "h")  # with fewer parts in its text
        return one_way(str(value.astype("datetime64[s]") if is_coarse else value))
    if isinstance(value, (datetime.date, datetime.time, uuid.UUID)):
        return one_way(str(value))
    raise ValueError(f"is a {type(value).__name__}, not a text, a number or a time")


def raw_text(value):
    """A text as it is, but for blanks around it; "" for an empty field.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    return (_python_value(value) or "").strip()


def _python_value(value):
    """The value as Python's, if Python has it exactly; None for an empty field.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    if hasattr(value, "as_py"):  # of pyarrow
        value = value.as_py()
    if isinstance(value, (bytes, np.bytes_)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is {bytes(value[:100])!r}, not UTF-8 text") from error
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, (np.bool_, np.integer)) and not isinstance(value, np.timedelta64):  # a whole number to NumPy
        return value.item()
    return value


def _text_of_float(value):
    number = np.asarray(value)[()]
    if abs(number) >= 2.0 ** (np.finfo(number.dtype).nmant + 1) and math.isfinite(number):
        raise _inexact(number)
    return one_way(str(number))


def _inexact(value):
    return ValueError(
        f"is the float {value}, too large to be an exact whole number; write the column as whole numbers or as texts"
    )


def one_way(text):
    """The one text of a category, by the rules at the top of this file.

    Raises:
        ValueError: it is a float without a fraction that is too large to be exact.
    """
    text = text.strip()
    if not _SEVERAL_WAYS.match(text):
        return text
    if text.lower() in ("true", "false"):
        return text.lower()
    if ":" in text:
        return _one_way_for_time(text)
    number = decimal.Decimal(text)
    is_whole = number == number.to_integral_value()
    if is_whole and abs(number) >= FIRST_INEXACT and _OF_FLOAT.fullmatch(text):
        raise _inexact(text)
    if is_whole:
        return f"{number:.0f}" if number else "0"
    written = text.partition(".")[2].lower().partition("e")[0]  # a decimal's zeros are kept, as without an exponent
    return f"{number:f}" if written.strip("0") else f"{number.normalize():f}"


def _one_way_for_time(text):
    date, minutes, seconds, fraction, zone = _TIME.fullmatch(text).groups()
    time = f"{minutes}:{seconds or '00'}"
    if zone is not None:
        try:
            date, time = _in_utc(f"{date} {time}", zone.strip())
        except (ValueError, OverflowError):  # there is no such date
            return text
    fraction = (fraction or "").rstrip("0")
    time += f".{fraction}" if fraction else ""
    if date is None:
        return time
    return date if time == "00:00:00" else f"{date} {time}"


def _in_utc(moment, zone):
    """("2026-01-02 03:04:05", "+01:00") -> ("2026-01-02", "02:04:05")."""
    offset = "+00:00" if zone in ("Z", "UTC") else zone + ":00" * (len(zone) == len("+01"))
    moment = datetime.datetime.strptime(moment + offset, "%Y-%m-%d %H:%M:%S%z").astimezone(datetime.timezone.utc)
    return moment.replace(tzinfo=None).isoformat(" ").split(" ")


def number_of(value):
    """A number of a column of numbers or labels, as a float; nan for an empty field, 1 and 0 for true and false.

    Args:
        value: as for ``text_of``, except dates and times.
    Raises:
        ValueError: it is not a number, or infinite.
    """
    value = _python_value(value)
    if value is None:
        return math.nan
    if isinstance(value, str):
        number = _number_of_text(value.strip())
    elif isinstance(value, (int, float, np.floating, decimal.Decimal)):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 300 digits
            number = math.inf
    else:
        raise ValueError(f"is a {type(value).__name__}, not a number")
    if math.isinf(number):
        raise ValueError("is infinite")
    return number


def _number_of_text(text):
    if text in NULL_TEXTS or _NAN.fullmatch(text):
        return math.nan
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"is {text[:100]!r}, not a number")
    return float(text)


def is_missing(value):
    """Whether a Python or NumPy object is an empty field: None, NaN, NaT, pandas' NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # pandas' NA is neither equal nor unequal to anything; an array has no truth value
        return type(value).__name__ == "NAType"
