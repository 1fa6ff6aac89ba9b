"""One process on this machine, without a launcher."""

from __future__ import annotations

import sys

from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand
from model.errors import ConfigError


class LocalBackend:
    """Starts the process directly: a signal or an exit code then has one way to go."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError where there is more to start than one process on this machine."""
        if not request.hosts.is_this_machine:
            raise ConfigError(
                "the backend local starts a run on this machine only, not on "
                f"{', '.join(request.hosts.names)}; take --backend deepspeed for other hosts"
            )
        if request.hosts.processes != 1:
            raise ConfigError(
                f"the backend local starts one process, not {request.hosts.processes}; the "
                "deepspeed backend starts several"
            )

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the one command. Raises ConfigError, as `check`."""
        self.check(request)
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request.port)}
        words = [sys.executable, "-u", "-m", request.module, *request.arguments]
        return LaunchPlan([PlannedCommand(words, alone | meeting)])
