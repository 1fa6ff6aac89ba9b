"""What the tests of a job's end have in common: its history, and a scontrol that knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.supervise.history import Start, Verdict, VerdictKind

SINCE = 1000.0


def start(time: float = SINCE + 1) -> Start:
    return Start(time=time, attempt=1, nodes=(), ranks=2, checkpoint=None)


def verdict(kind: VerdictKind, code: int, time: float = SINCE + 2) -> Verdict:
    return Verdict(time=time, attempt=1, verdict=kind, code=code, reason="")


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, after: str = "") -> Path:
    """Put a scontrol on the path that writes down what it is asked, and knows a running job.

    after: what it says of the job behind that. Returns the file in which it writes.
    """
    folder.mkdir()
    log = folder / "log"
    program = folder / "scontrol"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{log}'\n"
        f"echo JobState=RUNNING Reason=None BatchHost=n1{after}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return log
