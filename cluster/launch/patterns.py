"""Options that are written into files of other programs: each holds only what it may."""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import AfterValidator


def matching(pattern: str, what: str) -> AfterValidator:
    """Return a validator that takes an empty text, and those that match the whole pattern.

    what: what a text is not that does not match, with an example.
    """
    check = _check(pattern, what)
    return AfterValidator(lambda value: check(value) if value else value)


def each_matching(pattern: str, what: str) -> AfterValidator:
    """Return a validator of lists, of which each text has to match the whole pattern."""
    return each(_check(pattern, what))


def each(check: Callable[[str], str]) -> AfterValidator:
    """Return a validator of lists, which gives each text to a validator of its own."""
    return AfterValidator(lambda values: [check(value) for value in values])


def _check(pattern: str, what: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{value!r} is no {what}")
        return value

    return check
