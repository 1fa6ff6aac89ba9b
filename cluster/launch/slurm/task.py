"""The task of a node in a job of Slurm: it runs the supervisor, and stands in for a script that is
lost.

    python -m cluster.launch.slurm.task --run RUN -- COMMAND

The batch script lives on the job's first node, as the coordinator does. Where that node is lost,
the other supervisors find no coordinator and end (81); but Slurm lets the job run on, without its
script and without a task, until its time is over. So each other node asks then whether the script's
node still answers, and queues the job again where it does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.launch.foreground import run_to_end
from cluster.launch.slurm import requeue
from cluster.supervise import history
from cluster.supervise.history import EXIT_INCOMPLETE
from model.errors import DataError
from trainer.run_folder import RunFolder

_ANSWER_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = words.index("--")  # the command may have one of its own
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    given = parser.parse_args(words[:at])
    started = time.time()
    code = run_to_end(words[at + 1 :])
    if code == EXIT_INCOMPLETE and not _has_verdict(RunFolder(given.run), started):
        _stand_in(given.run, started)
    return code


def _has_verdict(folder: RunFolder, since: float) -> bool:
    """Return whether the coordinator said how it ended: it lived, and so does the script."""
    try:
        verdict = history.last(history.read(folder.supervision), history.Verdict)
    except DataError:
        return False
    return verdict is not None and verdict.time >= since


def _stand_in(run: Path, since: float) -> None:
    """Do what the script would do at its end, if its node does not answer."""
    job, node = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURMD_NODENAME")
    host = requeue.batch_host(job) if job else None
    if host is None or host == node or _answers(host):
        return
    print(f"{host}, on which the job's script ran, does not answer", flush=True)
    words = ["--run", str(run), "--code", str(EXIT_INCOMPLETE), "--since", str(since)]
    requeue.main(words)


def _answers(host: str) -> bool:
    """Return whether Slurm can start something on a node of this job."""
    command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]
    command += ["--cpus-per-task=1", "--cpu-bind=none", "--input=none", "true"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
