"""Options that are written into files of other programs: each holds only what it may."""

from __future__ import annotations

import re

from pydantic import AfterValidator


def matching(pattern: str, what: str) -> AfterValidator:
    """Return a validator that takes an empty text, and those that match the whole pattern.

    what: what a text is not that does not match, with an example.
    """

    def check(value: str) -> str:
        if value and not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{value!r} is no {what}")
        return value

    return AfterValidator(check)
