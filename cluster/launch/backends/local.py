"""Ranks on this machine, under the DeepSpeed launcher."""

from __future__ import annotations

import os

from cluster.launch.backend import LaunchCommand, LaunchRequest
from cluster.launch.deepspeed_launcher import deepspeed_command
from model.errors import ConfigError


class LocalBackend:
    """Starts all ranks on this machine."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError where there are other hosts than this machine."""
        if not request.hosts.is_this_machine:
            raise ConfigError(
                f"the backend local starts ranks on this machine only, not on "
                f"{', '.join(request.hosts.slots)}"
            )

    def command(self, request: LaunchRequest) -> LaunchCommand:
        # The hostfile is empty. Without one, DeepSpeed would look for one in a place of its own.
        where = ["--hostfile", os.devnull, "--num_gpus", str(request.hosts.ranks)]
        return deepspeed_command(request, where, request.arguments)
