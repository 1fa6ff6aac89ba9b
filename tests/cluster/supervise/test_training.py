"""The trainer under supervisors: whatever happens to its ranks, it ends as if nothing had."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.supervise import history
from tests.cluster.supervise.supervising import Job, job
from tests.trainer.comparing import same_end
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import finish
from tests.warm import warm_python
from trainer.run_folder import RunFolder

OPTIONS = (*MAGE, *SMALL)


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(run, *OPTIONS, f"data.tokens={tokens}")
    return run


@pytest.fixture(scope="module")
def on_two_nodes(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of ranks that are alone on their nodes, and so compute with more threads: sums come
    out otherwise in their last bits."""
    run = tmp_path_factory.mktemp("runs") / "two-nodes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "1")
        finish(run, *OPTIONS, f"data.tokens={tokens}")
    return run


@contextmanager
def training(run: Path, tokens: Path, *options: str) -> Iterator[Job]:
    words = [*OPTIONS, f"data.tokens={tokens}"]
    with job(run, *options, words=words, toy=False) as made:
        yield made


def at_step(made: Job, step: int) -> None:
    made.until(lambda: (RunFolder(made.run).newest_checkpoint() or 0) >= step)


def pid_of(made: Job, rank: int) -> int:
    words = made.folder.heartbeat(rank).read_text()
    return int(words.split('"pid": ')[1].split(",")[0].rstrip("}"))


def test_a_rank_is_killed(whole: Path, tokens: Path, tmp_path: Path) -> None:
    with training(tmp_path / "run", tokens, "--ranks", "2") as one:
        one.start(0, python=warm_python())
        at_step(one, 4)
        os.kill(pid_of(one, 1), signal.SIGKILL)
        assert one.wait() == 0
        assert len(one.of(history.Start)) == 2
        assert same_end(tmp_path / "run", whole)


def test_a_node_is_killed_and_a_spare_takes_its_place(
    on_two_nodes: Path, tokens: Path, tmp_path: Path
) -> None:
    options = ("--nodes", "2", "--spares", "1", "--lost", "5")
    with training(tmp_path / "run", tokens, *options) as three:
        for node in range(3):
            three.start(node, 3, python=warm_python())
        at_step(three, 4)
        taken = three.of(history.Start)[0].nodes[1].node
        three.nodes[int(taken.removeprefix("n"))].kill()
        assert three.wait() == 0
        assert same_end(tmp_path / "run", on_two_nodes)
