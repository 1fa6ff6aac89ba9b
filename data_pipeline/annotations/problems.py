"""Counts what is wrong with annotations. Nothing is left out of a data set without a count here."""

from __future__ import annotations

import logging
from collections import Counter

from model.documents import show
from model.errors import DataError

log = logging.getLogger(__name__)
_EXAMPLES = 3  # of each reason


class Problems:
    """What is wrong, by reason.

    counts: how often. examples: the first few names. lost: how many things were left out for it;
    what was mended, or is of no consequence, is counted alone.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lost = 0
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: object, count: int = 1, lost: bool = True) -> None:
        """Count something. lost: whether it is left out."""
        self.counts[reason] += count
        self.lost += count if lost else 0
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(show(example))

    def lines(self) -> list[str]:
        """Return a line for each reason, the most frequent first."""
        return [
            f"{count:,} x {reason} ({', '.join(self.examples[reason])}"
            f"{', ...' if count > len(self.examples[reason]) else ''})"
            for reason, count in self.counts.most_common()
        ]

    def report(self, where: str, total: int, limit: float) -> None:
        """Log the lines. Raises DataError if more was left out than the share `limit` of `total`,
        at least one."""
        for line in self.lines():
            log.warning("%s: %s", where, line)
        if self.lost > max(1, int(limit * total)):
            raise DataError(
                f"{where}: {self.lost:,} of {total:,} cannot be used, more than the limit of "
                f"{limit:.1%}: {'; '.join(self.lines())}"
            )
