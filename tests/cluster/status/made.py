"""Run folders that were never trained in, with what a run writes, for tests of the status."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.status.read import RunReader
from cluster.status.snapshot import Snapshot
from cluster.supervise import history
from trainer.run_folder import RunFolder, step_folder

NOW = 1_900_000_000.0
METRICS: dict[str, Any] = {
    "loss": 3.5,
    "lr": 1e-4,
    "grad_norm": 0.5,
    "images_per_second": 1200.0,
    "seconds_per_step": 0.5,
    "seconds_per_step_p95": 0.6,
    "data_wait": 0.01,
    "rank_seconds_p50": 0.4,
    "rank_seconds_p95": 0.42,
    "rank_seconds_max": 0.6,
    "straggler": None,
    "memory_gib": 12.0,
    "device_memory_gib": 61.0,
    "tflops": 400.0,
    "mfu": 0.41,
    "skipped_steps": 0,
    "train_seconds": 900.0,
    "lost_seconds": 100.0,
    "starts": 2,
    "save_stall_seconds": 1.5,
}


class MadeRun:
    """Writes the files of a run, as of NOW."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes | str | dict[str, Any], age: float = 0.0) -> None:
        """age: of its last change."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(path, (NOW - age, NOW - age))

    def lines(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def metrics(self, steps: int, age: float = 1.0, **more: Any) -> None:
        """One line a step, half a second apart, the newest of them `age` seconds old."""
        end = NOW - age
        self.lines(
            "metrics.jsonl",
            (
                METRICS
                | {"step": step, "loss": 5 - step / steps, "time": end - (steps - step - 1) / 2}
                | more
                for step in range(steps)
            ),
        )

    def beat(self, rank: int, section: str = "step", age: float = 0.5, **more: Any) -> None:
        beat = {"time": NOW - age, "section": section, "step": 40, "host": "node1", "pid": 0}
        self.write(self.folder.heartbeat(rank).relative_to(self.path).as_posix(), beat | more)

    def environment(self, ranks: int = 2, total: int = 100) -> None:
        self.write("environment.json", {"world_size": ranks, "total_steps": total})

    def checkpoint(self, step: int, age: float = 60.0) -> None:
        self.write(f"checkpoints/{step_folder(step)}/manifest.json", "{}", age)

    def supervised(self, *events: history.Event) -> None:
        lines = "".join(event.model_dump_json() + "\n" for event in events)
        self.write("supervision.jsonl", lines)

    def read(self, now: float = NOW) -> Snapshot:
        return RunReader(str(self.path), self.folder).read(now)


def running(path: Path, ranks: int = 2) -> MadeRun:
    """A run in the middle of its steps."""
    run = MadeRun(path)
    run.environment(ranks)
    run.metrics(40)
    run.checkpoint(30)
    run.write("start.json", {"seconds": 9.1, "parts": {"imports": 5.5, "meeting": 0.4}})
    for rank in range(ranks):
        run.beat(rank, host=f"node{rank // 8}")
    return run
