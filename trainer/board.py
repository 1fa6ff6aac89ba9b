"""TensorBoard's event files, written by `trainer.records`: TensorBoard's own writer would end the
run when its disk is full, and loads boto3 whether the run needs it or not.

A file is a sequence of TFRecords: length (uint64), its checksum, content, its checksum (uint32).
"""

from __future__ import annotations

import os
import platform
import struct
import time
from functools import cache
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

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
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        records.append(self._file, length + _checksum(length) + content + _checksum(content))


def _checksum(content: bytes) -> bytes:
    """Return the masked CRC-32C of TFRecords."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)


@cache
def _crc_table() -> list[int]:
    """Return the CRC-32C (Castagnoli) of each byte."""
    table = list(range(256))
    for _ in range(8):
        table = [(crc >> 1) ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table
