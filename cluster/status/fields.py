"""Values out of records that others wrote: cut short, of wrong types, or with bytes that would move
a terminal's cursor. What is not as it should be is left out, and nothing here raises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from model.documents import LARGEST_COUNT, parse_json
from model.errors import DataError

_LONGEST_LINE = 1 << 16  # bytes
_LATEST = 1e11  # seconds since 1970: the year 5138
_LONGEST_TEXT = 500  # characters


def json_mapping(content: bytes) -> dict[str, Any]:
    """Return the mapping that a document of JSON holds; {} for any other."""
    try:
        record: dict[str, Any] = parse_json(content, "", DataError)
    except DataError:
        return {}
    return record


def json_rows(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a file that has one a line. Lines that hold none are left out."""
    for line in content.split(b"\n"):
        if 2 < len(line) <= _LONGEST_LINE and (row := json_mapping(line)):
            yield row


def number(record: dict[str, Any], key: str, least: float = -1e18) -> float | None:
    """Return a finite number of at least `least`; None for anything else."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if least <= value <= 1e18 else None  # NaN is in no range


def is_nonfinite(record: dict[str, Any], key: str) -> bool:
    """Whether a record states that a number is not finite. Metric lines do so in words: "nan"."""
    value = record.get(key)
    if isinstance(value, str):
        return value.strip("+-").lower() in ("nan", "inf", "infinity")
    return isinstance(value, float) and not math.isfinite(value)


def moment(record: dict[str, Any], key: str = "time") -> float | None:
    """Return a time in seconds since 1970; None for what can be none."""
    value = number(record, key, 0)
    return value if value is not None and value < _LATEST else None


def count(record: dict[str, Any], key: str) -> int | None:
    """Return an integer from 0 on; None for anything else."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= LARGEST_COUNT else None


def text(record: dict[str, Any], key: str, most: int = _LONGEST_TEXT) -> str | None:
    """Return a text in one line; None for anything else, and for an empty one."""
    value = record.get(key)
    return one_line(value, most) or None if isinstance(value, str) else None


def one_line(value: str, most: int = _LONGEST_TEXT) -> str:
    """Return a text without what is not printable, in one line of at most `most` characters."""
    shown = "".join(c if c.isprintable() else " " for c in value[: 4 * most])
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else shown[: most - 3] + "..."
