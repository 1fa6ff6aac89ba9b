"""The launch backends by name: one file each, and one line each in this table."""

from __future__ import annotations

from cluster.launch.backend import LaunchBackend
from cluster.launch.backends.hostfile import HostfileBackend
from cluster.launch.backends.local import LocalBackend
from cluster.launch.hosts import Hosts

BACKENDS: dict[str, LaunchBackend] = {"local": LocalBackend(), "hostfile": HostfileBackend()}


def usual_backend(hosts: Hosts) -> str:
    """Return the name of the backend that starts ranks on these hosts if no other is asked for."""
    return "local" if hosts.is_this_machine else "hostfile"
