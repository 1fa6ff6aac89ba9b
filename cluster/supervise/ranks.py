"""The ranks of this node in one attempt: how they are started, watched and ended.

    supervisor --pipe--> guardian            leads the process group, and ends it without us
        |                                    (cluster/supervise/guardian.py)
        +--------------> rank 0, rank 1 ...  in that group; their children stay in it, too

No rank outlives its supervisor, however that ends: the guardian kills the group, and the kernel
kills each rank (PR_SET_PDEATHSIG). A node that lost both at once has them written down in the run
folder, and its next supervisor ends them (`end_orphans`). Imports no torch.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from cluster.supervise import guardian
from cluster.supervise.messages import RankReport
from cluster.supervise.output import Output, RankOutput
from cluster.supervise.signs import Signs
from model.documents import parse_json, read_file
from model.errors import DataError
from model.files import write_atomically
from model.processes import machine, signal_at_end_of_parent, start_of
from trainer.run_folder import RunFolder

PORTS = range(30_000, 32_700)  # ranks meet at one of them: below those that systems give out
_LAST_WORDS = 1.0  # seconds for which an end waits for the words of its rank
_LAST_SIGN = 0.5  # the same of a rank that was killed: it has no words, but a step
# Seconds for children of ranks to end once they are killed. Where nobody waits for orphans, as in
# some containers, they stay behind as mere entries.
_LEFTOVERS = 5.0
_LARGEST = 64 << 10  # bytes of what is written down
# What launchers leave in the environment of a supervisor, and what would mislead its ranks.
_OF_LAUNCHERS = frozenset(
    (
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
        *("LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE"),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    )
)


class Layout(NamedTuple):
    """Which ranks of an attempt are this node's, and where all of them meet."""

    attempt: int
    first: int
    ranks: int
    world: int
    address: str
    port: int


def rank_environment(
    environment: Mapping[str, str], layout: Layout, local: int, devices: Sequence[str] = ()
) -> dict[str, str]:
    """Return the variables of a rank. local: its number on this node. devices: those that the ranks
    of this node may use; none: all."""
    launched = "LOCAL_RANK" in environment
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _OF_LAUNCHERS and not name.startswith("TORCHELASTIC_")
    }
    visible = kept.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if launched and len(visible) < layout.ranks:
        # A launcher that started one process here, the supervisor, has given it one GPU.
        kept.pop("CUDA_VISIBLE_DEVICES", None)
    if devices:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return kept | {
        "RANK": str(layout.first + local),
        "WORLD_SIZE": str(layout.world),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(layout.ranks),
        "MASTER_ADDR": layout.address,
        "MASTER_PORT": str(layout.port),
    }


def free_port(coordinator: int, attempt: int) -> int:
    """Return one of PORTS that is free here, another one for each attempt, and for each run.

    coordinator: the port of the run's coordinator. Raises OSError where none is free.
    """
    first = (coordinator * 101 + attempt) % len(PORTS)
    for port in (*PORTS[first:], *PORTS[:first]):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"the ports {PORTS[0]} to {PORTS[-1]} are all taken")


class _Rank:
    """A process, and what is known of it."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], output: RankOutput) -> None:
        self.number, self.process, self.output = number, process, output
        self.started = time.monotonic()
        self.ended: float | None = None  # when that was noticed
        self.last_age = 0.0  # of its sign of life, at that moment
        self.heard = False  # whether its last word was looked for since then


class Ranks:
    """The ranks of this node in one attempt. All methods are called in the event loop's thread, the
    main one: PR_SET_PDEATHSIG is about the thread that starts a process."""

    def __init__(
        self,
        command: Sequence[str],
        layout: Layout,
        folder: RunFolder,
        output: Output,
        *,
        name: str,
        lost: float,
        devices: Sequence[str] = (),
    ) -> None:
        """command: of a rank, without what says which one it is. name: of this node. lost: seconds
        of our silence after which the ranks have to end."""
        self.layout, self._name, self._folder = layout, name, folder
        self._ranks: list[_Rank] = []
        self._killed: float | None = None
        self._guardian = _start_guardian(lost)
        self._signs = Signs(folder, name, range(layout.first, layout.first + layout.ranks))
        try:
            for local in range(layout.ranks):
                environment = rank_environment(os.environ, layout, local, devices)
                environment |= self._signs.environment
                self._start_rank(command, local, environment, output)
        except BaseException:
            self.kill()
            self._let_go()
            raise
        _write_down(folder, name, [self._guardian.pid, *self.pids().values()])

    def _start_rank(
        self, command: Sequence[str], local: int, environment: Mapping[str, str], output: Output
    ) -> None:
        number, parent = self.layout.first + local, os.getpid()
        log = self._folder.logs / platform.node() / f"rank-{number:05d}.log"
        read_end, write_end = os.pipe()

        def tie() -> None:  # in the child
            signal_at_end_of_parent(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                process_group=self._guardian.pid,
                preexec_fn=tie,  # it calls the system, and nothing that a thread could hold
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        rank = _Rank(number, process, output.rank(log))
        rank.output.note(
            f"== attempt {self.layout.attempt}: rank {number} of {self.layout.world}, process "
            f"{process.pid}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        rank.output.follow(read_end)
        self._ranks.append(rank)

    def beat(self) -> None:
        """Tell the guardian that we live."""
        assert self._guardian.stdin is not None
        with suppress(OSError):  # it is gone, and the group with it
            os.write(self._guardian.stdin.fileno(), b".")

    def poll(self) -> bool:
        """Look which ranks have ended. Returns whether one more has."""
        more = False
        for rank in self._ranks:
            if rank.ended is None and rank.process.poll() is not None:
                rank.ended, rank.last_age = time.monotonic(), self._age(rank)
                self._signs.look_at_once()
                more = True
        return more

    @property
    def running(self) -> bool:
        """Whether a rank has not ended yet."""
        return any(rank.ended is None for rank in self._ranks)

    def pids(self) -> dict[int, int]:
        """Return the processes of the ranks that have not ended."""
        return {rank.number: rank.process.pid for rank in self._ranks if rank.ended is None}

    def stop(self) -> None:
        """Ask all ranks to save and end."""
        for rank in self._ranks:
            if rank.ended is None:
                rank.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the group: ranks, their children, the guardian."""
        self._killed = self._killed or time.monotonic()
        if self._guardian.returncode is None:  # else its number may be somebody else's by now
            with suppress(ProcessLookupError):
                os.killpg(self._guardian.pid, signal.SIGKILL)
            self._guardian.kill()  # it has left the group where we were silent

    def clear(self) -> bool:
        """Take down what is left. Returns whether nothing is. Called again and again, after `kill`,
        or once no rank is running."""
        self.poll()
        if self.running:
            return False
        if self._guardian.returncode is None:
            self.kill()
            if self._guardian.poll() is None:
                return False
        assert self._killed is not None
        if time.monotonic() - self._killed < _LEFTOVERS:
            with suppress(ProcessLookupError):
                os.killpg(self._guardian.pid, 0)
                return False  # a child of a rank is still on its way out
        if not all(self._is_heard(rank) for rank in self._ranks):
            return False
        self._let_go()
        _write_down(self._folder, self._name, [])
        return True

    def _let_go(self) -> None:
        for rank in self._ranks:
            rank.output.close()
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._signs.close()

    def reports(self) -> tuple[RankReport, ...]:
        """Return how each rank is. The end of one that may have left a word is told with it, or
        after a second."""
        return tuple(self._report(rank) for rank in self._ranks)

    def _report(self, rank: _Rank) -> RankReport:
        sign = self._signs.latest(rank.number)
        code, age = None, self._age(rank)
        if self._is_heard(rank):
            code, age = rank.process.returncode, rank.last_age
        if sign is None:
            return RankReport(rank=rank.number, age=age, code=code)
        return RankReport(
            rank=rank.number,
            section=sign.section,
            step=sign.step,
            age=age,
            code=code,
            words=sign.reason[:2000] if code is not None else "",
        )

    def _is_heard(self, rank: _Rank) -> bool:
        """Whether a rank has ended, and its last word was looked for. Once it is, it stays so."""
        if rank.ended is not None and not rank.heard:
            patience = _LAST_SIGN if rank.process.returncode < 0 else _LAST_WORDS
            looked = self._signs.looked(rank.number) > rank.ended
            rank.heard = looked or time.monotonic() - rank.ended > patience
        return rank.heard

    def _age(self, rank: _Rank) -> float:
        """Seconds since the last sign of life, or since the start."""
        alive = time.monotonic() - rank.started
        return min(alive, self._signs.age(rank.number, alive))


# Processes.


def _start_guardian(lost: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", guardian.__file__, str(lost), str(6 * lost)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        process_group=0,
        env={},
        bufsize=0,
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


def _registers(folder: RunFolder) -> Path:
    """The folder of the registers of all nodes on this machine."""
    return folder.path / "supervisors" / f"on-{quote(platform.node(), safe='')}"


def _register(folder: RunFolder, name: str) -> Path:
    return _registers(folder) / f"{quote(name, safe='')}.json"


_registering = threading.Lock()
_newest: dict[Path, object] = {}  # what is to be in each register


def _write_down(folder: RunFolder, name: str, pids: Iterable[int]) -> None:
    """Write the processes of this node down, each with its start, by which it is known again, and
    this supervisor in the same way."""
    path = _register(folder, name)
    content = _place() | {
        "supervisor": _known(os.getpid()),
        "processes": [known for pid in pids if (known := _known(pid))[1]],
    }
    _newest[path] = content

    def write() -> None:
        # On slow storage, threads may come to this in another order than they were started.
        with _registering, suppress(OSError):
            if _newest[path] is content:
                write_atomically(path, json.dumps(content).encode())

    threading.Thread(target=write, daemon=True, name="register").start()


def end_orphans(folder: RunFolder) -> int:
    """Kill what earlier supervisors have left behind on this machine. Returns how many processes.

    The coordinator gives names to nodes, and may give this one another than an earlier one had, so
    all registers of this machine count. A supervisor that still lives, on a machine that has
    several, has left nothing behind.
    """
    try:
        registers = sorted(_registers(folder).glob("*.json"))
    except OSError:
        return 0
    killed = 0
    for pid, start in (process for file in registers for process in _left_behind(file)):
        if pid > 1 and start_of(pid) == start:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def _left_behind(register: Path) -> list[tuple[int, int]]:
    """Return the processes of a supervisor that is gone, as far as they may still live.

    Numbers of processes mean something on one machine, until it is booted, and within one
    container. So all of these are compared, and the time at which each process began.
    """
    try:
        content: dict[str, Any] = parse_json(
            read_file(register, _LARGEST, DataError), "processes", DataError
        )
        processes = [(int(pid), int(start)) for pid, start in content.pop("processes")]
        supervisor, began = content.pop("supervisor", (0, 0))
        lives = supervisor != os.getpid() and began and start_of(supervisor) == began
    except (OSError, DataError, KeyError, TypeError, ValueError):
        return []
    return [] if lives or content != _place() else processes


def _place() -> dict[str, Any]:
    """What the numbers of processes are good for."""
    return {"host": platform.node(), "machine": machine()}


def _known(pid: int) -> tuple[int, int]:
    """By what a process is known again: its number, and when it began."""
    return pid, start_of(pid)
