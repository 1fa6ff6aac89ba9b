"""A rank that stands in for a trainer's where only its supervisor is tested: it starts in a moment,
beats, commits checkpoints, and fails where it is told to.

    python -m tests.cluster.supervise.toy run=RUN steps=N pause=S every=K fault=RANK:STEP:KIND:TIMES

KIND: kill and stop (a signal to itself), hang, crash, or an exit code. A fault happens TIMES times
in the life of the run.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from trainer.run_folder import RunFolder


def main() -> int:
    words = dict(word.split("=", 1) for word in sys.argv[1:] if not word.startswith("fault="))
    faults = [word.removeprefix("fault=") for word in sys.argv[1:] if word.startswith("fault=")]
    folder, rank = RunFolder(words["run"]), int(os.environ["RANK"])
    asked: list[int] = []
    ignored = words.get("ignore") == "term"
    signal.signal(signal.SIGTERM, lambda number, _: ignored or asked.append(number))
    if "child" in words and os.fork() == 0:  # which outlives this rank if nobody ends it
        time.sleep(86_400)
        os._exit(0)
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} at {os.environ['MASTER_PORT']}", flush=True)
    step = folder.newest_checkpoint() or 0
    _beat(folder, rank, "restore", 0)
    while step < int(words["steps"]):
        _beat(folder, rank, "step", step)
        for fault in faults:
            _fail(folder, rank, step, fault)
        if asked or (folder.stop.exists() and "removes" not in words):
            if rank == 0:
                _commit(folder, step)
                if "removes" in words:  # as the trainer does, once it has saved
                    folder.stop.unlink()
            _beat(folder, rank, "exit", step, code=75, reason="SIGTERM")
            return 75
        time.sleep(float(words.get("pause", "0.05")))
        step += 1
        _meet(folder, rank, step, asked)
        if rank == 0 and step % int(words.get("every", "4")) == 0:
            _commit(folder, step)
    if rank == 0:
        folder.mark_done({"step": step, "world": int(os.environ["WORLD_SIZE"])})
    _beat(folder, rank, "exit", step, code=0, reason="done")
    return 0


def _beat(folder: RunFolder, rank: int, section: str, step: int, **more: object) -> None:
    record = {"time": time.time(), "section": section, "step": step, "host": platform.node()}
    file = folder.heartbeat(rank)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(record | {"pid": os.getpid()} | more))
    partial.replace(file)


def _meet(folder: RunFolder, rank: int, step: int, asked: list[int]) -> None:
    """Wait until all ranks have come to this step, as ranks do that exchange gradients."""
    meeting = folder.path / "meetings" / os.environ["MASTER_PORT"]
    meeting.mkdir(parents=True, exist_ok=True)
    (meeting / f"{rank}-{step}").touch()
    while not asked and any(
        not (meeting / f"{other}-{step}").exists() for other in range(int(os.environ["WORLD_SIZE"]))
    ):
        time.sleep(0.01)


def _commit(folder: RunFolder, step: int) -> None:
    manifest = folder.checkpoints / f"step-{step:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("{}")


def _fail(folder: RunFolder, rank: int, step: int, fault: str) -> None:
    of_rank, at, kind, times = fault.split(":")
    if rank != int(of_rank) or step < int(at):
        return
    done = folder.path / f"fault-{of_rank}-{at}-{kind}"
    count = len(done.read_text()) if done.exists() else 0
    if count >= int(times):
        return
    with Path(done).open("a") as file:
        file.write(".")
    with suppress(KeyError):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
    if kind == "hang":
        time.sleep(86_400)
    if kind == "crash":
        raise RuntimeError("it was told to")
    if kind.isdigit():
        _beat(folder, rank, "exit", step, code=int(kind), reason=f"it was told to end with {kind}")
        os._exit(int(kind))


if __name__ == "__main__":
    sys.exit(main())
