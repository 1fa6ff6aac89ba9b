"""TensorBoard's event files, written by `trainer.records`: TensorBoard's own writer would end the
run when its disk is full."""

from __future__ import annotations

import io
import os
import platform
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from trainer import records

_opened = 0  # files of this process: their names must differ within a second


class Board:
    """One event file below `folder`. first_step: what older files hold of this step and of later
    ones is no longer shown."""

    def __init__(self, folder: Path, first_step: int) -> None:
        global _opened
        _opened += 1
        stamp = f"{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{_opened}"
        self._file = folder / f"events.out.tfevents.{stamp}"
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(
            Event(
                wall_time=time.time(),
                step=first_step,
                session_log=SessionLog(status=SessionLog.SessionStatus.START),
            )
        )

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Add the numbers of a step, by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        records.append(self._file, buffer.getvalue())
