"""The task of a node in a job of Slurm: it runs the supervisor, and stands in for a script that is
lost.

    python -m cluster.launch.slurm.task --run RUN -- COMMAND

The batch script lives on the job's first node, as the coordinator does. Where that node is lost,
the other supervisors find no coordinator and end (81); but Slurm lets the job run on, without its
script and without a task, until its time is over. So each other node asks then whether the script's
node still answers, and queues the job again where it does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.launch.foreground import run_given
from cluster.launch.slurm import requeue
from cluster.launch.stopped import verdict_since
from cluster.supervise.history import EXIT_INCOMPLETE

_ANSWER_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, and return its exit code."""
    folder, started, code = run_given(__doc__, arguments)
    # Where the coordinator said how it ended, it lived, and so does the script.
    if code == EXIT_INCOMPLETE and verdict_since(folder, started) is None:
        _stand_in(folder.path, started)
    return code


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
