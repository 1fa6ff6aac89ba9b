"""`addp doctor`: whether a run would train on this machine, or on several."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.modules import become
from model.errors import ADDPError, ConfigError
from trainer.config.options import AsJson, ConfigFile, RunArguments

if TYPE_CHECKING:
    from cluster.launch.backend import LaunchRequest

_MODULE = "trainer.preflight.doctor"

_WITHIN_A_JOB = {  # what starts one process on each node
    "slurm": "srun --ntasks-per-node=1 python",
    "kubernetes": "python",  # in each pod of an indexed Job
}


class NoAnswer(ADDPError):
    """The nodes were started, and did not come to an answer."""

    exit_code = ConfigError.exit_code


def doctor(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    *,
    hostfile: Annotated[
        Path | None,
        typer.Option(help="the machines: a line `HOST slots=N` for each; this one if not given"),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="with --hostfile: what starts a process on each machine")
    ] = "deepspeed",
    master_addr: Annotated[
        str | None, typer.Option(help="with --hostfile: the first host's address, if not its name")
    ] = None,
    device: Annotated[
        bool, typer.Option(help="compute on each GPU (or CPU) and compare with float64")
    ] = True,
    ports: Annotated[
        str | None, typer.Option(help="range of ports of which one is tried between each two nodes")
    ] = None,
    meeting: Annotated[
        float | None, typer.Option(min=0, max=86_400, help="seconds for all nodes to start; 120")
    ] = None,
    sight: Annotated[
        float | None,
        typer.Option(min=0, max=86_400, help="seconds to see a file of another node; 30"),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=1, max=86_400, help="as for `addp launch`: seconds to save in")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find out whether a run would train here, before it starts.

    Looks at each machine: disk, memory, limits, clock, GPUs and whether they compute right,
    networks. Then at all of them together: do they reach each other, how fast, have they the same
    versions, the same files and the same time.

    With a configuration also at what that needs: data, weights, the shared run folder, the store,
    and whether its checkpoints are written fast enough. Exits with 78 where something failed.
    """
    from cluster.launch.variables import refuse_passwords
    from trainer.config.arguments import configured

    file, overrides = configured(config, arguments)
    words = [*overrides, *(["--config", str(file.absolute())] if file else [])]
    if words:
        _check_timeouts(file, overrides, grace)
    words += [*([] if device else ["--no-device"]), "--grace", f"{grace:g}"]
    for name, value in (("--ports", ports), ("--meeting", meeting), ("--sight", sight)):
        words += [] if value is None else [name, str(value)]
    if hostfile is None:
        become(_MODULE, [*words, *(["--json"] if as_json else [])], "addp doctor")
    refuse_passwords(words)
    answer = _ask(hostfile, backend, master_addr, words)
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        from rich.console import Console

        from trainer.preflight.doctor.reporting import show

        show(answer, Console(width=None if sys.stdout.isatty() else 160))
    if not answer["ready"]:
        raise typer.Exit(ConfigError.exit_code)


def _check_timeouts(file: Path | None, overrides: list[str], grace: float) -> None:
    """Raise ConfigError where `addp launch` would refuse the order of the time-outs.

    A configuration that cannot be read is reported by the doctor itself.
    """
    from cluster.launch.timeouts import Timeouts
    from cluster.supervise.limits import Limits
    from trainer.config.reading import load_config

    try:
        config = load_config(file, overrides)
    except ADDPError:
        return
    step, hang = Limits().limit_step, config.health.hang
    Timeouts(step, hang, config.collective_timeout, grace).check()


def _ask(hostfile: Path, backend: str, address: str | None, words: list[str]) -> dict[str, object]:
    """Have a process on each host look, and return their answer. Raises NoAnswer, and ADDPError
    where nothing can be started from here."""
    from cluster.launch.backends import BACKENDS
    from cluster.launch.hosts import choose_hosts
    from cluster.launch.launch import start
    from trainer.preflight.doctor.reporting import from_lines

    if backend not in BACKENDS:
        raise ConfigError(f"there is no backend {backend}; there are {', '.join(BACKENDS)}")
    with tempfile.TemporaryDirectory(prefix="addp-doctor-") as folder:
        request = _request(choose_hosts(hostfile, 1, address), [*words, "--lines"], Path(folder))
        _refuse_unless_from_here(request, backend)
        with tempfile.TemporaryFile() as output:
            code, _ = start(request, backend=backend, stdout=output.fileno())
            output.seek(0)
            answer, others = from_lines(output.read().decode(errors="replace"))
    if answer is None:
        print("\n".join(others), file=sys.stderr)
        raise NoAnswer(
            f"the machines gave no answer (exit code {code}); the reason stands above. `addp "
            "doctor` on each of them looks at it alone"
        )
    return answer


def _request(hosts: object, words: list[str], folder: Path) -> LaunchRequest:
    import os

    from cluster.launch.backend import LaunchRequest
    from cluster.launch.hosts import Hosts
    from cluster.launch.variables import split_secrets
    from trainer.distributed.environment import needed_names

    assert isinstance(hosts, Hosts)
    carried, _ = split_secrets(needed_names(), os.environ)
    return LaunchRequest(_MODULE, words, hosts, folder=folder, name="doctor", carried=carried)


def _refuse_unless_from_here(request: LaunchRequest, backend: str) -> None:
    """Raise ConfigError that says what to run on each host, where this process cannot start all."""
    from cluster.launch.backend import HERE
    from cluster.launch.backends import BACKENDS

    if backend in _WITHIN_A_JOB:
        raise ConfigError(
            f"{backend} starts jobs that nobody here waits for; within one, start "
            f"`{_WITHIN_A_JOB[backend]} -m {_MODULE}` with the same words"
        )
    plan = BACKENDS[backend].plan(request)
    if [command.where for command in plan.commands] != [HERE]:
        lines = [
            f"  on {one.where}: {shlex.join(one.words).replace(' --lines', '')}"
            for one in plan.commands
        ]
        raise ConfigError(
            f"{backend} starts nothing on other hosts; run these, and node 0 prints the answer:\n"
            + "\n".join(lines)
        )
