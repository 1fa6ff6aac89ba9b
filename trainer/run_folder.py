"""The run folder and the exit codes: the contract between a run and everything that watches it.

Imports no torch.

RUN/
  config.resolved.yaml    the configuration with every key
  environment.json        versions, host, command, ranks, steps of the whole run
  operations.json         operations of an image, and the sizes of which they were counted, so that
                          later starts need not count them
  start.json              how long the last start took, part by part, to the end of its first step
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
  exit.json               how the last attempt ended: {"code", "reason", "time", "stop"}. An attempt
                          that was killed writes none. stop: how it was asked to stop, if it was:
                          "file" (a STOP, here or on the store), "signal" (to a rank) or "launcher"
                          (which went away); else null.
  supervision.jsonl       what the supervisors of `addp launch` did: starts, faults, verdicts
  supervisor.key          by which supervisors know each other; readable by the owner only
  supervisors/on-HOST/    the processes that supervisors have started there, by node
  logs/HOST/rank-N.log    what a supervised rank printed
  stacks/                 where all ranks were when one of them hung
  failure.txt             why the supervisors gave up, with each rank's last error
  STOP                    a user creates it to make the run save and stop; an object of that name
                          on the store that the run uploads to does the same
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
from typing import Any, Literal, TextIO, get_args

from model.documents import parse_json, printable, read_file
from model.errors import ConfigError, DataError
from model.files import write_atomically
from trainer import records
from trainer.formats import Weights

StopKind = Literal["file", "signal", "launcher"]  # by what a run was asked to stop
log = logging.getLogger(__name__)

TARGETS = "targets.json"  # below evaluation/: metrics and what they must reach, for the report

# The last word of a rank that ends only because another one did begins with this.
LOST_RANK = "another rank went away"
DONE = "done.json"
START = "start.json"
OPERATIONS = "operations.json"
RUN = "run.json"
STOP = "STOP"
# Seconds after which NFS has let go of the locks of a host that died: Linux leases last 90.
LOCK_LEASE = 120.0
# The variable that names a folder of this machine, to which ranks write their heartbeats as well.
NEAR_HEARTBEATS = "ADDP_HEARTBEATS"
SUPERVISION = "supervision.jsonl"
INCIDENTS = "incidents"  # a folder
OLD_INCIDENTS = "incidents.jsonl"  # one file for all ranks, which earlier versions wrote
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
    """Return the records of metrics.jsonl or of a file of incidents, one a line.

    A line that holds no record is left out, as one that a kill cut short.
    """
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
    """Return those of a run's files that hold incidents, sorted."""
    of_a_rank = re.compile(rf"{INCIDENTS}/rank-[0-9]+\.jsonl")
    return sorted(name for name in names if name == OLD_INCIDENTS or of_a_rank.fullmatch(name))


def in_time_order(incidents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the incidents of several files in the order of time.

    Those that do not say when they were come first.
    """

    def moment(record: dict[str, Any]) -> float:
        time = record.get("time")
        return float(time) if isinstance(time, int | float) and abs(time) < 1e15 else 0.0

    return sorted(incidents, key=moment)


def step_folder(step: int) -> str:
    """Return the name of the folder of a step, below checkpoints/ and evaluation/."""
    return f"step-{step:08d}"


def checkpoint_fingerprint(hashes: Mapping[str, str]) -> str:
    """Return a short digest of a checkpoint's content. hashes: the sha256 of its files, by name."""
    stated = sorted(f"{name} {sha256}" for name, sha256 in hashes.items())
    return hashlib.sha256("\n".join(stated).encode()).hexdigest()[:16]


class RunFolder:
    """The files of a run by name, and how they are read and written.

    No file or folder is made before something is written. What only records the run (`incident`,
    `write_exit`, `rewind_metrics`) never raises: see `trainer/records.py`.
    """

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
        self.stop = self.path / STOP
        self.supervision = self.path / SUPERVISION
        self.logs = self.path / "logs"
        self.stacks = self.path / "stacks"
        self.failure = self.path / "failure.txt"
        self.evaluation = self.path / "evaluation"
        self.samples = self.path / "samples"
        self.identity = self.path / RUN
        self._done = self.path / DONE
        self._lock: TextIO | None = None

    @property
    def is_done(self) -> bool:
        """Whether the run is complete."""
        return self._done.is_file()

    def read_done(self) -> dict[str, Any] | None:
        """Return {"step", "checkpoint", "run", "start"}: where the run ended, and the start that
        came to the end. None before."""
        return _read_json(self._done, "step", int)

    def read_identity(self) -> dict[str, Any] | None:
        """Return {"run", "host", "made"}. None before the first step, and in folders of earlier
        versions."""
        return _read_json(self.identity, "run", str)

    def newest_checkpoint(self) -> int | None:
        """Return the step of the newest committed checkpoint, None where there is none.

        Its files are not verified, as they are at a start.
        """
        steps = [
            int(path.parent.name.removeprefix("step-"))
            for path in self.checkpoints.glob("step-*/manifest.json")
            if path.parent.name.removeprefix("step-").isdecimal()
        ]
        return max(steps, default=None)

    def reopen(self) -> None:
        """Take back that the run is complete, since it has work again.

        Its networks get the name of their step. They are renamed first, so that the next start
        makes a kill in between good.
        """
        if done := self.read_done():
            for path in (self.network, self.ema):
                if path.exists():
                    path.rename(
                        path.with_name(f"{path.stem}-{step_folder(done['step'])}{path.suffix}")
                    )
        self._done.unlink(missing_ok=True)

    def heartbeat(self, rank: int) -> Path:
        """Return the file with a rank's sign of life."""
        return self.heartbeats / f"rank-{rank:05d}.json"

    def trace(self, rank: int) -> Path:
        """Return the file with the traceback of a rank, if it has crashed."""
        return self.path / "traces" / f"rank-{rank:05d}.txt"

    def stack(self, rank: int) -> Path:
        """Return the file to which a rank writes its stacks when it is asked to, by SIGUSR2."""
        return self.stacks / f"rank-{rank:05d}.txt"

    def write_exit(self, code: int, reason: str, stop: StopKind | None = None) -> None:
        """Record how this attempt ends. code: an exit code. stop: how it was asked to stop."""
        content = {"code": code, "reason": reason, "time": time.time(), "stop": stop}
        records.replace(self.exit, (json.dumps(content, indent=1) + "\n").encode())

    def read_exit(self) -> dict[str, Any] | None:
        """Return how the last attempt ended: {"code", "reason", "time", "stop"}.

        None where it was killed, where it still runs, and before the first one. Earlier versions
        did not say how an attempt was asked to stop: then `stop` is None.
        """
        record = _read_json(self.exit, "code", int)
        return record and {**record, "stop": _known_stop(record.get("stop"))}

    @property
    def is_locked(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def holder(self) -> str | None:
        """Return the name of the process that holds the lock, None where none does."""
        try:
            file = (self.path / "lock").open("r+")
        except OSError:
            return None
        with file:  # a lock that is taken here is given back at once
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                taken = error.errno in (errno.EACCES, errno.EAGAIN)
                return (file.read().strip() or "another process") if taken else None
        return None

    def lock(self, wait_seconds: float = 5.0, foreign_seconds: float = 0.0) -> None:
        """Hold RUN/lock until this process ends, however it ends.

        wait_seconds: how long to wait for the lock; the ranks of a run that was just killed may
        still be ending. foreign_seconds: the same where a process of another host holds it. That
        host may have died, and NFS lets go of its locks only when its lease is over.

        Raises ConfigError where another process holds it for longer.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+")
        begun, said = time.monotonic(), False
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
                file.seek(0)
                holder = printable(file.read(1000).strip()) or "another process"
                of_this_host = holder.endswith(f" on {platform.node()}") or " on " not in holder
                waits = wait_seconds if of_this_host else max(wait_seconds, foreign_seconds)
                if waits > wait_seconds and not said:
                    said = True
                    records.say(
                        f"{self.path} is locked by {holder}; waits up to {waits:g} s, in case that "
                        "host has died"
                    )
                if time.monotonic() - begun > waits:
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
        """Return the file of the trained network, or of the moving average of its weights.

        Raises ConfigError where there is none.
        """
        path = self.ema if weights == "ema" else self.network
        if not path.is_file():
            why = "let the run finish"
            if weights == "ema":
                why = "the run kept no moving average (ema_decay was not set)"
            raise ConfigError(f"{self.path} has no {path.name}; {why}")
        return path

    def mark_done(self, content: dict[str, Any]) -> None:
        """State that the run is complete. content: as `read_done` returns it."""
        write_json(self._done, content)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metric lines, oldest first."""
        return json_lines(self.metrics.read_text()) if self.metrics.exists() else []

    def incident(self, record: dict[str, Any]) -> None:
        """Append a fault, with its time and rank, to this rank's file.

        Any thread and any rank may call it.
        """
        rank = int(os.environ.get("RANK", 0))
        line = json.dumps({"time": time.time(), "rank": rank, **record}) + "\n"
        records.append(self.incidents / f"rank-{rank:05d}.jsonl", line.encode())

    def incident_files(self) -> list[str]:
        """Return the names of the files of incidents, from the run folder on. Raises OSError."""
        there = [path.relative_to(self.path).as_posix() for path in self.incidents.glob("*")]
        return incident_names(
            [*there, *([OLD_INCIDENTS] if (self.path / OLD_INCIDENTS).exists() else [])]
        )

    def read_incidents(self) -> list[dict[str, Any]]:
        """Return the incidents of all ranks, in the order of time."""
        texts = [(self.path / name).read_text(errors="replace") for name in self.incident_files()]
        return in_time_order(row for text in texts for row in json_lines(text))

    def rewind_metrics(self, step: int) -> None:
        """Drop the metric lines of `step` and later ones, which a resumed run does again."""
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


def _known_stop(value: object) -> StopKind | None:
    return next((kind for kind in get_args(StopKind) if kind == value), None)


def _read_json(path: Path, key: str, type_of_key: type) -> dict[str, Any] | None:
    """Return a record that holds a value of this type under this key.

    None where there is no such file, and where it holds no such record.
    """
    try:
        record: dict[str, Any] = parse_json(
            read_file(path, _LARGEST_RECORD, DataError), str(path), DataError
        )
    except (OSError, DataError):
        return None
    return record if isinstance(record.get(key), type_of_key) else None


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises OSError."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON whole or not at all. Raises OSError."""
    replace_text(path, json.dumps(content, indent=1) + "\n")
