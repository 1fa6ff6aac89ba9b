"""Reads a run: one snapshot of its folder, or of the store that it uploads to.

The folder says most. A store holds what came with the newest checkpoint, and the lock that the run
renews, which is its only sign of life there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.status import alive, course, fields, files, supervision
from cluster.status.copies import CopyWatch
from cluster.status.incidents import recent_incidents
from cluster.status.snapshot import Checkpoint, Rank, Snapshot, State
from cluster.status.source import FolderSource, Piece, Source, StoreSource
from cluster.status.state import Evidence, judge
from cluster.supervise import history
from data_pipeline.storage import is_remote, open_store
from model.errors import ConfigError
from trainer.run_folder import RunFolder

_SLACK = 60.0  # seconds between the clocks of hosts and of shared storage
_CLOCKS = 5.0  # seconds by which a host's clock may be ahead before it is said
_CONFIGURATION = 1 << 20  # bytes
T = TypeVar("T")


def open_run(run: str) -> RunReader:
    """Return a reader of a run, by its folder or its store. Raises ConfigError where there is no
    such folder, and StorageError where the store does not answer."""
    if is_remote(run):
        next(iter(open_store(run).list("metrics.jsonl")), None)  # raises where there is no bucket
        return RunReader(run, None)
    path = Path(run)
    try:
        there = path.is_dir()
        # A folder that a run uploads to: only a run itself has heartbeats.
        is_store = (path / "owner").is_dir() and not (path / "heartbeats").exists()
    except OSError:  # a name that is too long, a folder that we may not enter
        there = is_store = False
    if not there:
        raise ConfigError(
            f"there is no run folder {fields.one_line(run)} that can be read; give the folder that "
            "`run=` named, or the s3://bucket/prefix that the run uploads to"
        )
    return RunReader(run, None if is_store else RunFolder(path.absolute()))


class RunReader:
    """Reads one run again and again. folder: None for a store."""

    def __init__(self, run: str, folder: RunFolder | None) -> None:
        self.run, self.folder = run, folder
        self.place = str(folder.path) if folder else run.rstrip("/")
        self.name = fields.one_line(self.place.rpartition("/")[2] or self.place, 100)
        self._parsed: dict[str, tuple[bytes, Any]] = {}
        self._copies: CopyWatch | None = None

    def read(self, now: float | None = None, wait_for_copy: float = 0.0) -> Snapshot:
        """Return the run as it is now.

        now: seconds since 1970, where it is not the present. wait_for_copy: seconds in which the
        store of a run folder may say what it has; a later answer is in a later snapshot.
        """
        now = time.time() if now is None else now
        source: Source = (
            FolderSource(self.folder.path) if self.folder else StoreSource(open_store(self.run))
        )
        settings, rows = self._settings(source), files.metric_rows(source)
        checkpoint = files.newest_checkpoint(source, now)
        supervised = self._supervision(source, checkpoint, now)
        attempt = _attempt(source, supervised, settings.ranks, rows)
        ranks = alive.ranks(source, now, attempt) if self.folder else []
        begun = bool(rows or checkpoint or attempt.started or settings.ranks)
        if supervised:
            supervised = supervised.without_verdict_before(attempt.started)
        evidence = self._evidence(source, supervised, ranks, settings.lease, begun=begun, now=now)
        judged = judge(evidence)
        step = settings.total if judged.state == "done" else None
        step = step or _step(rows, ranks, checkpoint)
        incidents = recent_incidents(source, now, supervised.recent if supervised else ())
        starts = _starts(rows, supervised)
        copied = checkpoint
        if self.folder:
            copied = self._copied(settings.upload, now, wait_for_copy, source)
        return Snapshot(
            run=self.name,
            place=fields.one_line(self.place, 1000),
            source="folder" if self.folder else "store",
            id=files.identity(source),
            time=now,
            state=judged.state,
            reason=fields.one_line(judged.reason),
            since=judged.since,
            code=judged.code,
            step=step,
            total=settings.total,
            eta=_eta(rows, settings.total, step, judged.state),
            metrics=course.newest_metrics(rows, now),
            checkpoint=checkpoint if self.folder else None,
            upload=settings.upload if self.folder else fields.one_line(self.place, 1000),
            copied=copied,
            starts=starts,
            restarts=None if starts is None else starts - 1,
            started=files.start(source),
            failures_without_progress=supervised.failures if supervised else None,
            ettr=course.ettr(rows, now, judged.state),
            faults=supervised.faults if supervised else {},
            recovery=supervised.recovery if supervised else None,
            incidents=incidents.listed,
            incident_counts=incidents.by_event,
            expected_ranks=attempt.ranks,
            ranks=ranks,
            hosts=sorted({rank.host for rank in ranks if rank.host}),
            stop_requested=evidence.stop_requested,
            problems=_problems(source, ranks, attempt.ranks, judged.state),
        )

    def _evidence(
        self,
        source: Source,
        supervised: supervision.Supervision | None,
        ranks: Sequence[Rank],
        lease: float,
        *,
        begun: bool,
        now: float,
    ) -> Evidence:
        """Return what the state of the run is judged by. lease: of the lock on its store."""
        lock = (
            alive.folder_lock(self.folder) if self.folder else alive.store_lock(source, lease, now)
        )
        return Evidence(
            now=now,
            done=files.is_done(source),
            exit=files.exit_record(source),
            verdict=supervised.verdict if supervised else None,
            supervised=supervised.acted if supervised else None,
            touched=supervised.touched if supervised else None,
            started_now=supervised is not None and supervised.started_now,
            lock=lock,
            ranks=ranks,
            stop_requested=alive.stop_file(source) is not None,
            begun=begun,
            from_store=self.folder is None,
        )

    def _settings(self, source: Source) -> files.Settings:
        config = source.end("config.resolved.yaml", _CONFIGURATION)
        tree = self._once("config", config, files.configuration)
        return files.settings(tree, files.record(source, "environment.json"))

    def _supervision(
        self, source: Source, checkpoint: Checkpoint | None, now: float
    ) -> supervision.Supervision | None:
        piece = supervision.history_file(source)
        events: list[history.Event] | None = self._once("history", piece, supervision.events_of)
        newest = checkpoint.step if checkpoint else None
        # A copy on a store is changed by whoever makes it.
        touched = piece.modified if piece and self.folder else None
        return supervision.summary(events or [], newest, now, touched)

    def _once(self, name: str, piece: Piece | None, parse: Callable[[Piece], T]) -> T | None:
        """Return what a file says. What has not changed since the last time is not parsed again."""
        if piece is None:
            return None
        content, parsed = self._parsed.get(name, (None, None))
        if content != piece.content:
            parsed = parse(piece)
            self._parsed[name] = piece.content, parsed
        return parsed

    def _copied(
        self, upload: str | None, now: float, wait: float, source: Source
    ) -> Checkpoint | None:
        if upload is None:
            return None
        if self._copies is None or self._copies.url != upload:
            self._copies = CopyWatch(upload)
        self._copies.ask(wait)
        if self._copies.problem:
            source.problems.append(self._copies.problem)
        newest = self._copies.newest
        return newest and newest.model_copy(update={"age": max(0.0, now - newest.saved)})


def _attempt(
    source: Source, supervised: supervision.Supervision | None, ranks: int | None, rows: course.Rows
) -> alive.Attempt:
    """Tell the newest attempt from earlier ones. ranks: of the attempt that came to train last."""
    begun = source.end("attempt", 64)
    moments = [begun.modified if begun else 0.0]
    if supervised:
        moments.append(supervised.started)
        ranks = supervised.ranks if supervised.started >= moments[0] - _SLACK else ranks
    started = max(0.0, max(moments) - _SLACK)
    return alive.Attempt(ranks, started, course.slowest_step(rows))


def _step(rows: course.Rows, ranks: Sequence[Rank], checkpoint: Checkpoint | None) -> int | None:
    """Return the steps done, by whoever knows of most."""
    known = [course.steps_done(rows), checkpoint.step if checkpoint else None]
    known += [rank.step for rank in ranks]
    return max((step for step in known if step is not None), default=None)


def _starts(rows: course.Rows, supervised: supervision.Supervision | None) -> int | None:
    return max(course.starts(rows) or 0, supervised.starts if supervised else 0) or None


def _eta(rows: course.Rows, total: int | None, step: int | None, state: State) -> float | None:
    seconds = course.pace(rows)
    if total is None or step is None or seconds is None:
        return None
    return 0.0 if state == "done" else max(0, total - step) * seconds


def _problems(
    source: Source, ranks: Sequence[Rank], expected: int | None, state: State
) -> list[str]:
    problems = list(dict.fromkeys(source.problems))[:20]
    if state in ("running", "stopping", "hung") and expected and 0 < len(ranks) < expected:
        problems.append(f"only {len(ranks)} of {expected} ranks have given a sign of life")
    ahead = max(ranks, key=lambda rank: rank.ahead, default=None)
    if ahead and ahead.ahead > _CLOCKS:
        problems.append(f"the clock of {ahead.host} is {ahead.ahead:.0f} s ahead of this machine's")
    return problems
