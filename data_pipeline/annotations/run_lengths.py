"""COCO's run-length encoding of masks: how many pixels are off, then on, then off, ..., down the
columns. It comes as a list of numbers, or as a text that packs them.

pycocotools reads beyond its memory where the runs do not fill the mask, so that they are checked
here before it sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError

_MOST_DIGITS = 7  # of five bits each, in a number: 2^31 has no more


def parse_runs(counts: object) -> list[int]:
    """Return the runs of an RLE's `counts`, a list of numbers or a packed text. Raises DataError
    where they are none."""
    if isinstance(counts, str):
        return _unpacked(counts)
    if isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**31 for run in counts):
        return counts
    raise DataError("its counts are no run lengths")


def _unpacked(text: str) -> list[int]:
    """Five bits a character, the lowest first; 32 says that more follow, and 16 in the last one
    that the number is negative. From the fourth on, a number is the difference to the last but
    one."""
    runs: list[int] = []
    value = digits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == _MOST_DIGITS:
            raise DataError("its counts are no packed run lengths")
        value |= (code & 31) << 5 * digits
        digits += 1
        if code & 32:
            continue
        if code & 16:
            value -= 1 << 5 * digits
        run = value + (runs[-2] if len(runs) > 2 else 0)
        if not 0 <= run < 2**31:
            raise DataError("its counts are no packed run lengths")
        runs.append(run)
        value = digits = 0
    if digits:
        raise DataError("its counts are cut")
    return runs


def mask_of_runs(
    runs: Sequence[int] | NDArray[np.uint32], height: int, width: int
) -> NDArray[np.uint8]:
    """Return the mask, uint8 (height, width) of 0 and 1. The runs must fill it."""
    on = np.arange(len(runs), dtype=np.uint8) & np.uint8(1)
    return np.repeat(on, runs).reshape(width, height).T
