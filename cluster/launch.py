"""Start a training run under the deepspeed launcher on this machine, and see it through."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import ADDPError
from trainer.run_folder import RunFolder

_GRACE_SECONDS = 20


class RunFailed(ADDPError):
    """A command that was started did not do its work."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def launcher_command(processes: int, module: str, arguments: Sequence[str]) -> list[str]:
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(processes),
        "--master_port", str(free_port()), "--module", module, *arguments,
    ]  # fmt: skip


def run_group(command: Sequence[str]) -> int:
    """Run a command in a process group of its own, and take the whole group down with us.

    The deepspeed launcher leaves its ranks behind when it is signalled itself; the group reaches them.
    """
    environment = os.environ.copy()
    if shutil.which("nvidia-smi") is None:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    process = subprocess.Popen(list(command), start_new_session=True, env=environment)
    forwarded = {
        s: signal.signal(s, lambda number, _: _signal_group(process, number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return process.wait()
    finally:
        _signal_group(process, signal.SIGTERM)  # ranks that outlived the launcher
        for number, handler in forwarded.items():
            signal.signal(number, handler)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
        if process.poll() is None:
            process.wait(_GRACE_SECONDS)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def train(run: Path, processes: int, arguments: Sequence[str]) -> None:
    """`trainer.pretrain` on `processes` ranks. Raises RunFailed unless the run left its own completion marker: the
    deepspeed launcher may exit with 0 although its ranks are gone."""
    code = run_group(launcher_command(processes, "trainer.pretrain", arguments))
    if not RunFolder(run).is_done:
        raise RunFailed(
            f"training in {run} did not complete (exit code {code}); the reason stands above. Run it again to go on"
        )
