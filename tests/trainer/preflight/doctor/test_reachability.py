"""Calls between nodes, over real sockets: a port that is closed, one that says nothing, strangers,
clocks that differ."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.doctor.probes import (
    EVERY_PAIR,
    ProbeServer,
    Reached,
    call,
    call_all,
    listening_address,
    own_address,
    serve_within,
    targets,
)
from trainer.preflight.doctor.reachability import judge_calls, judge_clocks, judge_own_names

TOKEN = bytes(range(16))
NAMES = ("node1", "node2", "node3")


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    server = ProbeServer(TOKEN, (0, 0), address="127.0.0.1")
    yield server
    server.close()


def test_calls_that_arrive(server: ProbeServer) -> None:
    calls = call_all([(0, "127.0.0.1", server.ports)], TOKEN)
    assert len(calls) == 2 and not any(one.error for one in calls)
    assert all(one.trip > 0 and abs(one.ahead) < 60 for one in calls)
    found = [*judge_calls([[], calls], NAMES), *judge_clocks([[], calls], NAMES)]
    assert state(found, "reachability") == "ok" and "2 calls between nodes" in found[0].found
    assert state(found, "clocks") in ("ok", "warning")


def test_a_closed_port(server: ProbeServer) -> None:
    server.close()
    refused = call(2, "127.0.0.1", server.ports[0], TOKEN)
    assert refused.error == "Connection refused"
    found = judge_calls([[], [refused]], NAMES)
    assert f"node2 does not reach node3 at 127.0.0.1:{server.ports[0]}: Connection refused" in text(
        found, "FAILED"
    )
    assert "open all TCP ports" in found[0].todo


def test_a_port_that_says_nothing() -> None:
    """As one whose packets a firewall drops on the way back."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "no answer within 0.1 s" in call(0, "127.0.0.1", port, TOKEN, seconds=0.1).error


def test_strangers_get_no_answer(server: ProbeServer) -> None:
    assert call(0, "127.0.0.1", server.ports[0], bytes(16)).error


@pytest.mark.parametrize(("ahead", "expected"), [(40.0, "warning"), (-900.0, "FAILED")])
def test_clocks_that_differ(ahead: float, expected: str) -> None:
    server = ProbeServer(TOKEN, address="127.0.0.1", clock=lambda: time.time() + ahead)
    try:
        made = call(0, "127.0.0.1", server.ports[0], TOKEN)
    finally:
        server.close()
    found = judge_clocks([[], [made]], NAMES)
    assert state(found, "clocks") == expected
    way = "behind" if ahead > 0 else "ahead of"
    assert f"s {way} that of node1" in found[0].found
    assert found[0].found.startswith("the clock of node2")


def test_a_slow_trip_leaves_doubt_about_a_clock() -> None:
    far = Reached(0, "a", 1, trip=10.0, ahead=4.0)
    assert state(judge_clocks([[], [far]], NAMES), "clocks") == "ok"


def test_ports_of_a_range() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            serve_within(TOKEN, port, port)
    server = serve_within(TOKEN, 20_000, 29_999)
    assert 20_000 <= server.ports[1] <= 29_999
    server.close()


def test_who_calls_whom() -> None:
    assert targets(1, 3) == [0, 2] and targets(0, 1) == []
    many = 4 * EVERY_PAIR
    called = [targets(node, many) for node in range(many)]
    assert all(len(some) < 12 and node not in some for node, some in enumerate(called))
    assert all(0 in some for some in called[1:])
    reached = {0}
    while len(reached) < len(more := reached | {n for node in reached for n in called[node]}):
        reached = more
    assert len(reached) == many  # a node that nobody reaches would not be noticed


def test_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert own_address("127.0.0.1", 80) == "127.0.0.1"
    assert own_address("no-such-host.invalid", 80) == ""
    assert isinstance(listening_address(), str)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address("10.0.0.1", 80) == "127.0.0.1"
    assert listening_address() is None


def test_names_that_stand_for_the_loopback() -> None:
    found = judge_own_names({"node1": "10.0.0.1", "node2": "127.0.1.1", "node3": "", "node4": None})
    assert [one.state for one in found] == ["FAILED", "FAILED"]
    assert "on node2, the host's name stands for 127.0.1.1" in found[0].found
    assert "no address" in found[1].found and "GLOO_SOCKET_IFNAME" in found[1].todo
