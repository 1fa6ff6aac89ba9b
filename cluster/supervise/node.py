"""The supervisor of one node: it does what the coordinator orders, and tells how its ranks are.

    coordinator --Order--> obey: start, stop or kill ranks; check the node's health; take stacks
                <-Report-- tick: which ranks have ended, their signs of life, whether we are to go

It decides three things alone, since nobody can tell it then: it stops its ranks where somebody asks
this supervisor to end, or its launcher is gone; and it kills them where it has not heard of the
coordinator for so long that the coordinator takes this node for lost. Imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import platform
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from cluster.supervise.history import EXIT_INCOMPLETE
from cluster.supervise.messages import (
    FROM_COORDINATOR,
    LONGEST_REASON,
    VERSION,
    Channel,
    Hello,
    Order,
    RankReport,
    Refused,
    Report,
    StackReport,
    join,
)
from cluster.supervise.output import Output
from cluster.supervise.parents import own_launcher
from cluster.supervise.ranks import Layout, Ranks, end_orphans, free_port
from cluster.supervise.report import clean
from cluster.supervise.stacks import RankStack, collect
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

HEALTH = "trainer.preflight.node"
_TICK = 0.1  # seconds between two looks at the ranks
_CONNECT = 5.0  # seconds for a connection
_HEALTH = 20.0  # seconds for the health check
_UNKILLABLE = 30.0  # seconds after which ranks that were killed hold up no end of this supervisor
_GOODBYE = 5.0  # seconds in which a node that goes away is heard by the coordinator
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True)
class Timing:
    """Seconds. beat: between two of them. lost: of silence, after which a node is lost. reconnect:
    in which a node whose connection ended may come back. words: for the last words of ranks when
    one of them has died. verdicts: for other ranks to end when one has ended with a code of ours.
    grace: for the save when ranks are asked to stop."""

    beat: float = 1.0
    lost: float = 10.0
    reconnect: float = 3.0
    words: float = 2.0
    verdicts: float = 30.0
    grace: float = 60.0


@dataclass(frozen=True)
class NodeOptions:
    """What a node is started with.

    index: which node this is. address, port: where the coordinator listens. own_address: by which
    others reach this node, where the coordinator cannot see it by itself. command: of a rank,
    without what says which one it is; `expect_ranks=N` is added where tell_ranks is set. health:
    the module that checks this node. rejoin: seconds to look for a coordinator that is gone.
    """

    index: int
    name: str
    address: str
    port: int
    command: Sequence[str]
    own_address: str | None = None
    tell_ranks: bool = True
    health: str = HEALTH
    devices: Sequence[str] = ()
    rejoin: float = 120.0
    timing: Timing = field(default_factory=Timing)


class Node:
    """A node's supervisor. `run` is all there is to call."""

    def __init__(self, options: NodeOptions, folder: RunFolder, key: bytes, output: Output) -> None:
        self._options, self._folder, self._key, self._output = options, folder, key, output
        self._name = options.name
        self._hello = Hello(
            version=VERSION,
            index=options.index,
            name=options.name,
            host=platform.node() or "unknown",
            session=secrets.token_hex(16),
            address=options.own_address,
        )
        self._launcher = own_launcher()
        self._order = Order(do="rest")
        self._heard = self._born = time.monotonic()
        self._problem = self._complained = ""  # why there is no connection, and which was said
        self._changed = asyncio.Event()  # something that the coordinator should know at once
        self._ranks: Ranks | None = None
        self._attempt = 0
        self._ended: tuple[RankReport, ...] = ()  # of the attempt, once nothing of it is alive
        self._stopped = False
        self._killed: float | None = None  # when the ranks were
        self._prepared = 0  # the last attempt for which a port was looked for
        self._port: int | None = None
        self._checked = 0  # the last health check that has ended
        self._unfit: str | None = None  # what it found
        self._checking: asyncio.Task[None] | None = None
        self._stacks: asyncio.Task[None] | None = None
        self._stack_attempt = 0
        self._channel: Channel | None = None
        self._leaving: Literal["signal", "launcher"] | None = None
        self._leaving_reason, self._leaving_since = "", 0.0

    async def run(self) -> int:
        """Serve until the coordinator says to leave, or there is none any more. Returns the exit
        code."""
        # While a lost mount holds this up, a signal still ends us.
        if killed := await asyncio.to_thread(end_orphans, self._folder):
            self._say(f"{killed} processes that an earlier supervisor left behind were killed")
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGTERM:
                loop.add_signal_handler(number, self._signalled, number)
        contact = asyncio.create_task(self._keep_in_touch())
        last_beat = 0.0
        try:
            while (code := self._tick()) is None:
                if time.monotonic() - last_beat > self._options.timing.beat:
                    last_beat = time.monotonic()
                    self._beat()
                if contact.done():
                    contact.result()  # raises what has gone wrong
                await asyncio.sleep(_TICK)
            return code
        finally:
            contact.cancel()
            for task in (self._checking, self._stacks):
                if task is not None:
                    task.cancel()
            await asyncio.gather(contact, return_exceptions=True)

    def end_now(self) -> None:
        """Kill the ranks: something went wrong in this supervisor itself."""
        if self._ranks is not None:
            self._ranks.kill()

    # What happens here.

    def _beat(self) -> None:
        if self._ranks is not None:
            self._ranks.beat()
        if self._leaving is None and self._launcher.is_gone:
            self._leave("launcher", "its launcher is gone")

    def _tick(self) -> int | None:
        """Look at everything once. Returns the exit code when it is time to end."""
        silent = time.monotonic() - self._heard
        timing = self._options.timing
        if self._ranks is not None and silent > timing.lost and self._killed is None:
            self._say(f"the coordinator is silent for {silent:.0f} s; the ranks here are killed")
            self._kill()
        if self._ranks is not None:
            self._watch_ranks(self._ranks)
        self._obey(self._order)
        if self._ranks is not None and not self._waits_in_vain():
            return None
        if self._order.do == "leave":
            goes = self._leaving is not None and self._order.verdict != "done"
            return EXIT_PREEMPTED if goes else self._order.code
        if self._leaving is not None and self._options.index and silent > _GOODBYE:
            return EXIT_PREEMPTED
        if silent > timing.lost + self._options.rejoin:
            self._say(f"no coordinator for {silent:.0f} s ({self._problem}); giving up here")
            return EXIT_INCOMPLETE
        return None

    def _watch_ranks(self, ranks: Ranks) -> None:
        if ranks.poll():
            self._changed.set()
        if self._leaving is not None and self._killed is None:
            waited = time.monotonic() - self._leaving_since
            if waited > self._options.timing.grace:
                self._say(f"the ranks have not saved within {waited:.0f} s and are killed")
                self._kill()
        if (self._killed is not None or not ranks.running) and ranks.clear():
            self._ended, self._ranks = ranks.reports(), None
            self._changed.set()

    def _waits_in_vain(self) -> bool:
        """Whether ranks that were killed do not end: the kernel holds them, for a lost mount."""
        return self._killed is not None and time.monotonic() - self._killed > _UNKILLABLE

    def _signalled(self, number: int) -> None:
        self._leave("signal", f"it got {signal.Signals(number).name}")

    def _leave(self, why: Literal["signal", "launcher"], reason: str) -> None:
        """Begin to go away: the ranks here are asked to save, and with them all others."""
        if self._leaving is not None:
            return
        self._leaving, self._leaving_since = why, time.monotonic()
        self._leaving_reason = f"the supervisor of {self._name} is to end: {reason}"
        self._say(f"{reason}: the ranks are asked to save and stop")
        self._stop()
        self._changed.set()

    # What the coordinator orders.

    def _obey(self, order: Order) -> None:
        mine = order.attempt == self._attempt
        if order.check > self._checked and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check(order.check))
        if order.stacks and mine and self._stack_attempt < order.attempt and self._ranks:
            self._stack_attempt = order.attempt
            self._stacks = asyncio.create_task(self._take_stacks(self._ranks))
        if order.do == "stop" and mine:
            self._stop()
        elif order.do == "run" and mine:
            return
        elif self._ranks is not None:
            self._kill()
        elif order.do == "run" and order.attempt > self._attempt and self._leaving is None:
            self._start(order)
        elif order.do == "prepare" and order.attempt > self._prepared:
            self._prepare(order.attempt)

    def _prepare(self, attempt: int) -> None:
        self._prepared, self._port = attempt, None
        with suppress(OSError):
            self._port = free_port(self._options.port, attempt)
        self._changed.set()

    def _start(self, order: Order) -> None:
        self._attempt, self._stopped, self._killed, self._ended = order.attempt, False, None, ()
        assert order.address is not None and order.port is not None
        layout = Layout(
            attempt=order.attempt,
            first=order.first_rank,
            ranks=order.ranks,
            world=order.world,
            address=order.address,
            port=order.port,
        )
        command = list(self._options.command)
        if self._options.tell_ranks:
            command.append(f"expect_ranks={order.world}")
        try:
            self._ranks = Ranks(
                command,
                layout,
                self._folder,
                self._output,
                name=self._name,
                lost=self._options.timing.lost,
                devices=self._options.devices,
            )
        except OSError as error:
            reason = f"ranks cannot be started on {self._name}: {error.strerror or error}"
            self._say(reason)
            self._ended = tuple(
                RankReport(rank=order.first_rank + local, code=1, words=reason)
                for local in range(order.ranks)
            )
        self._changed.set()

    def _stop(self) -> None:
        if self._ranks is not None and not self._stopped:
            self._stopped = True
            self._ranks.stop()

    def _kill(self) -> None:
        if self._ranks is not None and self._killed is None:
            self._killed = time.monotonic()
            self._ranks.kill()

    async def _check(self, number: int) -> None:
        """Find out whether this node is fit. Without an answer it counts as fit."""
        module = self._options.health
        command = [sys.executable, "-m", module, "--json", str(self._folder.path)]
        unfit: str | None = None
        process = None
        try:
            async with asyncio.timeout(_HEALTH):
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                said, _ = await process.communicate()
            answer = json.loads(said)
            if not answer["fit"]:
                unfit = "; ".join(map(str, answer["reasons"]))[:LONGEST_REASON] or "it is not fit"
        except TimeoutError:
            unfit = f"its health check does not end within {_HEALTH:.0f} s"
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say(f"the health check of this node does not work ({type(error).__name__})")
        finally:
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        self._checked, self._unfit = number, unfit
        self._changed.set()

    async def _take_stacks(self, ranks: Ranks) -> None:
        stacks: list[RankStack] = await asyncio.to_thread(collect, ranks.pids(), self._folder)
        with suppress(Refused):
            if self._channel is not None:
                self._channel.send(StackReport(attempt=ranks.layout.attempt, stacks=tuple(stacks)))

    # What is said.

    def _say(self, line: str) -> None:
        self._output.say(clean(f"supervisor of {self._name}: {line}"))

    def _report(self) -> Report:
        ranks = self._ranks
        return Report(
            order=self._order.number,
            attempt=self._attempt,
            alive=ranks is not None,
            ranks=self._ended if ranks is None else ranks.reports(),
            prepared=self._prepared,
            port=self._port,
            leaving=self._leaving,
            reason=self._leaving_reason,
            checked=self._checked,
            unfit=self._unfit,
        )

    async def _keep_in_touch(self) -> None:
        """Be connected to the coordinator; where the connection ends, try again every second."""
        while True:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(_CONNECT):
                    streams = await asyncio.open_connection(
                        self._options.address, self._options.port
                    )
                try:
                    name, channel = await join(*streams, self._key, self._hello)
                    self._name, self._channel = name, channel
                    await self._talk(channel)
                finally:
                    self._channel = None
                    streams[1].transport.abort()
            except (OSError, Refused) as error:  # TimeoutError is an OSError
                self._complain(str(error) or "it does not answer")
            await asyncio.sleep(max(0.0, begun + 1.0 - time.monotonic()))

    def _complain(self, problem: str) -> None:
        """Say once why there is no coordinator; not in the first seconds, when it is to come."""
        self._problem = problem
        at_first = time.monotonic() - self._born < self._options.timing.lost
        if problem != self._complained and not at_first and self._order.do != "leave":
            self._complained = problem
            self._say(f"no connection to the coordinator: {problem}; trying again every second")

    async def _talk(self, channel: Channel) -> None:
        """Report and receive orders until the connection ends. Raises OSError and Refused."""
        reports = asyncio.create_task(self._send_reports(channel))
        try:
            while not reports.done():
                self._order = await channel.receive(FROM_COORDINATOR, self._options.timing.lost)
                self._heard = time.monotonic()
                self._obey(self._order)
            reports.result()  # raises why there are none any more
        finally:
            reports.cancel()
            await asyncio.gather(reports, return_exceptions=True)

    async def _send_reports(self, channel: Channel) -> None:
        while True:
            self._changed.clear()
            channel.send(self._report())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.timing.beat):
                    await self._changed.wait()
