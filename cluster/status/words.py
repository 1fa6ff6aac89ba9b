"""How numbers, times and lists of ranks are written for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 2 d 4 h, 3 min 5 s, 1.4 s, 41 ms."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, part in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            days = f"{whole // size:,} {name}"
            return f"{days} {rest} {part}" if rest and whole < 100 * 86_400 else days
    return f"{whole} s"


def clock(moment: float) -> str:
    """Return a time of today as 14:03:12, another day's as Sat 28 Nov 14:03, and one that no
    calendar has as `never`."""
    try:
        then = time.localtime(moment)
    except (OverflowError, ValueError, OSError):
        return "never"
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%a %d %b %H:%M", then)


def number(value: float) -> str:
    """Return a number with three or four digits that count: 12,345, 431, 2.813, 1.2e-05."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 1e-3 or size == 0:
        return f"{value:.4g}"
    return f"{value:.2e}"


def percent(share: float) -> str:
    """Return a share in percent, with more digits next to 100, where they count."""
    return f"{share:.2%}" if 0.98 < share < 1 else f"{share:.1%}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return a line of bars, at most `width` of them. Several values that share a bar give it their
    mean; one without a value is a gap."""
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        groups = [values[a:b] for a, b in pairwise(edges)]
    else:
        groups = [[value] for value in values]
    means = [_mean(group) for group in groups]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if m is None else _BARS[round((m - low) * scale)] for m in means)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def ranges(numbers: Iterable[int], most: int = 6) -> str:
    """Return numbers as ranges: 0-15, 18, 20-31. Of very many ranges, `most` are named."""
    spans: list[list[int]] = []
    for n in sorted(set(numbers)):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:most]]
    more = sum(b - a + 1 for a, b in spans[most:])
    return ", ".join(shown) + (f" and {more} more" if more else "")


def names(words: Sequence[str], most: int = 3) -> str:
    """Return names in a list; of many, their number and the first."""
    if len(words) <= most:
        return ", ".join(words)
    return f"{len(words)} hosts, {words[0]} ..."
