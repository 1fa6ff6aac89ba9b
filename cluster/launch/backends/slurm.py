"""Processes that Slurm starts: a batch script with one process on each node, which is submitted.

The job is queued again by its own script after a stop by the time limit or a preemption, and by
another node where the node of the script is lost (cluster/launch/slurm/requeue.py, task.py).
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from pathlib import Path

from cluster.launch.arguments import run_folder
from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand, PlannedFile
from cluster.launch.slurm.options import SlurmOptions
from cluster.launch.slurm.script import BatchScript, log_pattern
from cluster.launch.timeouts import NOTICE_MARGIN
from model.errors import ConfigError

_LONGEST_LEAD = 65535  # seconds; Slurm takes no more


class SlurmBackend:
    """Starts processes by a job of Slurm."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError where there is no sbatch here."""
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "sbatch is not installed here; submit the job from a machine of the cluster, or "
                "write the script with --write FILE and submit it there"
            )

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the script and its submission.

        Raises ConfigError for a time limit that leaves no time to train, and for names that a
        script cannot hold.
        """
        path = request.folder / "slurm.sbatch"
        script = PlannedFile(path, batch_script(request).text())
        run = shlex.quote(str(run_folder(request)))
        return LaunchPlan(
            commands=[PlannedCommand(["sbatch", str(path.absolute())])],
            files=[script],
            waits=False,
            afterwards=[
                f"watch it with `addp status {run}`; its log is {run}/slurm-JOB.log",
                f"let it save and end with `addp stop {run}`; `scancel JOB` does the same, if the "
                "save takes less than Slurm's KillWait",
                "let it save and start again elsewhere with `scancel --batch --signal=TERM JOB`",
            ],
        )


def batch_script(request: LaunchRequest) -> BatchScript:
    """Return what the batch script of a request says. Raises ConfigError, as `plan`."""
    options = request.options_of(SlurmOptions)
    run = str(run_folder(request))
    return BatchScript(
        options=[*_ours(request, options), *_the_users(request, options)],
        srun=_step(options),
        folder=str(Path.cwd()),
        supervisor=[
            *(sys.executable, "-u", "-m", "cluster.launch.slurm.task"),
            *("--run", run, "--"),
            *(sys.executable, "-u", "-m", request.module, *request.arguments),
        ],
        ending=[sys.executable, "-m", "cluster.launch.slurm.requeue", "--run", run],
    )


def _ours(request: LaunchRequest, options: SlurmOptions) -> list[tuple[str, str | None]]:
    """Return what the job needs to be stopped, saved and started again, and its size."""
    lead = math.ceil(request.grace + NOTICE_MARGIN)
    limit = options.seconds()
    if lead > _LONGEST_LEAD or (limit is not None and limit <= 2 * lead):
        raise ConfigError(
            f"a time limit of {options.time or 'this cluster'} leaves no time to train: Slurm "
            f"signals the job {lead} s before its end (--grace {request.grace:g} and "
            f"{NOTICE_MARGIN:g} s for the rest), up to a minute earlier; give more than "
            f"{math.ceil(2 * lead / 60)} minutes with --time"
        )
    return [
        ("job-name", job_name(request.name)),
        ("output", log_pattern(str(run_folder(request)))),
        ("open-mode", "append"),
        ("requeue", None),
        ("no-kill", None),  # a lost node is the supervisors' business: Slurm notices it late
        ("signal", f"B:TERM@{lead}"),
        ("nodes", str(len(request.hosts.slots))),
        ("ntasks-per-node", "1"),
    ]


def _the_users(request: LaunchRequest, options: SlurmOptions) -> list[tuple[str, str | None]]:
    ranks = request.ranks_per_host or max(request.hosts.slots.values())
    named = {
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "gpus-per-node": options.gpus_per_node or str(ranks),
        "cpus-per-task": str(options.cpus) if options.cpus else "",
    }
    lines: list[tuple[str, str | None]] = [(n, v) for n, v in named.items() if v not in ("", "0")]
    if not options.cpus:
        lines += [("exclusive", None), ("mem", "0")]  # a job gets one CPU a task otherwise
    for line in options.sbatch:
        name, equals, value = line.removeprefix("--").partition("=")
        lines.append((name, value if equals else None))
    return lines


def _step(options: SlurmOptions) -> list[str]:
    """Return srun's own options. It knows nothing of the job's CPUs a task, since Slurm 22.05; and
    a supervisor that were bound to the one CPU of its task would bind its ranks to it."""
    cpus = [f"--cpus-per-task={options.cpus}"] if options.cpus else []
    return [*cpus, "--cpu-bind=none", "--input=none"]


def job_name(name: str) -> str:
    """Return a name as Slurm shows it: other characters than letters, digits and .-_ become -."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:64] or "addp"
