"""The run folder and the exit codes: the contract between a run and everything that watches it.

Imports no torch.

RUN/
  config.resolved.yaml    the configuration with every key
  environment.json        versions, host, command
  metrics.jsonl           one line every `log_every` steps
  incidents/rank-N.jsonl  the faults that a rank met, those that passed included. Each rank has its
                          own file, because appends of several hosts to one file on NFS overwrite
                          each other. Earlier versions wrote incidents.jsonl, which is still read.
  heartbeats/rank-N.json  a sign of life of each rank, and its last word
  traces/rank-N.txt       the traceback of a rank that crashed
  tensorboard/
  checkpoints/step-N/     rank-*.safetensors, and manifest.json, which is written last
  run.json                which run this is: {"run": its id, "host", "made"}
  rewinds.json            the data that the run leaves out after spikes
  network.safetensors     the trained network, once the run is complete; beside it
                          network-ema.safetensors, the moving average of its weights. When a
                          complete run is extended, they become network-step-N.safetensors and
                          network-ema-step-N.safetensors.
  done.json               written last of all: the run is complete. It is removed while an extended
                          run has work left.
  exit.json               how the last attempt ended: {"code", "reason", "time"}. An attempt that
                          was killed writes none.
  STOP                    a user creates it to make the run save and stop
  lock, attempt           rank 0 holds the lock while the run lives; the name of the last attempt
  evaluation/step-N/      BENCHMARK.json for each benchmark, and its images
  samples/                generated images
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from model.documents import parse_json, read_file
from model.errors import ConfigError, DataError
from model.files import write_atomically
from trainer import records

Weights = Literal["raw", "ema"]  # the trained weights, or their average
Format = Literal["native", "addp", "timm", "huggingface"]  # of an export
log = logging.getLogger(__name__)

TARGETS = "targets.json"  # below evaluation/: figures beside what they must reach, for the report

LOST_RANK = (
    "another rank went away"  # begins the last word of a rank that ends only since another did
)
DONE = "done.json"
RUN = "run.json"
INCIDENTS = "incidents"  # a folder
OLD_INCIDENTS = "incidents.jsonl"  # of earlier versions, by all ranks
EXIT_DONE = 0
EXIT_STORAGE = 74
EXIT_PREEMPTED = 75
EXIT_HANG = 76
EXIT_DIVERGED = 77
EXIT_CONFIG = 78
EXIT_NO_VALID_CHECKPOINT = 79
_LARGEST_RECORD = 1 << 20  # bytes
OWN_CODES = range(74, 80)  # any other code is a crash


def json_lines(text: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl or a file of incidents; what is no record, as a line that a kill cut short,
    is left out."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def incident_names(names: Iterable[str]) -> list[str]:
    """Those of a run's files that hold incidents, sorted."""
    return sorted(
        n
        for n in names
        if n == OLD_INCIDENTS or re.fullmatch(rf"{INCIDENTS}/rank-[0-9]+\.jsonl", n)
    )


def in_time_order(incidents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Incidents of several files; those that do not say when they were come first."""

    def moment(record: dict[str, Any]) -> float:
        time = record.get("time")
        return float(time) if isinstance(time, int | float) and abs(time) < 1e15 else 0.0

    return sorted(incidents, key=moment)


def step_folder(step: int) -> str:
    """Name of a folder about a step, below checkpoints/ and evaluation/."""
    return f"step-{step:08d}"


def checkpoint_fingerprint(hashes: Mapping[str, str]) -> str:
    """Of what the files of a checkpoint hold: {name: sha256}."""
    stated = sorted(f"{name} {sha256}" for name, sha256 in hashes.items())
    return hashlib.sha256("\n".join(stated).encode()).hexdigest()[:16]


class RunFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.incidents = self.path / INCIDENTS
        self.heartbeats = self.path / "heartbeats"
        self.rewinds = self.path / "rewinds.json"
        self.tensorboard = self.path / "tensorboard"
        self.network = self.path / "network.safetensors"
        self.ema = self.path / "network-ema.safetensors"
        self.exit = self.path / "exit.json"
        self.stop = self.path / "STOP"
        self.evaluation = self.path / "evaluation"
        self.samples = self.path / "samples"
        self.identity = self.path / RUN
        self._done = self.path / DONE
        self._lock: TextIO | None = None

    @property
    def is_done(self) -> bool:
        return self._done.is_file()

    def read_done(self) -> dict[str, Any] | None:
        """{"step", "checkpoint", "run", "start"}: the end of the run, and the start that came to
        it; None before."""
        return _read_json(self._done, "step", int)

    def read_identity(self) -> dict[str, Any] | None:
        """{"run", "host", "made"}; None before the first step, and in folders of earlier
        versions."""
        return _read_json(self.identity, "run", str)

    def reopen(self) -> None:
        """A complete run has work again: it is not done, and its networks are named after their
        step. Networks first: a kill in between is made good by the next start."""
        if done := self.read_done():
            for path in (self.network, self.ema):
                if path.exists():
                    path.rename(
                        path.with_name(f"{path.stem}-{step_folder(done['step'])}{path.suffix}")
                    )
        self._done.unlink(missing_ok=True)

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"rank-{rank:05d}.json"

    def trace(self, rank: int) -> Path:
        return self.path / "traces" / f"rank-{rank:05d}.txt"

    def write_exit(self, code: int, reason: str) -> None:
        content = {"code": code, "reason": reason, "time": time.time()}
        records.replace(self.exit, (json.dumps(content, indent=1) + "\n").encode())

    def read_exit(self) -> dict[str, Any] | None:
        """How the last start ended; None where it was killed, runs, or was never started."""
        return _read_json(self.exit, "code", int)

    @property
    def is_locked(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def holder(self) -> str | None:
        """The process that holds the lock now, None where there is none. Changes nothing."""
        try:
            file = (self.path / "lock").open("r+")
        except OSError:
            return None
        with file:  # what is locked here is let go of at once
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                taken = error.errno in (errno.EACCES, errno.EAGAIN)
                return (file.read().strip() or "another process") if taken else None
        return None

    def lock(self, patience: float = 5.0) -> None:
        """Hold RUN/lock until this process ends, however it ends. Raises ConfigError while another
        run holds it.

        patience: seconds to wait for it; the ranks of a run that was just killed may still be
        ending.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+")
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    reason = f"this storage has no locks ({error.strerror or error})"
                    log.warning("%s: %s; nothing keeps two runs apart", self.path, reason)
                    self.incident({"event": "not locked", "error": reason})
                    break
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise ConfigError(
                        f"{self.path} is in use by {holder}; wait for that run to end, or use "
                        "another run folder"
                    ) from error
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self._lock = file  # closed, and so released, with the process

    def trained(self, weights: Weights = "raw") -> Path:
        """File of the trained network, or of the average of its weights. Raises ConfigError where
        there is none."""
        path = self.ema if weights == "ema" else self.network
        if not path.is_file():
            raise ConfigError(
                f"{self.path} has no {path.name}"
                + (
                    "; the run kept no average (ema_decay was not set)"
                    if weights == "ema"
                    else "; let the run finish"
                )
            )
        return path

    def mark_done(self, content: dict[str, Any]) -> None:
        write_json(self._done, content)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Metric lines, as `json_lines`."""
        return json_lines(self.metrics.read_text()) if self.metrics.exists() else []

    def incident(self, record: dict[str, Any]) -> None:
        """Append a fault, with its time and rank, to this rank's file. May be called by any thread
        and rank."""
        rank = int(os.environ.get("RANK", 0))
        line = json.dumps({"time": time.time(), "rank": rank, **record}) + "\n"
        records.append(self.incidents / f"rank-{rank:05d}.jsonl", line.encode())

    def incident_files(self) -> list[str]:
        """Their names below the run folder. Raises OSError."""
        there = [path.relative_to(self.path).as_posix() for path in self.incidents.glob("*")]
        return incident_names(
            [*there, *([OLD_INCIDENTS] if (self.path / OLD_INCIDENTS).exists() else [])]
        )

    def read_incidents(self) -> list[dict[str, Any]]:
        """Of all ranks, in the order of time."""
        texts = [(self.path / name).read_text(errors="replace") for name in self.incident_files()]
        return in_time_order(row for text in texts for row in json_lines(text))

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        try:
            rows = json_lines(records.read(self.metrics).decode(errors="replace"))
        except OSError as error:
            records.say(
                f"{self.metrics} cannot be read: {error.strerror or error}. Lines of steps done "
                "twice stay in it"
            )
            return
        kept = [
            json.dumps(row) + "\n"
            for row in rows
            if isinstance(row.get("step"), int) and row["step"] < step
        ]
        if self.metrics.exists() or kept:
            records.replace(self.metrics, "".join(kept).encode())


def _read_json(path: Path, key: str, kind: type) -> dict[str, Any] | None:
    """None where there is none, or none that can be read and says this."""
    try:
        record: dict[str, Any] = parse_json(
            read_file(path, _LARGEST_RECORD, DataError), str(path), DataError
        )
    except (OSError, DataError):
        return None
    return record if isinstance(record.get(key), kind) else None


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")
