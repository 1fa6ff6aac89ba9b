"""Processes that torchrun starts: one command on each host, which somebody has to run there."""

from __future__ import annotations

import sys

from cluster.launch.backend import HERE, LaunchPlan, LaunchRequest, PlannedCommand
from model.errors import ConfigError


class TorchrunBackend:
    """Starts the processes of each host by a torchrun of its own.

    The torchruns meet at the port of the request on the first host. They restart nothing: that is
    left to the supervisors.
    """

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError where hosts get different numbers of processes."""
        if len(set(request.hosts.slots.values())) > 1:
            raise ConfigError(
                "torchrun starts the same number of processes on each host; give it with "
                "--processes"
            )

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command of each host. Raises ConfigError, as `check`."""
        self.check(request)
        hosts = request.hosts
        alone = hosts.is_this_machine
        commands = []
        for node, (host, processes) in enumerate(hosts.slots.items()):
            where = [f"--nnodes={len(hosts.slots)}", f"--node-rank={node}"]
            where += [f"--nproc-per-node={processes}", "--max-restarts=0"]
            where += [f"--master-addr={hosts.meeting_address}", f"--master-port={request.port}"]
            torchrun = [sys.executable, "-u", "-m", "torch.distributed.run", *where]
            # Without --, torchrun takes an option of the module for one of its own that is longer.
            words = [*torchrun, "-m", "--", request.module, *request.arguments]
            commands.append(PlannedCommand(words, where=HERE if alone else host))
        return LaunchPlan(commands)
