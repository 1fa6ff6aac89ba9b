"""The machines of a launch, and the hostfile that lists them.

A hostfile is read strictly, because DeepSpeed is not strict: it hands a host's name to ssh as it
stands, and it starts on this machine alone where the file does not exist.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from model.documents import MIB, read_file
from model.errors import ConfigError

_LINE = re.compile(r"(\S+)\s+slots=(\S+)")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")


@dataclass(frozen=True)
class Hosts:
    """The machines of a launch.

    slots: how many processes each host gets, by its name, in order. The first host is where they
    meet.
    address: the first host's address, as the other hosts reach it; None: its name is its address.
    """

    slots: dict[str, int]
    address: str | None = None

    @property
    def names(self) -> list[str]:
        """The hosts' names."""
        return list(self.slots)

    @property
    def processes(self) -> int:
        """The number of processes on all hosts together."""
        return sum(self.slots.values())

    @property
    def meeting_address(self) -> str:
        """The address of the first host, where the processes meet."""
        if self.address is not None:
            return self.address
        return "127.0.0.1" if self.is_this_machine else self.names[0]

    @property
    def is_this_machine(self) -> bool:
        """Whether this machine is the only host, so that nothing goes over ssh."""
        name = platform.node()
        here = {"localhost", "127.0.0.1", name, name.partition(".")[0]}
        return len(self.slots) == 1 and self.names[0] in here

    def with_processes(self, each: int) -> Hosts:
        """Return the same hosts with that many processes on each."""
        return Hosts(dict.fromkeys(self.slots, each), self.address)

    def among(self, names: Collection[str]) -> Hosts:
        """Return those hosts that have one of these names, in their order.

        The address belongs to the first host, and is left out where that is not among them.
        """
        slots = {name: count for name, count in self.slots.items() if name in names}
        return Hosts(slots, self.address if self.names[0] in slots else None)


def this_machine(processes: int) -> Hosts:
    """Return the hosts of a launch that starts that many processes on this machine alone."""
    return Hosts({"localhost": processes})


def unnamed(count: int, processes: int) -> Hosts:
    """Return that many hosts that a scheduler chooses, with that many processes on each."""
    return Hosts({f"node-{index}": processes for index in range(count)})


def choose_hosts(hostfile: Path, processes: int | None, address: str | None) -> Hosts:
    """Return the hosts of a hostfile.

    processes: on each host; None: as many as it has slots.
    address: the first host's address, as the other hosts reach it; None: its name is its address.

    Raises ConfigError for a bad line in the hostfile, for a host with fewer slots than processes,
    and for something that is no address.
    """
    slots = read_hostfile(hostfile)
    each = processes or 0
    few = [f"{host} has {count}" for host, count in slots.items() if count < each]
    if few:
        raise ConfigError(
            f"--processes {each} is more than the slots of hosts in {hostfile}: {', '.join(few)}"
        )
    hosts = Hosts(slots, checked_address(address))
    return hosts if processes is None else hosts.with_processes(processes)


def checked_address(address: str | None) -> str | None:
    """Return an address as it was given. Raises ConfigError where it is none."""
    if address is not None and not _ADDRESS.fullmatch(address):
        raise ConfigError(f"--master-addr {address!r} is no address")
    return address


def read_hostfile(path: Path) -> dict[str, int]:
    """Return how many slots each host has, in the file's order.

    Raises ConfigError that names the file and the line.
    """
    try:
        text = read_file(path, MIB, ConfigError).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"the hostfile {path} cannot be read: {reason}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        host, slots = _read_line(line, where)
        if host in hosts:
            raise ConfigError(
                f"{where}: {host} is listed twice; give it one line with all its slots"
            )
        hosts[host] = slots
    if not hosts:
        raise ConfigError(f"the hostfile {path} names no host; write a line HOST slots=N for each")
    return hosts


def _read_line(line: str, where: str) -> tuple[str, int]:
    match = _LINE.fullmatch(line)
    if not match:
        raise ConfigError(f"{where}: {line!r} is not of the form HOST slots=N")
    host, slots = match.groups()
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"{where}: {host!r} is no host name (letters, digits, dots, dashes and underscores "
            "between letters or digits); a user or a port belongs in ~/.ssh/config"
        )
    if not re.fullmatch(r"[1-9][0-9]{0,3}", slots):
        raise ConfigError(f"{where}: slots={slots} is no number of ranks from 1 to 9999")
    return host, int(slots)
