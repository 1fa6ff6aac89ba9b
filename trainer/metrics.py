"""Metrics of a run, on rank 0: one good line on the console, a progress bar, metrics.jsonl,
TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from model.errors import ConfigError
from trainer import records
from trainer.board import Board
from trainer.config.schema import RunConfig
from trainer.costs import device_peak
from trainer.objectives.counting import Operations
from trainer.resilience.state import Row, TrainerState
from trainer.run_folder import RunFolder


def metric_row(
    *,
    step: int,
    rate: float,
    rows: list[Row],
    times: dict[str, Any],
    operations: Operations,
    global_batch: int,
    ranks: int,
    applied: int,
    state: TrainerState,
    stalled: float,
) -> dict[str, Any]:
    """A line of metrics.jsonl, as docs/recovery.md lists its keys.

    step: the last one done, from 0. rate: its learning rate. rows: the steps since the last line.
    times: as `StepTimes.summary`. operations: of one image. applied: optimizer updates so far.
    stalled: seconds for which training has waited for saves.
    """
    finite = [row.loss for row in rows if row.applied]
    images = global_batch / times["seconds_per_step"]
    flops, peak = operations.total * images / ranks, device_peak()
    return {
        "step": step,
        "loss": sum(finite) / len(finite) if finite else math.nan,
        "lr": rate,
        "grad_norm": rows[-1].norm,
        "images_per_second": images,
        **times,
        "tflops": flops / 1e12,
        "mfu": flops / peak if peak else None,
        "applied_steps": applied,
        "skipped_steps": state.nonfinite,
        "train_seconds": state.train_seconds,
        "lost_seconds": state.lost_seconds,
        "starts": state.starts,
        "save_stall_seconds": stalled,
    }


class Metrics:
    """Takes a row every `log_every` steps. A context: it ends the progress bar and W&B."""

    def __init__(self, folder: RunFolder, config: RunConfig, first_step: int, total: int) -> None:
        self._folder, self._name, self._total = folder, config.run.name, total
        self._wandb: Any = _start_wandb(config) if config.wandb else None
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(f"[bold]{self._name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(self._name, total=total)
        self.rewind(first_step)

    def rewind(self, step: int) -> None:
        """Drop what was recorded of this step and of later ones, which are done again."""
        self._folder.rewind_metrics(step)
        self._board = Board(self._folder.tensorboard, step)
        self._progress.update(self._task, completed=step)

    def __enter__(self) -> Metrics:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # a console that is gone
            self._progress.stop()
        if self._wandb:
            self._wandb.finish(exit_code=0 if value is None else getattr(value, "exit_code", 1))

    def say(self, line: str) -> None:
        """Print a line on the console, with the run's name before it."""
        records.say(f"{self._name}: {line}")

    def record(self, row: dict[str, Any]) -> None:
        """Write a row everywhere, and print the most of it. row: as `metric_row` makes it."""
        row = {**row, "time": time.time()}
        line = json.dumps({k: v if _finite(v) else str(v) for k, v in row.items()}) + "\n"
        records.append(self._folder.metrics, line.encode())
        numbers = {
            k: v for k, v in row.items() if k not in ("step", "time") and isinstance(v, int | float)
        }
        self._board.record(row["step"], numbers)
        if self._wandb:
            self._send(numbers, row["step"])
        done = row["step"] + 1
        self._progress.update(self._task, completed=done)
        remaining = row["seconds_per_step"] * (self._total - done)
        parts = [
            f"step {done}/{self._total}",
            f"loss {row['loss']:.4f}",
            f"lr {row['lr']:.2e}",
            f"grad {row['grad_norm']:.2f}",
            f"{row['images_per_second']:.0f} images/s",
            f"data wait {row['data_wait']:.0%}",
            f"memory {row['device_memory_gib'] or row['memory_gib']:.1f} GiB",
        ]
        if row.get("mfu") is not None:
            parts.append(f"MFU {row['mfu']:.0%}")
        if row["straggler"] is not None:
            parts.append(f"slow: rank {row['straggler']}")
        if row["skipped_steps"]:
            parts.append(f"skipped {row['skipped_steps']}")
        self.say("  ".join([*parts, f"ETA {_duration(remaining)}"]))

    def _send(self, numbers: dict[str, float], step: int) -> None:
        try:
            self._wandb.log(numbers, step=step)
        except Exception as error:  # noqa: BLE001 - whatever another's service raises, it is no reason to stop
            self.say(f"Weights & Biases takes nothing more ({error}); training goes on without it")
            self._wandb = None


def _start_wandb(config: RunConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "wandb is set, but Weights & Biases is not installed; `pip install addp[wandb]`"
        ) from error
    # The id is the run folder's name, so that a resumed run goes on there.
    return wandb.init(
        project=config.wandb,
        id=config.run.name,
        resume="allow",
        config=config.model_dump(mode="json"),
        dir=config.run,
    )


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
