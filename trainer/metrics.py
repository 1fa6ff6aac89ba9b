"""Metrics of a run, on rank 0: one good line on the console, a progress bar with ETA, JSONL and TensorBoard."""

from __future__ import annotations

import json
import math
import resource
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.run_folder import RunFolder


class Metrics:
    """Use as a context. `record` is called every `log_every` steps."""

    def __init__(self, folder: RunFolder, name: str, first_step: int, total: int, global_batch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.rewind_metrics(first_step)
        self._file = folder.metrics.open("a")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step)
        self._name, self._total, self._global_batch = name, total, global_batch
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(f"[bold]{name}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
            TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(name, total=total, completed=first_step)
        self._since, self._last_step, self._waited = time.perf_counter(), first_step, 0.0

    def __enter__(self) -> Metrics:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._board.close()

    def say(self, line: str) -> None:
        self._console.print(f"{self._name}: {line}", highlight=False, markup=False, soft_wrap=True)

    def waited(self, seconds: float) -> None:
        """Time in which a step waited for its data."""
        self._waited += seconds

    def record(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """step: the one just done, from 0."""
        now = time.perf_counter()
        done, seconds = step + 1 - self._last_step, now - self._since
        row: dict[str, Any] = {
            "step": step, "loss": loss, "lr": learning_rate, "grad_norm": gradient_norm,
            "images_per_second": done * self._global_batch / seconds, "seconds_per_step": seconds / done,
            "data_wait": self._waited / seconds,
            "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "time": time.time(),
        }  # fmt: skip
        self._since, self._last_step, self._waited = now, step + 1, 0.0
        self._file.write(
            json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in row.items()})
            + "\n"
        )
        self._file.flush()
        for key in ("loss", "lr", "grad_norm", "images_per_second", "data_wait"):
            self._board.add_scalar(key, row[key], step)
        self._progress.update(self._task, completed=step + 1)
        remaining = row["seconds_per_step"] * (self._total - step - 1)
        self.say(
            f"step {step + 1}/{self._total}  loss {loss:.4f}  lr {learning_rate:.2e}  grad {gradient_norm:.2f}  "
            f"{row['images_per_second']:.0f} images/s  data wait {row['data_wait']:.0%}  "
            f"memory {row['memory_gib']:.1f} GiB  ETA {_duration(remaining)}"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
