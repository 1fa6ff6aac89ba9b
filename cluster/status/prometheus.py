"""A snapshot as Prometheus text, for a scrape of standard output or for node_exporter's textfile
collector. docs/alerts.yaml has rules over these names.

Moments are exported rather than ages: `time() - addp_run_checkpoint_timestamp_seconds` grows on
where nobody writes the file any more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster.status.snapshot import Checkpoint, Metrics, Snapshot, State
from model.files import write_atomically

_GIB = 2**30
_MOST_HOSTS = 1024  # that have labels
_MOST_SECTIONS = 20  # that have labels


def prometheus_text(snapshot: Snapshot) -> bytes:
    """Return a snapshot as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(snapshot))
    text: bytes = generate_latest(registry)
    return text


def write_textfile(path: Path, snapshot: Snapshot) -> None:
    """Replace a file for node_exporter's textfile collector, whole or not at all. Raises
    OSError."""
    write_atomically(path, prometheus_text(snapshot))


class _Snapshots(Collector):
    """What a registry collects: one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield from _of_state(snapshot)
        yield from _of_progress(snapshot)
        if snapshot.metrics:
            yield from _of_metrics(snapshot.metrics, snapshot)
        yield from _of_checkpoints(snapshot)
        yield from _of_time(snapshot)
        yield from _of_ranks(snapshot)


def _gauge(snapshot: Snapshot, name: str, help_text: str, value: float | None) -> Iterator[Metric]:
    """A gauge of the run; none where nobody knows the value."""
    if value is not None:
        family = GaugeMetricFamily(f"addp_run_{name}", help_text, labels=["run"])
        family.add_metric([snapshot.run], value)
        yield family


def _labelled(
    snapshot: Snapshot, name: str, help_text: str, label: str, values: dict[str, float]
) -> Iterator[Metric]:
    """A gauge of the run with one more label."""
    if values:
        family = GaugeMetricFamily(f"addp_{name}", help_text, labels=["run", label])
        for key, value in values.items():
            family.add_metric([snapshot.run, key], value)
        yield family


def _of_state(snapshot: Snapshot) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "addp_run_info", "The run: its id, and where it lies. 1", labels=["run", "id", "place"]
    )
    info.add_metric([snapshot.run, snapshot.id or "", snapshot.place], 1)
    yield info
    states = {state: float(state == snapshot.state) for state in get_args(State)}
    yield from _labelled(
        snapshot, "run_state", "1 for the state that the run is in, 0 for others", "state", states
    )
    yield from _gauge(
        snapshot, "read_timestamp_seconds", "When this was read, since 1970", snapshot.time
    )
    yield from _gauge(
        snapshot, "exit_code", "Exit code of an attempt that has ended", snapshot.code
    )
    yield from _gauge(
        snapshot, "stop_requested", "1 while a STOP is there", float(snapshot.stop_requested)
    )
    yield from _gauge(
        snapshot, "unreadable", "Problems in reading the run", float(len(snapshot.problems))
    )


def _of_progress(snapshot: Snapshot) -> Iterator[Metric]:
    yield from _gauge(snapshot, "step", "Steps done", snapshot.step)
    yield from _gauge(snapshot, "planned_steps", "Steps of the whole run", snapshot.total)
    yield from _gauge(
        snapshot, "eta_seconds", "Seconds of training left, at the latest pace", snapshot.eta
    )


def _of_metrics(metrics: Metrics, snapshot: Snapshot) -> Iterator[Metric]:
    loss = math.nan if metrics.loss_is_finite is False else metrics.loss
    for name, help_text, value in (
        ("loss", "Loss of the newest metric line", loss),
        ("learning_rate", "Learning rate of the last step", metrics.learning_rate),
        ("gradient_norm", "Norm of the gradient before clipping", metrics.grad_norm),
        ("images_per_second", "Images a second, all ranks", metrics.images_per_second),
        ("step_duration_seconds", "Seconds of a step, mean", metrics.seconds_per_step),
        ("mfu_ratio", "Share of the device's peak that is used, 0 to 1", metrics.mfu),
        ("data_wait_ratio", "Share of time waiting for data, slowest rank", metrics.data_wait),
        ("straggler_rank", "The rank that the others wait for, if any", metrics.straggler),
        (
            "host_memory_bytes",
            "Host memory of the rank that takes most",
            _bytes(metrics.memory_gib),
        ),
        (
            "device_memory_bytes",
            "Device memory of the largest rank",
            _bytes(metrics.device_memory_gib),
        ),
        ("skipped_steps", "Steps whose gradient was not finite", metrics.skipped_steps),
        ("save_stall_seconds", "Seconds that saves held up", metrics.save_stall_seconds),
        (
            "metrics_timestamp_seconds",
            "When the newest metric line was written, since 1970",
            None if metrics.age is None else snapshot.time - metrics.age,
        ),
    ):
        yield from _gauge(snapshot, name, help_text, value)
    own = {
        "p50": metrics.rank_seconds_p50,
        "p95": metrics.rank_seconds_p95,
        "max": metrics.rank_seconds_max,
    }
    yield from _labelled(
        snapshot,
        "run_rank_duration_seconds",
        "A rank's own seconds a step: of the median rank, 95 % of the ranks, the slowest",
        "of",
        {of: value for of, value in own.items() if value is not None},
    )


def _bytes(gib: float | None) -> float | None:
    return None if gib is None else gib * _GIB


def _of_checkpoints(snapshot: Snapshot) -> Iterator[Metric]:
    places: dict[str, Checkpoint] = {
        place: checkpoint
        for place, checkpoint in (("folder", snapshot.checkpoint), ("store", snapshot.copied))
        if checkpoint is not None
    }
    yield from _labelled(
        snapshot,
        "run_checkpoint_step",
        "Step of the newest committed checkpoint",
        "place",
        {place: float(checkpoint.step) for place, checkpoint in places.items()},
    )
    yield from _labelled(
        snapshot,
        "run_checkpoint_timestamp_seconds",
        "When the newest checkpoint was committed, since 1970",
        "place",
        {place: checkpoint.saved for place, checkpoint in places.items()},
    )


def _of_time(snapshot: Snapshot) -> Iterator[Metric]:
    if snapshot.starts is not None:
        starts = CounterMetricFamily("addp_run_starts", "Starts of the run", labels=["run"])
        starts.add_metric([snapshot.run], snapshot.starts)
        yield starts
    if snapshot.faults:
        faults = CounterMetricFamily(
            "addp_run_faults", "Faults that the supervisors saw", labels=["run", "kind"]
        )
        for kind, count in snapshot.faults.items():
            faults.add_metric([snapshot.run, kind], count)
        yield faults
    if snapshot.started:
        yield from _gauge(
            snapshot,
            "start_seconds",
            "Seconds of the last start, to the end of its first step",
            snapshot.started.seconds,
        )
    if snapshot.recovery:
        yield from _gauge(
            snapshot,
            "recovery_noticed_seconds",
            "Seconds from the last sign of life to the newest fault",
            snapshot.recovery.noticed,
        )
        yield from _gauge(
            snapshot,
            "recovery_step_seconds",
            "Seconds from then to the next new step",
            snapshot.recovery.stepped,
        )
    yield from _gauge(
        snapshot,
        "failures_without_progress",
        "Latest failures with no new checkpoint between them",
        snapshot.failures_without_progress,
    )
    if snapshot.ettr:
        yield from _gauge(
            snapshot, "ettr_ratio", "Effective training time ratio, 0 to 1", snapshot.ettr.ratio
        )
        yield from _gauge(
            snapshot, "train_seconds", "Seconds in steps that count", snapshot.ettr.train_seconds
        )
        yield from _gauge(
            snapshot,
            "lost_seconds",
            "Seconds down, starting, or in steps done again",
            snapshot.ettr.lost_seconds,
        )
    yield from _labelled(
        snapshot,
        "run_incidents_last_hour",
        "Incidents of the last hour, by what they were",
        "event",
        {event: float(count) for event, count in snapshot.incident_counts.items()},
    )


def _of_ranks(snapshot: Snapshot) -> Iterator[Metric]:
    yield from _gauge(
        snapshot, "expected_ranks", "Ranks of the newest attempt", snapshot.expected_ranks
    )
    if snapshot.source == "store":
        return
    ranks = snapshot.ranks
    yield from _gauge(
        snapshot,
        "silent_ranks",
        "Ranks that are gone, or silent for longer than their section may take",
        float(sum(rank.silent for rank in ranks)),
    )
    sections = Counter(rank.section for rank in ranks)
    yield from _labelled(
        snapshot,
        "run_ranks",
        "Ranks, by the section that they are in",
        "section",
        {section: float(count) for section, count in sections.most_common(_MOST_SECTIONS)},
    )
    beats: dict[str, float] = {}
    for rank in ranks:
        if rank.lives:
            beats[rank.host] = min(beats.get(rank.host, math.inf), snapshot.time - rank.age)
    yield from _labelled(
        snapshot,
        "host_beat_timestamp_seconds",
        "Last sign of life of the most silent rank on a host, since 1970",
        "host",
        dict(sorted(beats.items())[:_MOST_HOSTS]),
    )
