"""The networks of a node: its interfaces, InfiniBand, and what the environment says of them.
Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.preflight.finding import Finding

_INTERFACES = Path("/sys/class/net")
_INFINIBAND = Path("/sys/class/infiniband")
_BAD_SHARE = 1e-5  # of the packets: more that are lost or damaged are a fault of the line
_FEW_PACKETS = 100_000  # with fewer, a share says nothing
_FLAPS = 20  # times that a line came and went since the machine started


class Interface(NamedTuple):
    """A network interface. speed: Mbit/s; None where it does not say, as a virtual one."""

    name: str
    is_up: bool
    is_real: bool
    speed: int | None
    mtu: int
    packets: int
    errors: int
    flaps: int


class Port(NamedTuple):
    """A port of an InfiniBand or RoCE adapter. state: ACTIVE, DOWN, INIT. downs: times that its
    link went down."""

    name: str
    state: str
    rate: str
    downs: int


def read_interfaces(folder: Path = _INTERFACES) -> list[Interface]:
    """Return the interfaces of this machine but for the loopback."""
    found = []
    for place in _folders(folder):
        if place.name == "lo":
            continue
        statistics = place / "statistics"
        counts = {
            name: _number(statistics / name) or 0
            for name in ("rx_packets", "tx_packets", "rx_errors", "tx_errors")
        }
        speed = _number(place / "speed")
        found.append(
            Interface(
                name=place.name,
                # A tunnel or a bridge may not know.
                is_up=_text(place / "operstate") in ("up", "unknown"),
                is_real=(place / "device").exists(),
                speed=speed if speed and speed > 0 else None,
                mtu=_number(place / "mtu") or 0,
                packets=counts["rx_packets"] + counts["tx_packets"],
                errors=counts["rx_errors"] + counts["tx_errors"],
                flaps=(_number(place / "carrier_changes") or 0) // 2,
            )
        )
    return found


def read_ports(folder: Path = _INFINIBAND) -> list[Port]:
    """Return the ports of this machine's InfiniBand adapters."""
    return [
        Port(
            name=f"{adapter.name}:{port.name}",
            state=_text(port / "state").rpartition(":")[2].strip(),
            rate=_text(port / "rate"),
            downs=_number(port / "counters" / "link_downed") or 0,
        )
        for adapter in _folders(folder)
        for port in _folders(adapter / "ports")
    ]


def check_network(
    interfaces: list[Interface], ports: list[Port], environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Check the interfaces and ports of a node, and that those are there which are named in
    GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."""
    up = [one for one in interfaces if one.is_up and (one.is_real or one.speed)]
    up = up or [one for one in interfaces if one.is_up]
    if up:
        yield Finding("network", "ok", ", ".join(map(_shown, up)))
    else:
        yield Finding(
            "network", "warning", "no interface is up beside the loopback: this node is alone"
        )
    for one in interfaces:
        share = one.errors / max(1, one.packets)
        if one.packets > _FEW_PACKETS and share > _BAD_SHARE:
            found = f"{one.name} lost or damaged {one.errors:,} of {one.packets:,} packets"
            yield Finding("network", "warning", found, "look at its cable and its switch port")
        if one.is_real and one.flaps > _FLAPS:
            found = f"{one.name} lost its line {one.flaps} times since the machine started"
            yield Finding("network", "warning", found, "look at its cable and its switch port")
    yield from _check_names(interfaces, environment)
    yield from _check_ports(ports)


def _shown(one: Interface) -> str:
    speed = f" {one.speed / 1000:g} Gbit/s" if one.speed else ""
    return f"{one.name}{speed} (MTU {one.mtu})"


def _check_names(interfaces: list[Interface], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Gloo takes names, NCCL takes beginnings of names; `=` before one means the whole name, and
    `^` excludes."""
    states = {one.name: one.is_up for one in interfaces} | {"lo": True}
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = environment.get(variable, "")
        if not value or value.startswith("^"):
            continue
        is_whole = variable.startswith("GLOO") or value.startswith("=")
        for name in filter(None, value.removeprefix("=").split(",")):
            own = [n for n in states if n == name or (not is_whole and n.startswith(name))]
            todo = f"name one of {', '.join(sorted(states))}"
            if not own:
                found = f"{variable}={value}, and this node has no interface {name}"
                yield Finding("network", "FAILED", found, todo)
            elif not any(states[n] for n in own):
                found = f"{variable}={value}, and {name} is down"
                yield Finding("network", "FAILED", found, f"bring it up, or {todo}")


def _check_ports(ports: list[Port]) -> Iterator[Finding]:
    name = "InfiniBand"
    active = [port for port in ports if port.state == "ACTIVE"]
    if active:
        yield Finding(name, "ok", ", ".join(f"{port.name} {port.rate}" for port in active))
    for port in ports:
        todo = "look at its cable, its switch port and the subnet manager"
        if port.state != "ACTIVE":
            found = f"{port.name} is {port.state or 'in no state that it tells'}"
            yield Finding(name, "warning", found, f"{todo}, or leave it out by NCCL_IB_HCA")
        elif port.downs > _FLAPS:
            found = f"the link of {port.name} went down {port.downs} times"
            yield Finding(name, "warning", found, todo)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(place for place in folder.iterdir() if place.is_dir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """Return what a file holds; an interface that is down refuses to tell its speed."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
