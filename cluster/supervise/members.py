"""The nodes as the coordinator knows them: who is there, what each was told, what each has said.

                 proves that it knows the key
    stranger ------------------------------------> there <------------+
        | else: dropped                             |   ^             |
        v                          its connection   |   | the same    | comes again
      nobody                       ends             v   | comes back  | within seconds
                                                   away-+             |
                                                    | 3 s             |
                    silent for 10 s                 v                 |
    there ----------------------------------------> lost -------------+

A node that is lost during an attempt stays lost for that attempt, whatever comes back. A node is
known by its index; a new process under the index of one that is gone is another node.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.supervise.messages import (
    FROM_NODE,
    Channel,
    Hello,
    Order,
    Refused,
    Report,
    StackReport,
    greet,
)
from cluster.supervise.node import Timing
from model.documents import printable

# The numbers of orders, which differ from those of an earlier coordinator, too.
_ORDERS = itertools.count(int(time.time() * 1000))
_QUIET = 60.0  # seconds in which the same is not said again
_MOST_COMPLAINTS = 20  # in that time
_MOST_GREETINGS = 256  # at the same time; who comes then tries again a second later


class Member:
    """A node. order: what it is told, all the time. report: what it said last, at `reported`."""

    def __init__(self, hello: Hello, name: str, address: str, now: float) -> None:
        self.index, self.session = hello.index, hello.session
        self.name, self.host, self.address = name, hello.host, address
        self.channel: Channel | None = None
        self.order, self.report = Order(do="rest"), Report()
        self.stacks: StackReport | None = None
        self.reported = self.heard = now
        self.away_since: float | None = None  # when its connection ended
        self.lost: str | None = None  # why, once it is lost
        self.silence = 0.0  # for how long it had been silent then
        self._order_changed = asyncio.Event()

    @property
    def is_there(self) -> bool:
        return self.channel is not None and self.lost is None

    def tell(self, order: Order) -> None:
        """Order something. It reaches the node now, or as soon as it is there again."""
        if order != self.order.model_copy(update={"number": order.number}):
            self.order = order.model_copy(update={"number": next(_ORDERS)})
            self._order_changed.set()

    @property
    def obeys(self) -> bool:
        """Whether it has reported that it follows the present order."""
        return self.report.order == self.order.number

    async def send_orders(self, channel: Channel, beat: float) -> None:
        """Send the order whenever it changes, and once a beat. Raises Refused."""
        while True:
            self._order_changed.clear()
            channel.send(self.order)
            with suppress(TimeoutError):
                async with asyncio.timeout(beat):
                    await self._order_changed.wait()


class Members:
    """All nodes, by index. changed: set whenever something is new."""

    def __init__(
        self,
        key: bytes,
        timing: Timing,
        *,
        own_address: str,
        came: Callable[[Member, str], None],
        went: Callable[[Member, str], None],
        say: Callable[[str], None],
    ) -> None:
        """own_address: by which other nodes reach this machine. came, went: are told of nodes."""
        self._key, self._timing, self._own_address = key, timing, own_address
        self._came, self._went, self._say = came, went, say
        self.all: dict[int, Member] = {}
        self.changed = asyncio.Event()
        self._greetings = 0
        self._complained: dict[str, float] = {}  # when something was said of connections
        self._looked = time.monotonic()
        self._server: asyncio.Server | None = None
        self._connections = set[asyncio.Task[None]]()

    async def open(self, port: int) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._server = await asyncio.start_server(self._receive, port=port, limit=1 << 16)

    async def close(self) -> None:
        """Hang up, after what was said last has gone out."""
        if self._server is not None:
            self._server.close()
        channels = [member.channel for member in self.all.values() if member.channel is not None]
        await asyncio.gather(*(channel.finish(1.0) for channel in channels))
        for task in self._connections:
            task.cancel()

    def there(self) -> list[Member]:
        """Return those that are there, in their order."""
        return [member for _, member in sorted(self.all.items()) if member.is_there]

    def look(self) -> None:
        """Find out who is lost. Called several times a second."""
        now = time.monotonic()
        if now - self._looked > self._timing.reconnect:
            # It is us who were silent: stopped, or on a machine that was. Nobody else is to blame.
            for member in self.all.values():
                member.heard += now - self._looked
                member.reported += now - self._looked
                if member.away_since is not None:
                    member.away_since += now - self._looked
        self._looked = now
        for member in self.all.values():
            if member.lost is not None:
                continue
            away = None if member.away_since is None else now - member.away_since
            if away is not None and away > self._timing.reconnect:
                self._lose(member, "its connection ended, and it did not come back", now)
            elif now - member.heard > self._timing.lost:
                self._lose(member, f"it has been silent for {now - member.heard:.0f} s", now)

    def _lose(self, member: Member, reason: str, now: float) -> None:
        if member.report.leaving is not None:
            reason = member.report.reason
        member.lost, member.silence = reason, now - member.heard
        if member.channel is not None:
            member.channel.close()
            member.channel = None
        self.changed.set()
        self._went(member, reason)

    # Connections.

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            member, channel = await self._welcome(reader, writer)
        except Refused as error:
            self._complain(f"a connection from {_peer(writer)} was dropped: {error}")
            writer.transport.abort()
            return
        except OSError:
            writer.transport.abort()
            return
        try:
            await self._converse(member, channel)
        except Refused as error:
            self._complain(f"the connection of {member.name} was dropped: {error}")
        except OSError:  # it ended, or is silent
            pass
        finally:
            channel.close()
            if member.channel is channel:
                member.channel, member.away_since = None, time.monotonic()
            self.changed.set()

    def _complain(self, line: str) -> None:
        """Say something once a minute, and not too many things: a scanner of ports may be about."""
        now = time.monotonic()
        self._complained = {k: v for k, v in self._complained.items() if now - v < _QUIET}
        if line not in self._complained and len(self._complained) < _MOST_COMPLAINTS:
            self._complained[line] = now
            self._say(line)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Member, Channel]:
        """Find out who is there. Raises Refused and OSError."""
        if self._greetings >= _MOST_GREETINGS:
            raise ConnectionAbortedError
        self._greetings += 1
        try:
            hello, channel = await greet(reader, writer, self._key, self._name)
        finally:
            self._greetings -= 1
        return self._admit(hello, channel, hello.address or self._address(_peer(writer))), channel

    def _name(self, hello: Hello) -> str:
        """Return a name that is the node's own. Raises Refused where its index is taken."""
        now, known = time.monotonic(), self.all.get(hello.index)
        if known is not None and known.session != hello.session and known.is_there:
            if now - known.heard < 3 * self._timing.beat:
                raise Refused(
                    f"node {hello.index} is there already, {known.name} on {known.host}; RANK has "
                    "to be different on each node"
                )
            self._lose(known, "another supervisor has come in its place", now)
        others = {member.name for member in self.all.values() if member.index != hello.index}
        name = printable(hello.name)[:200]
        return name if name not in others else f"{name}-{hello.index}"

    def _admit(self, hello: Hello, channel: Channel, address: str) -> Member:
        now, member = time.monotonic(), self.all.get(hello.index)
        again = member is not None and member.session == hello.session
        if member is not None and not again and member.lost is None:
            self._lose(member, "another supervisor has come in its place", now)
        if member is None or not again or member.lost is not None:
            member = Member(hello, self._name(hello), address, now)
            self._came(member, "it came back" if again else "")
            self.all[hello.index] = member
        if member.channel is not None:
            member.channel.close()
        member.channel, member.away_since, member.heard = channel, None, now
        self.changed.set()
        return member

    def _address(self, peer: str) -> str:
        """The address by which other nodes reach one that we see under this one."""
        local = peer in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        return self._own_address if local else peer.removeprefix("::ffff:")

    async def _converse(self, member: Member, channel: Channel) -> None:
        """Take reports and send orders until the connection ends. Raises Refused and OSError."""
        orders = asyncio.create_task(member.send_orders(channel, self._timing.beat))
        try:
            while not orders.done():
                said = await channel.receive(FROM_NODE, self._timing.lost)
                member.heard = time.monotonic()
                if isinstance(said, StackReport):
                    member.stacks = said
                else:
                    member.report, member.reported = said, member.heard
                self.changed.set()
            orders.result()  # raises why none can be given any more
        finally:
            orders.cancel()
            await asyncio.gather(orders, return_exceptions=True)


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else "an address that is gone"
