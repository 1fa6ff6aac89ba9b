"""How long a start of a run takes, part by part, from the beginning of a rank's process to the end
of its first step. Imports no torch."""

from __future__ import annotations

import json
import os
import time

from model.processes import start_of
from trainer import records
from trainer.run_folder import START, RunFolder

_LONGEST = 3600.0  # seconds before Python came here; more is a clock that cannot be


class StartTimes:
    """Seconds of each part of a start, in the order in which they came.

    A part begins where the one before it ended, and the first one where the process began.
    complete: whether the last part has ended.
    """

    def __init__(self) -> None:
        age = _age_of_process()
        self._began = time.time() - age
        self._last = time.monotonic() - age
        self.parts: dict[str, float] = {}
        self.complete = False

    def done(self, part: str) -> None:
        """A part ends now."""
        now = time.monotonic()
        self.parts[part] = now - self._last
        self._last = now

    def apart(self, part: str, within: str, seconds: float) -> None:
        """Give a piece of a part that has ended a name of its own."""
        self.parts[within] -= seconds
        self.parts[part] = seconds

    @property
    def seconds(self) -> float:
        """The length of the whole start, so far."""
        return sum(self.parts.values())

    def line(self) -> str:
        """Say in one line how long it took: 9.1 s: imports 3.9, meeting 0.4, ..."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"{self.seconds:.1f} s: {parts}"

    def write(self, folder: RunFolder, step: int) -> None:
        """Write them down in the run folder. step: the first one of this start, from 0."""
        document = {
            "began": self._began,
            "seconds": round(self.seconds, 3),
            "parts": {name: round(seconds, 3) for name, seconds in self.parts.items()},
            "step": step,
        }
        records.replace(folder.path / START, (json.dumps(document, indent=1) + "\n").encode())


def _age_of_process() -> float:
    """Return for how long this process has run, in seconds; 0 where the kernel does not say."""
    ticks = start_of(os.getpid())
    if not ticks:
        return 0.0
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return age if 0 <= age < _LONGEST else 0.0
