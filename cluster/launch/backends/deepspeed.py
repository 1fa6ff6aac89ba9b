"""Processes that the DeepSpeed launcher starts: on this machine, on the hosts of a hostfile by pdsh
or Open MPI, or by one command on each host where there is no ssh.

What DeepSpeed 0.19.8 does with what it is given, and what is done about it here:

- It hands pdsh a line for a shell on the other host. A word with spaces stands between double
  quotes there, any other word as it is, and so does the directory. pdsh replaces %n, %h and %u.
- It brings variables to other hosts by the same line, or by `mpirun -x`: those with a few prefixes
  (PYTHON, NCCL on GPUs, ...), and those of a file that DS_ENV_FILE names. They can be read in the
  list of processes.
- Its Open MPI line is given the hostfile as it is, and refuses to take fewer slots than it says.
- A host whose name cannot be used by ssh is no error before it is tried.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.launch.backend import (
    HERE,
    BackendOptions,
    LaunchPlan,
    LaunchRequest,
    PlannedCommand,
    PlannedFile,
)
from cluster.launch.ssh import pdsh_environment, unreachable
from cluster.launch.variables import is_secret
from model.errors import ADDPError, ConfigError

_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)  # what a shell takes as it is
_PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun"}


class UnreachableHosts(ADDPError):
    """There are hosts on which nothing can be started."""


class DeepSpeedOptions(BackendOptions):
    """How the DeepSpeed launcher reaches other hosts."""

    launcher: Literal["pdsh", "openmpi"] = Field(
        "pdsh", description="deepspeed: what starts the processes on other hosts"
    )
    no_ssh: bool = Field(
        False,
        description="deepspeed: there is no ssh; the same command runs on each host, with "
        "--node-rank",
    )


class DeepSpeedBackend:
    """Starts processes by the DeepSpeed launcher."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError for what is missing here, or would be read by a shell elsewhere.

        Raises UnreachableHosts where ssh does not reach a host without asking a question.
        """
        options = request.options_of(DeepSpeedOptions)
        if request.hosts.is_this_machine or options.no_ssh:
            return
        program = _PROGRAMS[options.launcher]
        if shutil.which(program) is None:
            raise ConfigError(
                f"{program} is not installed here; the launcher starts processes on other hosts "
                "with it"
            )
        _refuse_secrets(request)
        if options.launcher == "pdsh":
            _refuse_hostile_places()
        if problems := unreachable(request.hosts.names):
            listed = "; ".join(f"{host}: {reason}" for host, reason in problems.items())
            raise UnreachableHosts(
                f"ssh does not reach {listed}. Try `ssh -o BatchMode=yes HOST true`"
            )
        _check_address(request.hosts.meeting_address)

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the launcher's command, or that of each host where there is no ssh."""
        options = request.options_of(DeepSpeedOptions)
        if request.hosts.is_this_machine:
            return self._on_this_machine(request)
        hostfile = PlannedFile(request.folder / "hostfile", _hostfile(request))
        hosts = ["--hostfile", str(hostfile.path.absolute())]
        hosts += ["--master_addr", request.hosts.meeting_address]
        if options.no_ssh:
            commands = [
                _command(request, [*hosts, "--no_ssh", "--node_rank", str(node)], where=host)
                for node, host in enumerate(request.hosts.names)
            ]
            return LaunchPlan(commands, [hostfile])
        # Without --force_multi, DeepSpeed would start the processes of a single remote host here.
        hosts += ["--force_multi", "--no_ssh_check", "--launcher", options.launcher]
        if options.launcher == "openmpi":
            return self._by_openmpi(request, hosts, hostfile)
        return self._by_pdsh(request, hosts, hostfile)

    @staticmethod
    def _on_this_machine(request: LaunchRequest) -> LaunchPlan:
        # The hostfile is empty. Without one, DeepSpeed would look for one in a place of its own.
        where = ["--hostfile", os.devnull, "--num_gpus", str(request.hosts.processes)]
        return LaunchPlan([_command(request, where)])

    @staticmethod
    def _by_pdsh(request: LaunchRequest, hosts: Sequence[str], hostfile: PlannedFile) -> LaunchPlan:
        variables = PlannedFile(
            request.folder / "environment", _environment_file(request), private=True
        )
        environment = {**pdsh_environment(), "DS_ENV_FILE": str(variables.path.absolute())}
        words = [_for_pdsh(word) for word in request.arguments]
        command = _command(request, hosts, words=words, environment=environment)
        return LaunchPlan([command], [hostfile, variables])

    @staticmethod
    def _by_openmpi(
        request: LaunchRequest, hosts: Sequence[str], hostfile: PlannedFile
    ) -> LaunchPlan:
        # mpirun would end all processes as soon as one of them ends with an error, or a host is
        # lost; here each of them decides for itself.
        mpirun = "--enable-recovery --mca orte_abort_on_non_zero_status 0"
        own = {"MASTER_ADDR": request.hosts.meeting_address, "MASTER_PORT": str(request.port)}
        # `-x NAME` takes the value from the environment, so that it stands on no command line.
        carried = [*own, *(name for name in request.carried if not name.startswith("PYTHON"))]
        mpirun += "".join(f" -x {name}" for name in carried)
        where = [*hosts, f"--launcher_args={mpirun}"]
        environment = {**own, "DS_ENV_FILE": os.devnull}
        return LaunchPlan([_command(request, where, environment=environment)], [hostfile])


def _command(
    request: LaunchRequest,
    hosts: Sequence[str],
    *,
    words: Sequence[str] | None = None,
    environment: dict[str, str] | None = None,
    where: str = HERE,
) -> PlannedCommand:
    """Return the command of the launcher.

    hosts: the launcher's own options, which say on which machines it starts how many processes.
    words: the arguments of the module as the launcher has to be given them; None: as they are.
    """
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", *hosts]
    runner += ["--master_port", str(request.port), "--no_local_rank", "--module", request.module]
    arguments = request.arguments if words is None else words
    return PlannedCommand([*runner, *arguments], _accelerator() | (environment or {}), where)


def _accelerator() -> dict[str, str]:
    """Return what the launcher needs beside this process's variables.

    Where there is no GPU, DeepSpeed has to be told so: it would probe for accelerators, and warn.
    """
    if "DS_ACCELERATOR" in os.environ or shutil.which("nvidia-smi"):
        return {}
    return {"DS_ACCELERATOR": "cpu"}


def _hostfile(request: LaunchRequest) -> str:
    return "".join(f"{host} slots={count}\n" for host, count in request.hosts.slots.items())


def _for_pdsh(word: str) -> str:
    """Return a word as the launcher has to be given it, so that the module gets it as it was."""
    word = word.replace("%", "%%")
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


def _environment_file(request: LaunchRequest) -> str:
    """Return the lines NAME=VALUE that the launcher reads: the variables that travel by pdsh.

    Those of the user's own file, which the launcher would read otherwise, come last, so that they
    take precedence.
    """
    variables = {name: os.environ[name] for name in request.carried}
    if "PYTHONPATH" in variables:  # as the launcher itself would pass it on
        variables["PYTHONPATH"] = f"{Path.cwd()}:{variables['PYTHONPATH']}"
    lines = [f"{name}={_value_for_pdsh(value)}\n" for name, value in variables.items()]
    return "".join(lines + [f"{line}\n" for line in _own_lines() if "=" in line])


def _value_for_pdsh(value: str) -> str:
    """Return a value as the launcher has to be given it: it puts double quotes round most."""
    value = value.replace("%", "%%")
    return value if _PLAIN.fullmatch(value) else re.sub(r'([\\$`"])', r"\\\1", value)


def _own_lines() -> list[str]:
    """Return the lines of the files in which a user keeps variables for the launcher."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    return [line for path in (Path.home() / name, Path(name)) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _refuse_secrets(request: LaunchRequest) -> None:
    """Raise ConfigError where the launcher would be given a secret.

    It would print what it reads in its file of variables, and other users would see it in the list
    of processes.
    """
    pairs = [(name.strip(), value) for name, _, value in (x.partition("=") for x in _own_lines())]
    if secrets := [name for name, value in pairs if is_secret(name, value)]:
        file = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        raise ConfigError(
            f"{file} holds {', '.join(secrets)}, which the launcher prints and puts on a command "
            "line; keep credentials in ~/.aws/credentials on each host, and only AWS_PROFILE there"
        )
    if secrets := [name for name in request.carried if is_secret(name, os.environ[name])]:
        raise ConfigError(f"{', '.join(secrets)} must not leave this host: it holds a secret")
    if lines := [name for name in request.carried if "\n" in os.environ[name]]:
        raise ConfigError(
            f"{', '.join(lines)} has several lines, which the launcher cannot pass on"
        )


def _refuse_hostile_places() -> None:
    """Raise ConfigError where a shell on the other hosts would not take a name as it is."""
    places = {"this directory": str(Path.cwd()), "this Python": sys.executable}
    for what, place in places.items():
        if not _PLAIN.fullmatch(place) or "%" in place:
            raise ConfigError(
                f"{what}, {place!r}, has a name that the launcher cannot pass on to other hosts; "
                "take one of letters, digits, and any of . _ - + , / only"
            )


def _check_address(address: str) -> None:
    """Raise ConfigError where the first host's name is no address."""
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ConfigError(
            f"{address}, where the processes are to meet, has no address here; give one that all "
            "hosts reach it by with --master-addr"
        ) from error
