"""The command line of the DeepSpeed launcher, which more than one backend uses."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from cluster.launch.backend import LaunchCommand, LaunchRequest


def deepspeed_command(
    request: LaunchRequest, where: Sequence[str], arguments: Sequence[str]
) -> LaunchCommand:
    """Return the command that runs the launcher.

    where: the launcher's own options, which say on which machines it starts how many ranks.
    arguments: those of the request, as the launcher has to be given them.
    """
    meeting = ["--master_port", str(request.port)]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *where, *meeting]
    return LaunchCommand([*command, "--module", request.module, *arguments], _environment())


def _environment() -> dict[str, str]:
    """Return what the launcher needs beside this process's variables.

    Where there is no GPU, DeepSpeed has to be told so: it would probe for accelerators, and warn.
    """
    if "DS_ACCELERATOR" in os.environ or shutil.which("nvidia-smi"):
        return {}
    return {"DS_ACCELERATOR": "cpu"}
