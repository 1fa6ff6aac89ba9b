"""Interfaces and InfiniBand ports, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node.network import (
    Interface,
    Port,
    check_network,
    read_interfaces,
    read_ports,
)

ETH = Interface("eth0", True, True, 100_000, 9000, 10**9, 0, 0)
DOWN = ETH._replace(name="eth1", is_up=False)


def interface(folder: Path, name: str, **files: str) -> None:
    place = folder / name
    (place / "statistics").mkdir(parents=True)
    for file, content in files.items():
        where = place / "statistics" if file.startswith(("rx_", "tx_")) else place
        (where / file).write_text(content + "\n")


def test_interfaces_as_the_kernel_writes_them(tmp_path: Path) -> None:
    interface(tmp_path, "lo", operstate="unknown", mtu="65536")
    interface(
        tmp_path,
        "eth0",
        operstate="up",
        speed="100000",
        mtu="9000",
        rx_packets="5",
        tx_packets="6",
        rx_errors="1",
        tx_errors="2",
        carrier_changes="4",
    )
    (tmp_path / "eth0" / "device").mkdir()
    interface(tmp_path, "tun0", operstate="unknown", speed="-1", mtu="1400")
    eth, tun = read_interfaces(tmp_path)
    assert eth == Interface("eth0", True, True, 100_000, 9000, 11, 3, 2)
    assert tun.speed is None and tun.is_up and not tun.is_real
    assert read_interfaces(tmp_path / "none") == []


def test_ports_as_the_kernel_writes_them(tmp_path: Path) -> None:
    port = tmp_path / "mlx5_0" / "ports" / "1"
    (port / "counters").mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    (port / "counters" / "link_downed").write_text("3\n")
    assert read_ports(tmp_path) == [Port("mlx5_0:1", "ACTIVE", "400 Gb/sec (4X NDR)", 3)]


@pytest.mark.parametrize(
    ("interfaces", "environment", "expected", "words"),
    [
        ([ETH], {}, "ok", "eth0 100 Gbit/s (MTU 9000)"),
        ([], {}, "warning", "no interface is up"),
        ([DOWN], {}, "warning", "no interface is up"),
        ([ETH._replace(errors=10**6)], {}, "warning", "lost or damaged 1,000,000"),
        ([ETH._replace(flaps=100)], {}, "warning", "lost its line 100 times"),
        ([ETH], {"GLOO_SOCKET_IFNAME": "ib0"}, "FAILED", "no interface ib0"),
        ([ETH, DOWN], {"GLOO_SOCKET_IFNAME": "eth1"}, "FAILED", "eth1 is down"),
        ([ETH], {"NCCL_SOCKET_IFNAME": "eth"}, "ok", ""),
        ([ETH], {"NCCL_SOCKET_IFNAME": "=eth"}, "FAILED", "no interface eth"),
        ([ETH], {"NCCL_SOCKET_IFNAME": "^docker"}, "ok", ""),
        ([ETH], {"GLOO_SOCKET_IFNAME": "lo"}, "ok", ""),
    ],
)
def test_networks(
    interfaces: list[Interface], environment: dict[str, str], expected: str, words: str
) -> None:
    found = list(check_network(interfaces, [], environment))
    assert state(found, "network") == expected
    assert words in text(found, expected)  # type: ignore[arg-type]


def test_infiniband() -> None:
    good, bad = Port("mlx5_0:1", "ACTIVE", "400 Gb/sec", 0), Port("mlx5_1:1", "DOWN", "", 0)
    assert state(check_network([ETH], [good], {}), "InfiniBand") == "ok"
    found = list(check_network([ETH], [good, bad], {}))
    assert "mlx5_1:1 is DOWN" in text(found, "warning")
    found = list(check_network([ETH], [good._replace(downs=99)], {}))
    assert "went down 99 times" in text(found, "warning")
