"""A real Slurm on this machine: a controller and two nodes of one core each, for long tests.

It needs root, and Debian's packages slurmctld, slurmd, slurm-client and munge. All files lie in one
folder and all ports are free ones, so that it disturbs no other Slurm, nor a second one of its own.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from cluster.launch.backend import free_port
from tests.patience import PATIENCE, until

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_WHERE = "/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN\n"


def why_not() -> str:
    """Return why there can be no Slurm here; empty where there can."""
    if getpass.getuser() != "root" and os.geteuid() != 0:
        return "a Slurm of our own needs root"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_WHERE) is None]
    if missing:
        return (
            f"{', '.join(missing)} are missing; `apt-get install slurmctld slurmd slurm-client "
            "munge` brings them"
        )
    return ""


class SlurmHere:
    """A running Slurm. environment: what its commands need to find it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: Mapping[str, str] = {"SLURM_CONF": str(root / "slurm.conf")}

    def call(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands, and return what it prints. It must succeed."""
        done = subprocess.run(
            list(words),
            env={**os.environ, **self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """Return what the controller knows of a job: JobState, Restarts, Reason and others."""
        said = self.call("scontrol", "show", "job", "-o", str(number))
        return dict(re.findall(r"(\w+)=(\S*)", said))

    def lose(self, node: str, job: int | str) -> None:
        """Kill all that is on a node: its daemons first, which would report the rest. Slurm, which
        would notice after minutes, is told at once."""
        _kill(self.root / f"slurmd.{node}.pid", signal.SIGKILL)
        there = [p for p in psutil.process_iter() if _variables(p).get("SLURM_JOB_ID") == str(job)]
        there = [p for p in there if _variables(p).get("SLURMD_NODENAME") == node]
        daemons = {d.pid: d for p in there for d in p.parents() if d.name() == "slurmstepd"}
        assert daemons, f"job {job} has nothing on {node}"
        for process in [*daemons.values(), *there]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def restore(self, node: str) -> None:
        """Bring a node back that was lost: Slurm takes it as soon as its daemon reports."""
        _daemon(self, "slurmd", "-N", node)

    def wait_for(
        self, number: int | str, meets: Callable[[dict[str, str]], bool]
    ) -> dict[str, str]:
        """Wait until a job is as it should be, and return what the controller knows of it then."""

        def look() -> dict[str, str] | None:
            job = self.job(number)
            return job if meets(job) else None

        return until(look, said=lambda: self.job(number), pause=0.5)


def _variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def ended(job: dict[str, str]) -> bool:
    """Whether a job has come to an end from which it does not come back."""
    return job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@contextmanager
def slurm_here(root: Path, *, kill_wait: int = 20) -> Iterator[SlurmHere]:
    """Start a Slurm whose files lie in `root`, and end it and all its jobs.

    kill_wait: seconds between the SIGTERM and the SIGKILL with which Slurm ends a job.

    Raises RuntimeError that says what is missing.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    slurm = SlurmHere(root.resolve())
    try:
        _start(slurm, kill_wait)
        yield slurm
    finally:
        _end(slurm)


def _start(slurm: SlurmHere, kill_wait: int) -> None:
    root, host = slurm.root, platform.node().partition(".")[0]
    for folder in ("state", *(f"spool.{name}" for name in NODES)):
        (root / folder).mkdir(parents=True)
    for folder in (root, *root.parents):  # munged wants its socket where everybody may go
        folder.chmod(folder.stat().st_mode | 0o111)
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = _CONFIG.format(host=host, root=root, port=free_port(), kill_wait=kill_wait)
    nodes = [_NODE.format(name=name, host=host, port=free_port()) for name in NODES]
    (root / "slurm.conf").write_text("".join([config, *nodes]))
    (root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    munge = [f"--{name}-file={root}/munged.{name}" for name in ("pid", "log", "seed")]
    _daemon(slurm, "munged", "--force", f"--key-file={key}", f"--socket={root}/munge.sock", *munge)
    _daemon(slurm, "slurmctld", "-c")
    for name in NODES:
        _daemon(slurm, "slurmd", "-N", name)
    until(lambda: _ready(slurm), said=lambda: slurm.call("sinfo", "-R"), pause=0.5)


def _ready(slurm: SlurmHere) -> bool:
    """Whether all nodes wait for work. The controller does not answer before it has started."""
    try:
        states = slurm.call("sinfo", "-h", "-N", "-o", "%t").split()
    except AssertionError:
        return False
    return set(states) == {"idle"}


def _daemon(slurm: SlurmHere, name: str, *words: str) -> None:
    """Start a daemon, which puts itself into the background."""
    program = shutil.which(name, path=_WHERE)
    assert program is not None
    with (slurm.root / "start.log").open("a") as log:
        subprocess.run(
            [program, *words],
            env={**os.environ, **slurm.environment},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE,
        )


def _end(slurm: SlurmHere) -> None:
    """End the jobs first: daemons leave the tasks behind that they have started."""
    try:
        if (slurm.root / "slurmctld.pid").exists():
            _end_jobs(slurm)
    finally:
        for path in [*slurm.root.glob("slurmd.*.pid"), *slurm.root.glob("*ctld.pid")]:
            _kill(path, signal.SIGTERM)
        _kill(slurm.root / "munged.pid", signal.SIGTERM)


def _end_jobs(slurm: SlurmHere) -> None:
    for number in slurm.call("squeue", "-h", "-o", "%A").split():
        slurm.call("scancel", "--full", "--signal=KILL", number)
        slurm.call("scancel", number)
    deadline = time.monotonic() + 30
    while slurm.call("squeue", "-h") and time.monotonic() < deadline:
        time.sleep(0.5)


def _kill(path: Path, number: int) -> None:
    try:
        pid = int(path.read_text())
        os.kill(pid, number)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return
