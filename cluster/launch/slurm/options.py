"""What Slurm is asked for, beside the run itself."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from cluster.launch.backend import BackendOptions
from cluster.launch.patterns import each, matching

_OWN_LINES = {
    *("array", "job-name", "kill-on-bad-exit", "nodes", "no-kill", "no-requeue", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "requeue", "signal", "wrap"),
}


def _check_line(value: str) -> str:
    match = re.fullmatch(r"--([a-z][a-z-]*)(?:=([\w@%+=:,./&|*()\[\]~ -]*))?", value, re.ASCII)
    if not match:
        raise ValueError(
            f"{value!r} is no option of sbatch such as --reservation=NAME; it holds letters, "
            "digits, spaces and @%+=:,./&|*()[]~- only"
        )
    if match[1] in _OWN_LINES:
        raise ValueError(f"--{match[1]} is written by `addp launch` itself")
    return value


_Name = Annotated[str, matching(r"[\w.,@+-]+", "name in Slurm")]


class SlurmOptions(BackendOptions):
    """What Slurm is asked for. What is left empty is the cluster's default."""

    time: Annotated[str, matching(r"(\d+-)?\d+(:\d+){0,2}|infinite|UNLIMITED", "time limit")] = (
        Field("", description="slurm: the time limit of the job, as 24:00:00 or 7-00:00:00")
    )
    partition: _Name = Field("", description="slurm: the partition")
    account: _Name = Field("", description="slurm: the account")
    qos: _Name = Field("", description="slurm: the quality of service")
    constraint: Annotated[str, matching(r"[\w.,@+&|*()\[\]:-]+", "constraint")] = Field(
        "", description="slurm: features that the nodes must have, as 'h100&ib'"
    )
    gpus_per_node: Annotated[
        str, matching(r"([\w.-]+:)?\d{1,3}", "number of GPUs such as 8 or h100:8")
    ] = Field("", description="slurm: GPUs of each node; default: one a rank; 0: none")
    cpus: int = Field(
        0, ge=0, le=4096, description="slurm: CPUs of each node; 0: whole nodes, with all of them"
    )
    sbatch: Annotated[list[str], each(_check_line)] = Field(
        [], description="slurm: one more #SBATCH line, as --sbatch=--reservation=NAME"
    )

    def seconds(self) -> float | None:
        """Return the time limit in seconds; None: there is none, or it is the cluster's."""
        if not self.time or self.time[0] not in "0123456789":
            return None
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not days and len(parts) < 3:  # minutes, minutes:seconds
            parts = [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
