"""Which process of how many this one is. Every module whose ranks work together asks here first.
Imports no torch.

A launcher (deepspeed, torchrun) says it in RANK and WORLD_SIZE, and its word wins. Without one,
Slurm's `srun` and MPI's `mpirun` say it in variables of their own, from which the launcher's are
made here, so that

    srun -N2 --ntasks-per-node=8 python -m trainer.pretrain --config base

trains as one world. Many processes without a way to meet are refused: each would train alone, on
the same run folder.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple

from model.errors import ConfigError

_PORT = 29500  # where nothing is better: PyTorch's own
_PORTS = range(20_000, 30_000)  # for Slurm's jobs: below those that systems give out by themselves
_MOST = 100_000  # hosts in one bracket; Slurm itself knows 65,533
_MPI = {  # rank, size, rank and size on this host
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
# How many processes this host has: by launchers, and by srun's --ntasks-per-node.
_LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    *(names[3] for names in _MPI.values()),
    "SLURM_NTASKS_PER_NODE",
)
_ASK = (
    "start it with a launcher (`addp train`, deepspeed, torchrun), or set RANK, WORLD_SIZE, "
    "LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process"
)


class World(NamedTuple):
    """Where a process stands among all: it is number `rank` of `size`, and number `local` of those
    on its host."""

    rank: int
    size: int
    local: int


def take_world(environment: MutableMapping[str, str] = os.environ) -> World:
    """Find this process's rank, and leave it in the launcher's variables, where PyTorch and
    DeepSpeed look for it. A process of which nothing is known is a world of its own.

    Raises ConfigError where there are several processes, and they do not know of each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world = World(_number("RANK", environment), _number("WORLD_SIZE", environment), 0)
        if world.rank >= world.size:
            raise ConfigError(
                f"RANK={world.rank} is none of WORLD_SIZE={world.size} ranks, which count from 0"
            )
        return world._replace(
            local=_number("LOCAL_RANK", environment) if "LOCAL_RANK" in environment else 0
        )
    own = _of_mpi(environment) or _of_slurm(environment) or {}
    if not own and (_stated("WORLD_SIZE", environment) > 1 or environment.get("RANK", "0") != "0"):
        missing = "RANK" if "WORLD_SIZE" in environment else "WORLD_SIZE"
        raise ConfigError(
            f"the environment has no {missing}, but half of what a launcher says; {_ASK}"
        )
    own = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | own
    for name in ("RANK", "WORLD_SIZE"):
        if environment.get(name, own[name]) != own[name]:
            raise ConfigError(
                f"{name}={environment[name]} is set, but this is process {own['RANK']} of "
                f"{own['WORLD_SIZE']}; unset {name}, or set RANK as well"
            )
    for name, value in own.items():
        if name in ("MASTER_ADDR", "MASTER_PORT"):  # a user's own choice stays
            environment.setdefault(name, value)
        else:
            environment[name] = value
    return World(int(own["RANK"]), int(own["WORLD_SIZE"]), int(own["LOCAL_RANK"]))


def own_cores(environment: Mapping[str, str] = os.environ) -> int:
    """The processor cores that this rank may use, at least 1: its share of those that it and the
    other ranks of its host have. Where nobody says how many ranks the host has, all of the world
    count."""
    usable = len(os.sched_getaffinity(0))
    local = next((_stated(name, environment) for name in _LOCAL_SIZES if name in environment), 0)
    return max(1, usable // (local or _stated("WORLD_SIZE", environment) or 1))


def refuse_tasks(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError where several processes run a command that starts ranks by itself."""
    world = take_world(dict(environment))
    if world.size > 1:
        raise ConfigError(
            f"{command} starts ranks by itself, and the environment says that {world.size} "
            "processes of it run; start it once (`srun -n1`), or `srun python -m trainer.pretrain "
            "--config FILE` for ranks that Slurm starts"
        )


def host_names(nodes: str) -> Iterator[str]:
    """The hosts of a list in Slurm's short form, as `node[01-03,7],other`, in its order. Raises
    ConfigError where it is no such list."""
    wrong = ConfigError(
        f"{nodes!r} is no list of hosts such as node[01-03,7]; set MASTER_ADDR to the first host"
    )
    if not re.fullmatch(r"(?:[\w.-]|\[[\d,-]+\])+(?:,(?:[\w.-]|\[[\d,-]+\])+)*", nodes, re.ASCII):
        raise wrong
    for item in re.findall(r"(?:[^\[,]|\[[^\]]*\])+", nodes):
        # Text and the contents of brackets take turns; text comes first.
        pieces = re.split(r"\[([^\]]*)\]", item)
        choices = [
            _numbers(piece, wrong) if index % 2 else [piece] for index, piece in enumerate(pieces)
        ]
        yield from map("".join, itertools.product(*choices))


def _numbers(ranges: str, wrong: ConfigError) -> list[str]:
    """The numbers of `01-03,7`: 01, 02, 03, 7."""
    numbers: list[str] = []
    for span in ranges.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", span, re.ASCII)
        if not match:
            raise wrong
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(numbers) >= _MOST:
            raise wrong
        numbers += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return numbers


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str] | None:
    """A launcher's variables for a task that srun has started beside others. None elsewhere in an
    allocation: in the shell of `salloc`, and in a batch script itself, which is task 0 of a job
    whose tasks are still to be started."""
    in_script = environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if "SLURM_PROCID" not in environment or in_script or _stated(name, environment) < 2:
        return None
    if "SLURM_LOCALID" not in environment:
        raise ConfigError(
            f"Slurm starts {environment[name]} tasks, but sets no SLURM_LOCALID; {_ASK}"
        )
    job, step = _stated("SLURM_JOB_ID", environment), _stated("SLURM_STEP_ID", environment)
    return {
        "RANK": str(_number("SLURM_PROCID", environment)),
        "WORLD_SIZE": environment[name],
        "LOCAL_RANK": _own_gpu(_number("SLURM_LOCALID", environment), environment),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        # Jobs and steps that share a host have different ports.
        "MASTER_PORT": str(_PORTS[(job + 1009 * step) % len(_PORTS)]),
    }


def _of_mpi(environment: Mapping[str, str]) -> dict[str, str] | None:
    """A launcher's variables for a process that mpirun has started; None for any other process. MPI
    is asked before Slurm, whose variables in a job that calls mpirun are those of MPI's own
    helpers."""
    for library, names in _MPI.items():
        if _stated(names[1], environment) < 2:
            continue
        said = tuple(environment.get(name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
        if said == tuple(environment.get(name) for name in names[:2]):
            return None  # srun --mpi=pmi2 says the same in both
        rank, size, local, local_size = (environment.get(name) for name in names)
        if rank is None or local is None:
            raise ConfigError(
                f"{library} starts {size} processes, but {names[2]} is not set; {_ASK}"
            )
        address = environment.get("MASTER_ADDR") or ("127.0.0.1" if size == local_size else None)
        if address is None:
            raise ConfigError(
                f"{library} starts {size} processes, and does not say where they meet; set "
                "MASTER_ADDR to the first host (mpirun -x MASTER_ADDR=HOST)"
            )
        return {
            "RANK": str(_number(names[0], environment)),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": _own_gpu(_number(names[2], environment), environment),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(_PORT),
        }
    return None


def _own_gpu(local: int, environment: Mapping[str, str]) -> str:
    """The number of a process's GPU, as LOCAL_RANK has it. With --gpus-per-task a process sees its
    own GPU only, which is then the first."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return "0" if visible and "," not in visible else str(local)


def _first_host(environment: Mapping[str, str]) -> str:
    """The first host's name, if it has an address here, else the address that Slurm itself uses.
    Raises ConfigError."""
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((environment[name] for name in names if environment.get(name)), None)
    if nodes is None:
        raise ConfigError(
            "Slurm starts several tasks, but SLURM_JOB_NODELIST does not say on which hosts; set "
            "MASTER_ADDR to the first one"
        )
    hosts = list(itertools.islice(host_names(nodes), 2))
    if len(hosts) == 1:
        return "127.0.0.1"
    address = hosts[0] if _resolves(hosts[0]) else _slurm_address(hosts[0])
    if address:
        return address
    raise ConfigError(
        f"{hosts[0]}, the first host of {nodes}, has no address here; set MASTER_ADDR to one that "
        "all hosts reach it by"
    )


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _slurm_address(host: str) -> str:
    try:
        command = ["scontrol", "show", "node", host]
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\bNodeAddr=(\S+)", said)
    return match[1] if match else ""


def _stated(name: str, environment: Mapping[str, str]) -> int:
    """The number in a variable; 0 where it is not set."""
    return _number(name, environment) if environment.get(name) else 0


def _number(name: str, environment: Mapping[str, str]) -> int:
    value = environment[name]
    if not re.fullmatch(r"\d{1,10}", value, re.ASCII):
        raise ConfigError(f"{name}={value[:40]!r} in the environment is no number; {_ASK}")
    return int(value)
