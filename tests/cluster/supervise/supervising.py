"""Real supervisors with ranks of a toy or of the trainer, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cluster.launch.backend import free_port
from cluster.supervise import history
from cluster.supervise.history import Event
from tests.patience import PATIENCE, until
from trainer.run_folder import RunFolder

T = TypeVar("T")
TOY = "tests.cluster.supervise.toy"


class Job:
    """The supervisors of a run on this machine, each of them a node of its own."""

    def __init__(self, run: Path, options: Sequence[str], words: Sequence[str]) -> None:
        self.run, self.folder = run, RunFolder(run)
        run.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._options, self._words = [*options, "--run", str(run)], ["--", *words]
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.output = run / "console.txt"

    def start(
        self,
        node: int,
        size: int = 1,
        *,
        python: str = sys.executable,
        port: int | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """Start the supervisor of a node.

        size: how many nodes a launcher would have started. port: where it finds the coordinator, if
        that is not its own. before: words of a command that starts the supervisor.
        """
        words = [python, "-m", "cluster.supervise", "--name", f"n{node}", *self._options]
        words += ["--port", str(port or self.port), *self._words]
        environment = os.environ | {
            "RANK": str(node),
            "WORLD_SIZE": str(max(size, node + 1)),
            "MASTER_ADDR": "127.0.0.1",
            "DS_ACCELERATOR": "cpu",
        }
        with self.output.open("ab") as console:
            self.nodes[node] = subprocess.Popen(
                [*before, *words],
                env=environment,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def signal(self, node: int, number: int) -> None:
        self.nodes[node].send_signal(number)

    def wait(self, node: int = 0) -> int:
        """Return the exit code of a node's supervisor."""
        try:
            return self.nodes[node].wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node {node} does not end:\n{self.said()}") from None

    def said(self) -> str:
        return self.output.read_text()

    def events(self) -> list[Event]:
        return history.read(self.folder.supervision)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events() if isinstance(event, kind)]

    def until(self, what: Callable[[], T]) -> T:
        """Wait for something, and return it."""
        return until(what, said=lambda: f"it did not come:\n{self.said()}", pause=0.02)

    def processes(self) -> list[int]:
        """Return all processes that name the run, but the supervisors: its ranks."""
        own = {process.pid for process in self.nodes.values()}
        return [pid for pid in processes_of(self.run) if pid not in own]


def processes_of(run: Path) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if f"run={run}".encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


@contextmanager
def job(run: Path, *options: str, words: Sequence[str] = (), toy: bool = True) -> Iterator[Job]:
    """A job whose supervisors are started one by one. Whatever is left at the end is killed."""
    if toy:
        options = ("--module", TOY, *options)
    made = Job(run, options, [f"run={run}", *words])
    try:
        yield made
    finally:
        for process in made.nodes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for pid in processes_of(run):
            os.kill(pid, signal.SIGKILL)
