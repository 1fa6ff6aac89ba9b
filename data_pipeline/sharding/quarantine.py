"""Images that a data set has to do without: how many there may be, and the sums in which no image
may be lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.sharding.plan import Plan
from data_pipeline.shards.manifest import Quarantined
from model.documents import printable
from model.errors import DataError

# The reason where a worker died before it could say more.
UNREADABLE = "unreadable to the worker that made the shard"
# Reasons as read_image gives them. They stand in data sets.
_ABSENT = re.compile(r"gone since it was listed|its mode forbids reading it")
_OTHER_FILE = re.compile(r"no regular file|(\d+|more than \d+) bytes, but \d+ when it was listed")


class Totals(NamedTuple):
    """What became of the planned images.

    to_come: those of shards that are not made yet. doubtful: the quarantined ones for which the
    source may be to blame (`is_doubtful`).
    """

    planned: int
    stored: int
    quarantined: int
    to_come: int = 0
    doubtful: int = 0

    @property
    def lost(self) -> int:
        """Return the number of images that neither a finished shard nor a list accounts for; below
        0 if there are too many."""
        return self.planned - self.stored - self.quarantined - self.to_come

    @property
    def text(self) -> str:
        parts = [
            f"{self.planned:,} images planned",
            f"{self.stored:,} stored",
            f"{self.quarantined:,} quarantined",
        ]
        if self.to_come:
            parts.append(f"{self.to_come:,} to come")
        if self.lost:
            parts.append(f"{self.lost:,} UNACCOUNTED FOR")
        return ", ".join(parts)


NOTHING = Totals(0, 0, 0)


def is_absent(bad: Quarantined) -> bool:
    """Whether the image was gone or forbidden, as all images are when a source is not mounted."""
    return _ABSENT.fullmatch(bad.reason) is not None


def is_doubtful(bad: Quarantined) -> bool:
    """Whether the source may be to blame, and not the image.

    So it is if the image is absent, if it is another file than was planned, as all images are in
    another source, or if nobody knows the reason.
    """
    return (
        is_absent(bad) or bad.reason == UNREADABLE or _OTHER_FILE.fullmatch(bad.reason) is not None
    )


def bad_allowed(images: int, limit: float) -> int:
    """Return how many unreadable images may pass among so many: the share `limit` of them, but at
    least one, unless the share is 0."""
    return max(1, int(limit * images)) if limit else 0


def check_bad(plan: Plan, count: int, named: Sequence[Quarantined], limit: float) -> None:
    """Raise DataError if `count` unreadable images are more than a whole job may have; the message
    shows some of `named`."""
    if count > bad_allowed(plan.images, limit):
        raise DataError(
            f"{count} of {plan.images} images cannot be read, more than the limit {limit:.1%}: "
            f"{_names(named)}; mend them and plan anew, or allow more with --bad-limit"
        )


class BadCount:
    """Counts the unreadable images of a job, shard by shard, before each shard is stored; what is
    stored is never made again.

    limit: share of all planned images that may be unreadable. Doubtful images (`is_doubtful`) are
    also held to that share of their shard, and of the images so far: images get lost one by one,
    and many at once point to a source that is not whole, or to another source. before: the counts
    of the shards that were made when this job began.
    """

    def __init__(self, plan: Plan, limit: float, before: Totals) -> None:
        self._plan, self._limit = plan, limit
        self._done = before.stored + before.quarantined
        self._bad, self._doubtful = before.quarantined, before.doubtful

    def add(self, shard: int, bad: Sequence[Quarantined]) -> None:
        """Count a shard's unreadable images. Raises DataError if the shard must not be stored."""
        doubtful = [q for q in bad if is_doubtful(q)]
        rows = self._plan.rows_of(shard)
        self._done += rows
        self._bad += len(bad)
        self._doubtful += len(doubtful)
        check_bad(self._plan, self._bad, bad, self._limit)
        if doubtful:
            self._check_doubtful(len(doubtful), rows, f"of shard {shard}", doubtful)
            self._check_doubtful(self._doubtful, self._done, "so far", doubtful)

    def _check_doubtful(
        self, count: int, among: int, where: str, named: Sequence[Quarantined]
    ) -> None:
        if count > bad_allowed(among, self._limit):
            raise DataError(
                f"{count} of the {among} images {where} cannot be read, more than the limit "
                f"{self._limit:.1%}: {_names(named)}; the shard is not stored. Put them back, or "
                "give the source that was planned, and run again; else plan anew in an empty "
                "folder, or allow more with --bad-limit"
            )


def _names(bad: Sequence[Quarantined]) -> str:
    return "; ".join(f"{printable(q.id)}: {q.reason}" for q in bad[:3]) + (
        "; ..." if len(bad) > 3 else ""
    )
