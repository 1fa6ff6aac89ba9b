"""The launchers that may have started this supervisor. Imports no torch."""

from __future__ import annotations

from model.processes import Launcher

_LAUNCHERS = (
    *(b"deepspeed.launcher", b"torch.distributed", b"torchrun", b"mpirun", b"orted", b"prted"),
    *(b"slurmstepd", b"cluster.cli", b"cluster.launch", b"/addp\0"),
)
# Between a launcher and its hosts: `sshd: user@notty` runs `bash -c "..."`.
_BETWEEN = (b"sshd", b"sh\0-c\0", b"pdsh", b"srun")


def own_launcher() -> Launcher:
    """Return the launcher of this supervisor, as far as there is one."""
    return Launcher(_LAUNCHERS, between=_BETWEEN)
