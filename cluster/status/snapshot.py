"""What `addp status` knows of a run at one moment. The fields are the keys of `--json`.

Times are in seconds since 1970, ages and durations in seconds. None stands for what nobody knows:
the file is not there, or not yet, or does not hold what it should.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal[
    "new",
    "starting",
    "running",
    "stopping",
    "restarting",
    "stopped",
    "done",
    "failed",
    "gave up",
    "incomplete",
    "hung",
    "dead",
]
# Nothing more happens in these by itself.
ENDED: tuple[State, ...] = ("new", "stopped", "done", "failed", "gave up", "incomplete", "dead")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metrics(_Record):
    """The newest metric line, as docs/recovery.md lists its keys."""

    age: float | None = Field(description="seconds since it was written")
    loss: float | None = Field(description="of the newest metric line")
    loss_is_finite: bool | None = Field(description="false where the line says nan or inf")
    losses: list[float | None] = Field(description="of the latest lines, the oldest first")
    learning_rate: float | None = Field(description="of the last step")
    grad_norm: float | None = Field(description="before clipping")
    images_per_second: float | None = Field(description="of all ranks together")
    seconds_per_step: float | None = Field(description="mean since the line before")
    tflops: float | None = Field(description="10^12 operations a second of one rank")
    mfu: float | None = Field(description="share of the device's peak, 0 to 1")
    data_wait: float | None = Field(
        description="share of the time for which the slowest rank waited for data"
    )
    straggler: int | None = Field(description="the rank that the others wait for")
    rank_seconds_p50: float | None = Field(description="own time a step of the median rank")
    rank_seconds_p95: float | None = Field(description="own time that 95 % of the ranks keep")
    rank_seconds_max: float | None = Field(description="own time of the slowest rank")
    memory_gib: float | None = Field(description="host memory of the rank that takes most")
    device_memory_gib: float | None = Field(description="device memory of the rank that takes most")
    skipped_steps: int | None = Field(description="steps whose gradient was not finite")
    save_stall_seconds: float | None = Field(description="that this start has waited for saves")


class Ettr(_Record):
    """How much of its time a run has trained."""

    ratio: float = Field(description="train_seconds / (train_seconds + lost_seconds)")
    train_seconds: float = Field(description="in steps that count")
    lost_seconds: float = Field(
        description="down, starting, or in steps that were done again; with the time since the "
        "newest metric line where the run should go on and does not"
    )


class Checkpoint(_Record):
    """A checkpoint that is committed."""

    step: int = Field(description="steps done when it was saved")
    saved: float = Field(description="when it was committed")
    age: float = Field(description="seconds since then")


class Rank(_Record):
    """The last sign of life of a rank."""

    rank: int = Field(description="its number")
    host: str = Field(description="where it runs")
    section: str = Field(
        description="setup, restore, data, step, save, end; exit after its last word"
    )
    step: int = Field(description="steps that it has done")
    age: float = Field(description="seconds since its last beat")
    limit: float = Field(description="seconds for which it may be silent in that section")
    ahead: float = Field(0.0, description="seconds by which its clock is ahead of this machine's")
    gone: bool = Field(
        False, description="whether its process has ended on this machine without a word"
    )
    code: int | None = Field(None, description="its exit code, once it has left one")
    reason: str | None = Field(None, description="why it ended")

    @property
    def lives(self) -> bool:
        """Whether it has not said that it ends."""
        return self.section != "exit"

    @property
    def silent(self) -> bool:
        """Whether it is gone, or silent for longer than it may be."""
        return self.lives and (self.gone or self.age > self.limit)


class Start(_Record):
    """How long the newest start took that came to its first step, as rank 0 saw it."""

    seconds: float = Field(description="from the beginning of the process to the end of that step")
    parts: dict[str, float] = Field(
        description="seconds of imports, meeting, networks, data, engine, restore, records, first "
        "batch, first step"
    )


class Incident(_Record):
    """A fault that a rank met, one that passed included, or that the supervisors saw."""

    time: float = Field(description="when")
    rank: int | None = Field(description="which rank met it; null for a fault of a whole node")
    event: str = Field(
        description="what it was, as docs/recovery.md names it, or the kind of a fault"
    )
    details: str = Field(description="what else the record says, in one line")


class Recovery(_Record):
    """How the run came back from the newest fault that ended an attempt, as supervisors saw it."""

    time: float = Field(description="when the fault was noticed")
    kind: str = Field(description="death, crash, hang, lost node, ...")
    noticed: float = Field(description="seconds from the last sign of life until then")
    stepped: float | None = Field(
        description="seconds from then to the next new step; null before that"
    )


class Snapshot(_Record):
    """A run at one moment."""

    format: Literal["addp-status-1"] = Field(
        "addp-status-1", description="changes where a key goes away or changes its meaning"
    )
    run: str = Field(description="the name of the run folder, or the last part of the store's url")
    place: str = Field(description="the run folder, or the url of the store")
    source: Literal["folder", "store"] = Field(
        description="store: what the newest upload brought; there are no heartbeats"
    )
    id: str | None = Field(description="the id of the run, from run.json")
    time: float = Field(description="when this was read")

    state: State = Field(description="see the table of states")
    reason: str = Field(description="what the state is taken from, or why the run ended")
    since: float | None = Field(description="since when it is in a state in which nothing goes on")
    code: int | None = Field(description="the exit code of the newest attempt, once it has ended")

    step: int | None = Field(description="steps done")
    total: int | None = Field(description="steps of the whole run")
    eta: float | None = Field(description="seconds to the end at the pace of the latest lines")
    metrics: Metrics | None = Field(description="what the newest metric line says")

    checkpoint: Checkpoint | None = Field(description="the newest committed one of the run folder")
    upload: str | None = Field(description="the store that checkpoints are copied to")
    copied: Checkpoint | None = Field(description="the newest one on the store")

    starts: int | None = Field(description="how often the run was started")
    restarts: int | None = Field(description="starts after the first")
    started: Start | None = Field(description="how long the last start took")
    failures_without_progress: int | None = Field(
        description="the latest failures with no new checkpoint between them; null without a "
        "supervisor"
    )
    ettr: Ettr | None = Field(description="the effective training time ratio")

    faults: dict[str, int] = Field(
        description="how many of each kind the supervisors saw in the life of the run"
    )
    recovery: Recovery | None = Field(description="from the newest fault that ended an attempt")
    incidents: list[Incident] = Field(description="of the last hour, the oldest first, at most 100")
    incident_counts: dict[str, int] = Field(
        description="how many there were of each event; of many events, the rarer are `other`"
    )

    expected_ranks: int | None = Field(description="ranks of the newest attempt")
    ranks: list[Rank] = Field(description="the last sign of life of each")
    hosts: list[str] = Field(description="where they run")
    stop_requested: bool = Field(description="whether a STOP is there")
    problems: list[str] = Field(description="what could not be read, and what looks wrong")
