"""Start a training run under the deepspeed launcher, and see it through."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.launch.hosts import Hosts
from cluster.launch.postmortem import explain, last_words
from model.errors import ADDPError
from trainer.distributed.world import refuse_tasks
from trainer.run_folder import EXIT_CONFIG, OWN_CODES, RunFolder

_GRACE_SECONDS = 60  # for ranks to save, once they were asked to stop


class RunFailed(ADDPError):
    """A command that was started did not do its work."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def launcher_command(processes: int, module: str, arguments: Sequence[str]) -> list[str]:
    """On this machine, also where there is a hostfile at the place where DeepSpeed looks for one by
    itself."""
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        os.devnull,
        "--num_gpus",
        str(processes),
        "--master_port",
        str(free_port()),
        "--module",
        module,
        *arguments,
    ]


class Ended(NamedTuple):
    """signalled: whether somebody wanted an end meanwhile; the command may have come to its own all
    the same."""

    code: int
    signalled: bool


def run_group(command: Sequence[str], stdout: int | None = None) -> Ended:
    """Run a command in a process group of its own, and take the whole group down with us. stdout:
    in place of ours.

    The deepspeed launcher leaves its ranks behind when it is signalled itself; the group reaches
    them.
    """
    environment = os.environ.copy()
    if shutil.which("nvidia-smi") is None:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    group: list[int] = []
    stopped_at: list[float] = []

    def forward(number: int, _: object) -> None:
        stopped_at.append(time.monotonic())
        for pid in group:
            _signal_group(
                pid, signal.SIGTERM if number == signal.SIGUSR1 else number
            )  # launchers know no SIGUSR1

    # Before the start: a signal in between would otherwise end us and leave the group behind.
    previous = {
        number: signal.signal(number, forward)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        process = subprocess.Popen(
            list(command), start_new_session=True, env=environment, stdout=stdout
        )
        group.append(process.pid)
        if stopped_at:
            _signal_group(process.pid, signal.SIGTERM)
        while True:
            try:
                return Ended(process.wait(timeout=0.5), bool(stopped_at))
            except subprocess.TimeoutExpired:
                if stopped_at and time.monotonic() - stopped_at[0] > _GRACE_SECONDS:
                    _signal_group(process.pid, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for pid in group:
            _end_group(pid)


def _signal_group(group: int, number: int) -> bool:
    """Whether there was still someone to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int) -> None:
    """End ranks that outlived their launcher."""
    deadline = time.monotonic() + _GRACE_SECONDS
    number: int = signal.SIGTERM
    while _signal_group(group, number) and time.monotonic() < deadline:
        time.sleep(0.1)
        number = 0
    _signal_group(group, signal.SIGKILL)


def check_hosts(processes: int, arguments: Sequence[str], hosts: Hosts | None = None) -> None:
    """`trainer.preflight.hosts` in place of a training. Raises RunFailed where it found something;
    ConfigError."""
    refuse_tasks("addp train --check")
    if run_group(_command("trainer.preflight.hosts", processes, arguments, hosts)).code:
        error = RunFailed(
            "these machines cannot train this configuration yet; the reason stands above"
        )
        error.exit_code = EXIT_CONFIG
        raise error


def _command(
    module: str, processes: int, arguments: Sequence[str], hosts: Hosts | None
) -> list[str]:
    return (
        hosts.command(module, arguments)
        if hosts
        else launcher_command(processes, module, arguments)
    )


def train(run: Path, processes: int, arguments: Sequence[str], hosts: Hosts | None = None) -> bool:
    """`trainer.pretrain` on `processes` ranks of this machine, or on several. Raises RunFailed,
    with the run's own exit code, unless this start said that the run is done: the deepspeed
    launcher may exit with 0 although its ranks are gone, or with 1 although they saved. Raises
    ConfigError where several processes call it, as under srun.

    Returns whether a signal came too late to stop the run: it is done, and whatever was to follow
    should not start.
    """
    refuse_tasks("addp train")
    folder = RunFolder(run)
    before, done_before, words = folder.read_exit(), folder.read_done(), last_words(folder)
    code, signalled = run_group(_command("trainer.pretrain", processes, arguments, hosts))
    after = folder.read_exit()
    own = after["code"] if after is not None and after != before else None
    done = folder.read_done()  # a marker from before this start counts for nothing
    if own == 0 or (own is None and code == 0 and done is not None and done != done_before):
        return signalled
    if after is not None and own in OWN_CODES:
        error = RunFailed(f"training in {run} ended: {after['reason']}")
    else:
        error = RunFailed(f"training in {run} ended: {explain(folder, words, code)}")
    error.exit_code = next(
        (c for c in (own, code) if c is not None and c in OWN_CODES), RunFailed.exit_code
    )
    raise error
