"""Supervisors know each other by a key, and whoever does not know it can do no harm."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.supervise.messages import (
    FROM_COORDINATOR,
    FROM_NODE,
    LONGEST_GREETING,
    VERSION,
    Challenge,
    Channel,
    Hello,
    NoCoordinator,
    Order,
    RankReport,
    Refused,
    Report,
    await_key,
    greet,
    join,
    make_key,
)
from model.errors import ConfigError
from tests.patience import PATIENCE

KEY = b"k" * 64
NODE = Hello(version=VERSION, index=1, name="b", host="b", session="1" * 32)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _with_server(
    server: Callable[..., Awaitable[None]], client: Callable[..., Awaitable[None]]
) -> tuple[BaseException | None, BaseException | None]:
    """Run both sides of a connection to their ends. Returns what each raised."""
    done: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def serve(*streams: object) -> None:
        raised = (await asyncio.gather(server(*streams), return_exceptions=True))[0]
        streams[1].close()  # type: ignore[attr-defined]
        done.set_result(raised)  # type: ignore[arg-type]

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    streams = await asyncio.open_connection(*listener.sockets[0].getsockname())
    raised = (await asyncio.gather(client(*streams), return_exceptions=True))[0]
    streams[1].transport.abort()
    at_server = await asyncio.wait_for(done, PATIENCE)
    listener.close()
    return at_server, raised  # type: ignore[return-value]


async def _greet(*streams: object) -> Channel:
    return (await greet(*streams, KEY, lambda hello: f"{hello.name}-1"))[1]  # type: ignore[arg-type]


async def _join(*streams: object) -> Channel:
    name, channel = await join(*streams, KEY, NODE)  # type: ignore[arg-type]
    assert name == "b-1"
    return channel


def test_both_sides_meet_and_talk() -> None:
    order = Order(do="run", attempt=3, first_rank=2, ranks=2, world=4, address="h", port=20_000)
    report = Report(attempt=3, alive=True, ranks=(RankReport(rank=2, code=-9),))

    async def server(*streams: object) -> None:
        channel = await _greet(*streams)
        channel.send(order)
        assert await channel.receive(FROM_NODE, PATIENCE) == report

    async def client(*streams: object) -> None:
        channel = await _join(*streams)
        assert await channel.receive(FROM_COORDINATOR, PATIENCE) == order
        channel.send(report)
        with pytest.raises(ConnectionResetError):
            await channel.receive(FROM_COORDINATOR, PATIENCE)

    assert asyncio.run(_with_server(server, client)) == (None, None)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff" * 50 + b"\n",
        NODE.model_dump_json().encode() + b"\n",  # with no proof
        b"[" * 3000 + b"\n",
        b"x" * (LONGEST_GREETING + 1),
        b"x" * LONGEST_GREETING * 2 + b"\n",
        b"",
    ],
)
def test_strangers_are_refused(line: bytes) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line)
        if len(line) < LONGEST_GREETING:
            writer.write_eof()
        await reader.read()

    async def server(*streams: object) -> None:
        await _greet(*streams)

    raised, _ = asyncio.run(_with_server(server, client))
    assert isinstance(raised, Refused | ConnectionResetError), raised


def test_a_false_coordinator_is_refused() -> None:
    async def server(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(_, writer, b"another" * 9, lambda hello: hello.name)

    raised = asyncio.run(_with_server(server, _join))
    assert isinstance(raised[0], Refused)
    assert isinstance(raised[1], ConnectionResetError)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Challenge(version=VERSION, nonce="0" * 32).model_dump_json().encode() + b"\n")
        hello = json.loads(await reader.readline())
        proof = {"kind": "welcome", "name": "b", "proof": hello["proof"]}
        writer.write(json.dumps(proof).encode() + b"\n")

    assert isinstance(asyncio.run(_with_server(echo, _join))[1], Refused)


def test_lines_can_be_neither_changed_nor_repeated_nor_turned_round() -> None:
    async def exchange(change: Callable[[bytes], bytes]) -> BaseException | None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = await _greet(reader, writer)
            sent: list[bytes] = []
            channel._writer = type(
                "Caught",
                (),
                {  # type: ignore[assignment]
                    "write": sent.append,
                    "transport": writer.transport,
                },
            )()
            channel.send(Order(do="rest"))
            writer.write(change(sent[0]))
            await asyncio.sleep(0.05)

        async def client(*streams: object) -> None:
            channel = await _join(*streams)
            await channel.receive(FROM_COORDINATOR, PATIENCE)
            await channel.receive(FROM_COORDINATOR, PATIENCE)

        return (await _with_server(server, client))[1]

    assert isinstance(asyncio.run(exchange(lambda line: line)), ConnectionResetError)
    assert isinstance(asyncio.run(exchange(lambda line: line * 2)), Refused)
    changed = lambda line: line.replace(b"rest", b"kill")  # noqa: E731
    assert isinstance(asyncio.run(exchange(changed)), Refused)


def test_the_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "supervisor.key"
    os.umask(os.umask(0))
    key = make_key(path)
    assert make_key(path) == await_key(path, 0) == key and len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    path.write_text("short")
    with pytest.raises(ConfigError, match="holds no key"):
        await_key(path, 0)
    path.unlink()
    with pytest.raises(NoCoordinator, match="supervisor of node 0") as late:
        await_key(path, 0)
    assert late.value.exit_code == 81  # start it again
