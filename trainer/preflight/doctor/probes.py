"""Small TCP servers and their callers: can each node connect to each other one, on any port, how
far away is it, and what time is it there. Imports no torch.

A caller sends a token of 16 bytes, which all nodes share, and then a byte for each question; the
server answers with its time, eight bytes. Who does not know the token gets no answer.
"""

from __future__ import annotations

import hmac
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

TOKEN_BYTES = 16
_TIME = struct.Struct("!d")
_PINGS = 8
_AT_ONCE = 32
_TRIES = 20
EVERY_PAIR = 64  # nodes up to which each calls each other one; more call some


class Reached(NamedTuple):
    """How a call went. error: why it failed; empty where it did not. trip: seconds of the fastest
    way there and back. ahead: seconds by which the other's clock is ahead of ours."""

    node: int
    address: str
    port: int
    error: str = ""
    trip: float = 0.0
    ahead: float = 0.0


class ProbeServer:
    """Answers calls on some ports until it is closed.

    ports: 0 stands for one that the system chooses. address: to listen at; empty for all. clock:
    the time that it tells.
    """

    def __init__(
        self,
        token: bytes,
        ports: Sequence[int] = (0,),
        *,
        address: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._token, self._clock = token, clock
        self._sockets = [socket.create_server((address, port), backlog=256) for port in ports]
        self.ports: list[int] = [one.getsockname()[1] for one in self._sockets]
        for one in self._sockets:
            threading.Thread(target=self._accept, args=(one,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = listening.accept()
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with suppress(OSError), caller:
            caller.settimeout(30)
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not hmac.compare_digest(_receive(caller, TOKEN_BYTES), self._token):
                return
            while caller.recv(1):
                caller.sendall(_TIME.pack(self._clock()))

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def serve_within(token: bytes, low: int, high: int) -> ProbeServer:
    """Return a server on a port that the system chooses and on one of low .. high. Raises OSError
    where none of those is free."""
    for attempt in range(_TRIES):
        port = random.randint(low, high)
        try:
            return ProbeServer(token, (0, port))
        except OSError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("not reached")


def _receive(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            raise ConnectionError("the connection was closed")
        content += piece
    return content


def call(node: int, address: str, port: int, token: bytes, *, seconds: float = 5.0) -> Reached:
    """Call a server and return how that went. seconds: to wait for each answer."""
    reached = Reached(node, address, port)
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(token)
            answers = [_ping(connection) for _ in range(_PINGS)]
    except TimeoutError:
        return reached._replace(error=f"no answer within {seconds:g} s (packets are dropped)")
    except OSError as error:
        return reached._replace(error=error.strerror or str(error))
    # The fastest trip leaves the least doubt about when the other one looked at its clock.
    trip, ahead = min(answers)
    return reached._replace(trip=trip, ahead=ahead)


def _ping(connection: socket.socket) -> tuple[float, float]:
    """Return the seconds there and back, and by how much the other's clock is ahead."""
    sent, began = time.time(), time.perf_counter()
    connection.sendall(b"?")
    (there,) = _TIME.unpack(_receive(connection, _TIME.size))
    trip = time.perf_counter() - began
    return trip, there - (sent + trip / 2)


def targets(node: int, nodes: int) -> list[int]:
    """Return which nodes a node calls: all others, or with very many of them those at distances 1,
    2, 4, ... from it. Node 0 is always among them, since its clock counts."""
    if nodes <= EVERY_PAIR:
        return [other for other in range(nodes) if other != node]
    steps = [1 << power for power in range(nodes.bit_length()) if 1 << power < nodes]
    chosen = {(node + step) % nodes for step in steps} | {0}
    return sorted(chosen - {node})


def call_all(
    places: Iterable[tuple[int, str, Sequence[int]]], token: bytes, seconds: float = 5.0
) -> list[Reached]:
    """Call each port of each place. places: (node, its address, its ports)."""
    calls = [(node, address, port) for node, address, ports in places for port in ports]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = [pool.submit(call, *one, token, seconds=seconds) for one in calls]
        return [one.result() for one in made]


def own_address(other: str, port: int) -> str:
    """Return the address that this host has on its way to another one; empty where it has none.

    Nothing is sent. GLOO_SOCKET_IFNAME takes precedence, as in training.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named and (address := address_of(named)):
        return address
    try:
        family, kind, _, _, place = socket.getaddrinfo(other, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as way:
            way.connect(place)
            return str(way.getsockname()[0])
    except OSError:
        return ""


def address_of(interface: str) -> str:
    """Return the first address of an interface; empty where it has none."""
    import psutil

    for one in psutil.net_if_addrs().get(interface, []):
        if one.family in (socket.AF_INET, socket.AF_INET6):
            return str(one.address).partition("%")[0]
    return ""


def listening_address() -> str | None:
    """Return the address that this host's own name stands for, empty where it stands for none: gloo
    listens there. None where GLOO_SOCKET_IFNAME says where instead."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    try:
        return str(socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""
