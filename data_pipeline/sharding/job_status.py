"""How far a sharding job is, as the store's listing shows it, wherever its workers run."""

from __future__ import annotations

import time
from typing import NamedTuple

from data_pipeline.sharding.plan import Plan
from data_pipeline.sharding.quarantine import Totals, is_doubtful
from data_pipeline.sharding.receipts import (
    Survey,
    read_receipts,
    rows_in,
    shard_name,
    sound_receipt_bytes,
)
from data_pipeline.shards.manifest import Quarantined
from data_pipeline.storage import Store

_RECENT = 50  # shards that the rate is taken from


class JobStatus(NamedTuple):
    """How far a job is.

    images: the number of planned images. images_done: those planned for the finished shards; each
    of them is stored or quarantined. shards_per_hour, images_per_second, eta_seconds: estimated
    from the latest shards; None if there are too few.
    """

    shards: int
    done: int
    missing: int
    first_missing: list[int]
    images: int
    images_done: int
    stored: int
    quarantined: int
    shards_per_hour: float | None
    images_per_second: float | None
    eta_seconds: float | None
    last_shard_seconds_ago: float | None
    finalized: bool

    @property
    def totals(self) -> Totals:
        return Totals(self.images, self.stored, self.quarantined, self.images - self.images_done)

    @property
    def text(self) -> str:
        """Return the status in lines for people."""
        lines = [
            f"{self.done:,} of {self.shards:,} shards done, {self.missing:,} missing",
            self.totals.text,
        ]
        if not self.missing:
            return "\n".join(
                [
                    *lines,
                    "finalized" if self.finalized else "complete; next: addp tokenize finalize",
                ]
            )
        if self.eta_seconds is not None:
            lines.append(
                f"rate: {self.images_per_second:,} images/s, ETA {self.eta_seconds / 3600:.1f} h "
                f"if it goes on; the last shard came {self.last_shard_seconds_ago} s ago"
            )
        return "\n".join([*lines, f"first missing: {', '.join(map(str, self.first_missing))}"])


Known = dict[int, tuple[Quarantined, ...]]  # shard number -> its images that could not be read


def count(store: Store, plan: Plan, state: Survey, known: Known) -> Totals:
    """Count what became of the planned images, from the sizes of the stored shards and the lists in
    the receipts.

    state: the latest survey of the store. known: the unreadable images of the shards seen so far,
    which never change; this call adds the new ones. It reads only receipts that name such images.
    """
    new = [
        k
        for k, receipt in state.done.items()
        if k not in known and receipt.size != sound_receipt_bytes(plan, k)
    ]
    known.update(
        {
            k: receipt.quarantined
            for k, receipt in zip(new, read_receipts(store, plan, new), strict=True)
        }
    )
    bad = [q for quarantined in known.values() for q in quarantined]
    sizes = (
        state.shards[shard_name(k)].size if shard_name(k) in state.shards else 0 for k in state.done
    )
    return Totals(
        plan.images,
        sum(rows_in(plan, size) for size in sizes),
        len(bad),
        sum(plan.rows_of(k) for k in state.missing(plan)),
        sum(map(is_doubtful, bad)),
    )


def job_status(store: Store, plan: Plan, state: Survey, known: Known) -> JobStatus:
    """Say how far the job is. state, known: as in `count`."""
    totals = count(store, plan, state, known)
    times = sorted(entry.modified for entry in state.done.values())[-_RECENT:]
    span = times[-1] - times[0] if times else 0.0
    rate = (len(times) - 1) / span if span > 0 else None
    missing = state.missing(plan)
    return JobStatus(
        shards=plan.shards,
        done=len(state.done),
        missing=len(missing),
        first_missing=missing[:8],
        images=plan.images,
        images_done=plan.images - totals.to_come,
        stored=totals.stored,
        quarantined=totals.quarantined,
        shards_per_hour=round(3600 * rate, 1) if rate else None,
        images_per_second=round(plan.recipe.rows * rate, 1) if rate else None,
        eta_seconds=round(len(missing) / rate) if rate else None,
        last_shard_seconds_ago=round(time.time() - times[-1]) if times else None,
        finalized=state.finalized,
    )
