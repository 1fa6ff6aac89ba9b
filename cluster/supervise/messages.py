"""What supervisors and their coordinator say to each other, and how they know each other.

A connection is a stream of lines. The first three lines prove to both sides that the other one can
read RUN/supervisor.key, which only the owner of the run can:

    coordinator                                node
        Challenge {nonce}           ->
                                    <-         Hello {index, name, ..., nonce, proof}
        Welcome {name, proof}       ->

Every later line carries an HMAC of its direction, its number and its content under a key of this
connection, so that nobody on the way can add, change, repeat or reorder lines. Lines are plain JSON
of bounded length, and validated before anything is made of them.

Both sides tell their whole state, again and again: the coordinator what a node shall do (Order),
the node how it is (Report), once a second and whenever something changes. So a line that is lost
with its connection is never missed, and the lines are the beats that show that the other side
lives. Imports no torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from cluster.supervise.history import EXIT_INCOMPLETE, Name, Reason, VerdictKind
from cluster.supervise.stacks import RankStack
from model.documents import Count, Positive, Record, first_problem, read_file
from model.errors import ADDPError, ConfigError, DataError
from trainer import records

VERSION = 1  # of these messages
KEY = "supervisor.key"  # in the run folder
MOST_NODES = 16_384
MOST_RANKS = 256  # of one node
LONGEST_GREETING = 4 << 10  # bytes of a line of somebody who has proved nothing yet
LONGEST_LINE = 64 << 20  # of a line after that; stacks of all ranks of a node are long
LONGEST_REASON = 2000  # characters
_ANSWER = 5.0  # seconds for each line of the greeting

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Proof = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_.:%-]{1,255}$")]
Index = Annotated[int, Field(ge=0, lt=MOST_NODES, strict=True)]
Port = Annotated[int, Field(gt=0, lt=65_536, strict=True)]


class Refused(ADDPError):
    """The other side is none of ours, or speaks nonsense. The connection is of no use."""


class NoCoordinator(ADDPError):
    """Node 0 has not come. It may still come: start this node again."""

    exit_code = EXIT_INCOMPLETE


class Challenge(Record):
    kind: Literal["challenge"] = "challenge"
    version: int
    nonce: Nonce


class Hello(Record):
    """Who a node is. session: of this supervisor process, since another one may take its place
    under the same index. address: by which others reach it, where that has to be said."""

    kind: Literal["hello"] = "hello"
    version: int
    index: Index
    name: Name
    host: Name
    session: Nonce
    address: Address | None = None
    nonce: Nonce = "0" * 32
    proof: Proof = "0" * 64


class Welcome(Record):
    """name: the one that is the node's own in this run."""

    kind: Literal["welcome"] = "welcome"
    name: Name
    proof: Proof


class Order(Record):
    """What a node shall do now.

    rest: nothing runs. prepare: find a free port for the attempt. run: start the ranks of the
    attempt, if they were not started yet. stop: ask them to save and end. kill: end them. leave:
    the supervisors end, with this code.

    number: of this order; no two are the same. check: the number of the health check that is
    wanted. stacks: whether those of the ranks are.
    """

    kind: Literal["order"] = "order"
    number: Count = 0
    do: Literal["rest", "prepare", "run", "stop", "kill", "leave"]
    attempt: Count = 0
    first_rank: Count = 0
    ranks: Count = 0
    world: Count = 0
    address: Address | None = None
    port: Port | None = None
    check: Count = 0
    stacks: bool = False
    verdict: VerdictKind | None = None
    code: int = Field(0, ge=0, le=255)
    reason: Reason = ""


class RankReport(Record):
    """How a rank is.

    section, step, age: of its last sign of life; age in seconds. section is None where it has given
    none in this attempt. code: its exit code, negative for a signal, once it has ended. words: its
    last ones.
    """

    rank: Count
    section: Name | None = None
    step: Count = 0
    age: float = Field(0.0, ge=0)
    code: int | None = Field(None, ge=-255, le=255)
    words: Reason = ""


class Report(Record):
    """How a node is.

    order: the number of the one that it follows. attempt: that of the ranks. alive: whether
    anything of it still runs. prepared: the attempt that `port` was found for. leaving: by what
    this node was told to go away; reason: in words. checked: the number of the last health check;
    unfit: what it found.
    """

    kind: Literal["report"] = "report"
    order: Count = 0
    attempt: Count = 0
    alive: bool = False
    ranks: tuple[RankReport, ...] = Field((), max_length=MOST_RANKS)
    prepared: Count = 0
    port: Port | None = None
    leaving: Literal["signal", "launcher"] | None = None
    reason: Reason = ""
    checked: Count = 0
    unfit: Reason | None = None


class StackReport(Record):
    """Where a node's ranks are."""

    kind: Literal["stacks"] = "stacks"
    attempt: Positive
    stacks: tuple[RankStack, ...] = Field(max_length=MOST_RANKS)


M = TypeVar("M")
FROM_NODE: TypeAdapter[Report | StackReport] = TypeAdapter(
    Annotated[Report | StackReport, Field(discriminator="kind")]
)
FROM_COORDINATOR = TypeAdapter(Order)
_CHALLENGE, _HELLO, _WELCOME = TypeAdapter(Challenge), TypeAdapter(Hello), TypeAdapter(Welcome)


# The key.


def make_key(path: Path) -> bytes:
    """Return the run's key, which is made where there is none. Raises OSError and DataError."""
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # It gets its name when it is whole: others open it as soon as they see it.
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)
        finally:
            partial.unlink()
    return _read_key(path)


def await_key(path: Path, seconds: float) -> bytes:
    """Return the run's key, once the coordinator has made it. Raises NoCoordinator where it does
    not appear in that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _read_key(path)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise NoCoordinator(
                    f"{path} did not appear within {seconds:.0f} s; look whether the supervisor of "
                    "node 0 runs, and whether all nodes share the run folder"
                ) from None
            time.sleep(0.2)


def _read_key(path: Path) -> bytes:
    content = read_file(path, 1 << 10, DataError).strip()
    if len(content) != 64:
        raise ConfigError(f"{path} holds no key; remove it while no supervisor runs")
    if path.stat().st_mode & 0o077:
        records.say(f"{path} can be read by others than its owner; run `chmod 600` on it")
    return content


# Lines.


class _Lines:
    """The lines of a stream, each of at most `limit` bytes. Raises Refused for a longer one, and
    ConnectionResetError where the stream ends."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader, self._buffer = reader, bytearray()
        self.limit = LONGEST_GREETING

    async def next(self, seconds: float) -> bytes:
        """Return the next line. Raises TimeoutError where it does not come in time; what has come
        is kept."""
        searched = 0
        async with asyncio.timeout(seconds):
            while (end := self._buffer.find(b"\n", searched)) < 0:
                searched = len(self._buffer)
                if searched > self.limit:
                    raise Refused(f"it sends a line of more than {self.limit} bytes")
                chunk = await self._reader.read(1 << 16)
                if not chunk:
                    raise ConnectionResetError("the connection ended")
                self._buffer += chunk
        if end > self.limit:
            raise Refused(f"it sends a line of more than {self.limit} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _proof(key: bytes, *said: str) -> str:
    return hmac.new(key, "\n".join(said).encode(), hashlib.sha256).hexdigest()


class Channel:
    """A connection whose two sides know each other. Made by `greet` or `join`."""

    def __init__(
        self, lines: _Lines, writer: asyncio.StreamWriter, key: str, *, out: str, into: str
    ) -> None:
        self._lines, self._writer, self._key = lines, writer, key.encode()
        self._out, self._into = out, into
        self._sent = self._received = 0
        lines.limit = LONGEST_LINE

    def send(self, message: Record) -> None:
        """Send a message, without waiting for the other side.

        Raises Refused where it has not taken what was sent before: it hangs.
        """
        if self._writer.transport.get_write_buffer_size() > LONGEST_LINE:
            raise Refused("it takes nothing any more")
        content = message.model_dump_json()
        mac = _proof(self._key, self._out, str(self._sent), content)
        self._writer.write(f"{mac} {content}\n".encode())
        self._sent += 1

    async def receive(self, message: TypeAdapter[M], seconds: float) -> M:
        """Return the next message. Raises Refused where it is none of this type or not from the
        other side, OSError, and TimeoutError where none comes in time."""
        mac, _, content = (await self._lines.next(seconds)).decode(errors="replace").partition(" ")
        expected = _proof(self._key, self._into, str(self._received), content)
        if not hmac.compare_digest(mac.encode(), expected.encode()):
            raise Refused("a line does not come from the other side as it is")
        self._received += 1
        return _parsed(message, content)

    def close(self) -> None:
        """End the connection at once, whatever the other side does."""
        self._writer.transport.abort()

    async def finish(self, seconds: float) -> None:
        """End the connection after what was sent has gone out, or after so many seconds."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                self._writer.close()
                await self._writer.wait_closed()
        self.close()


def _parsed(message: TypeAdapter[M], content: bytes | str) -> M:
    try:
        return message.validate_json(content)
    except ValidationError as problem:
        raise Refused(f"it speaks nonsense: {first_problem(problem)}") from problem


# The greeting.


async def greet(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    key: bytes,
    naming: Callable[[Hello], str],
) -> tuple[Hello, Channel]:
    """Receive a node, as the coordinator. naming: says how it is called in this run.

    Raises Refused where it is none of ours, OSError, and TimeoutError.
    """
    lines, own = _Lines(reader), secrets.token_hex(16)
    _write(writer, Challenge(version=VERSION, nonce=own))
    hello = _parsed(_HELLO, await lines.next(_ANSWER))
    if not hmac.compare_digest(hello.proof, _proof(key, *_said(hello, own))):
        raise Refused("it does not know RUN/supervisor.key")
    if hello.version != VERSION:
        raise Refused(f"it speaks version {hello.version}, not {VERSION}; update all nodes")
    name = naming(hello)
    proof = _proof(key, "coordinator", hello.nonce, own, name)
    _write(writer, Welcome(name=name, proof=proof))
    channel_key = _proof(key, "channel", own, hello.nonce)
    return hello, Channel(lines, writer, channel_key, out="down", into="up")


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, node: Hello
) -> tuple[str, Channel]:
    """Introduce a node to the coordinator. Returns the node's name in this run, and the channel.

    Raises Refused where the other side is no coordinator of this run, OSError, and TimeoutError.
    """
    lines = _Lines(reader)
    challenge = _parsed(_CHALLENGE, await lines.next(_ANSWER))
    if challenge.version != VERSION:
        raise Refused(f"it speaks version {challenge.version}, not {VERSION}; update all nodes")
    own = secrets.token_hex(16)
    hello = node.model_copy(update={"nonce": own})
    hello = hello.model_copy(update={"proof": _proof(key, *_said(hello, challenge.nonce))})
    _write(writer, hello)
    welcome = _parsed(_WELCOME, await lines.next(_ANSWER))
    expected = _proof(key, "coordinator", own, challenge.nonce, welcome.name)
    if not hmac.compare_digest(welcome.proof, expected):
        raise Refused("it does not know RUN/supervisor.key")
    channel_key = _proof(key, "channel", challenge.nonce, own)
    return welcome.name, Channel(lines, writer, channel_key, out="up", into="down")


def _said(hello: Hello, nonce: str) -> tuple[str, ...]:
    """What the proof of a node vouches for."""
    return ("node", nonce, hello.model_dump_json(exclude={"proof"}))


def _write(writer: asyncio.StreamWriter, message: Record) -> None:
    writer.write(message.model_dump_json().encode() + b"\n")
