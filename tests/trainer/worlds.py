"""Worlds of ranks without a launcher: forked from a process that has PyTorch and DeepSpeed loaded,
so that a whole run of two real ranks takes a second or two. What launchers do is tested with the
launchers, by `launching`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from cluster.launch.backend import free_port
from tests.patience import PATIENCE, until
from tests.trainer.launching import SMALL
from tests.trainer.sabotage import Sabotage
from tests.warm import CONTEXT
from trainer.pretrain import run_and_leave


def _rank(
    rank: int,
    arguments: Sequence[str],
    sabotage: Sabotage | None,
    log: str,
    environment: dict[str, str],
    main: Callable[[list[str]], int],
) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.clear()
    os.environ.update(environment)
    if sabotage:
        sabotage.install(rank)
    sys.exit(main(list(arguments)))


class Outcome(NamedTuple):
    """codes: exit codes by rank, negative for signals."""

    codes: list[int | None]
    output: str


class Ranks:
    """Processes that each call `main`, and write what they say to `log`."""

    def __init__(
        self,
        main: Callable[[list[str]], int],
        arguments: Sequence[str],
        processes: int,
        log: Path,
        sabotage: Sabotage | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.log.write_text("")
        port, environment = free_port(), {**os.environ, "DS_ACCELERATOR": "cpu"}
        self.ranks: list[ForkServerProcess] = [
            CONTEXT.Process(
                target=_rank,
                args=(
                    r,
                    arguments,
                    sabotage,
                    str(log),
                    environment | self.place(r, processes, port),
                    main,
                ),
            )
            for r in range(processes)
        ]
        for rank in self.ranks:
            rank.start()

    def place(self, rank: int, processes: int, port: int) -> dict[str, str]:
        """What tells a process its place: a launcher's variables."""
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}

    def wait(self) -> Outcome:
        deadline = time.monotonic() + PATIENCE
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank in self.ranks if rank.is_alive()]
        self.kill()
        output = self.log.read_text()
        assert not late, f"{len(late)} ranks do not end:\n{output}"
        return Outcome([rank.exitcode for rank in self.ranks], output)

    def kill(self, which: Sequence[int] | None = None) -> None:
        """SIGKILL."""
        for index, rank in enumerate(self.ranks):
            if which is None or index in which:
                rank.kill()
                rank.join()

    def alive(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)

    def wait_for(self, path: Path) -> None:
        until(
            path.exists,
            alive=self.alive,
            said=lambda: f"{path} did not appear:\n{self.log.read_text()}",
        )


class World(Ranks):
    """Ranks of a run."""

    def __init__(
        self, run: Path, overrides: Sequence[str], processes: int, sabotage: Sabotage | None
    ) -> None:
        log = run.parent / f"{run.name}.log"
        super().__init__(
            run_and_leave, [f"run={run}", *SMALL, *overrides], processes, log, sabotage
        )


def run_world(
    run: Path, *overrides: str, processes: int = 2, sabotage: Sabotage | None = None
) -> Outcome:
    """A whole run."""
    return World(run, overrides, processes, sabotage).wait()


def finish(run: Path, *overrides: str, processes: int = 2) -> str:
    """A run that must end well. Returns its output."""
    codes, output = run_world(run, *overrides, processes=processes)
    assert codes == [0] * processes, output
    return output
