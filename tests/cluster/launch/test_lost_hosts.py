"""`addp launch` from a third host, while hosts that train are lost or the launch is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.supervise import history
from tests.cluster.launch.two_hosts import Host, several_hosts
from tests.patience import PATIENCE, until
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import run_world
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.long

LENGTH = ("schedule.total=400", "checkpoint.every=20")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    with several_hosts(tmp_path_factory.mktemp("hosts"), 3) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two ranks on one host."""
    run = tmp_path_factory.mktemp("one-host") / "run"
    done = run_world(run, *MAGE, *LENGTH, f"data.tokens={tokens}")
    assert done.codes == [0, 0], done.output
    return losses(run)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics()]


def launch(
    hosts: Sequence[Host], run: Path, tokens: Path, *options: str
) -> subprocess.Popen[bytes]:
    """Start a run on node1 and node2 from node3, and wait for its first checkpoint."""
    config, hostfile = run.parent / "run.yaml", run.parent / "hosts"
    config.write_text("seed: 0\n")
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    words = [*MAGE, *SMALL, *LENGTH, f"data.tokens={tokens}", f"run={run}"]
    command = [sys.executable, "-m", "cluster.cli", "launch", str(config), *words]
    command += ["--hostfile", str(hostfile), *options]
    return hosts[2].start(command, run.parent / "log")


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    until(
        lambda: (RunFolder(run).newest_checkpoint() or 0) >= step,
        alive=lambda: process.poll() is None,
        said=(run.parent / "log").read_text,
        pause=0.1,
    )


def tell_first_new_step(run: Path, since: float, what: str) -> None:
    """Print how long the last new start took to its first step. since: when `what` happened."""
    events = history.read(RunFolder(run).supervision)
    again = [e for e in events if isinstance(e, history.Progress)][-1]
    print(f"first new step {again.time - since:.1f} s after {what}")


def nothing_is_left(hosts: Sequence[Host]) -> bool:
    return not [line for host in hosts for line in host.processes("cluster.").values()]


def test_the_run_goes_on_without_the_first_host(
    hosts: list[Host], tokens: Path, tmp_path: Path
) -> None:
    """Its supervisor was the coordinator."""
    run = tmp_path / "run"
    process = launch(hosts, run, tokens, "--min-nodes", "1")
    wait_for_step(run, 40, process)
    hosts[0].kill()
    killed = time.time()
    try:
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        hosts[0].boot()
    tell_first_new_step(run, killed, "the first host was killed")
    steps = [row["step"] for row in RunFolder(run).read_metrics()]
    assert steps == list(range(400)) and nothing_is_left(hosts)


def test_a_host_that_comes_back_is_taken_again(
    hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    """Where all are needed, the launch waits for it."""
    run = tmp_path / "run"
    process = launch(hosts, run, tokens)
    wait_for_step(run, 40, process)
    hosts[1].kill()
    time.sleep(20)
    hosts[1].boot()
    booted = time.time()
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    tell_first_new_step(run, booted, "the host was back")
    assert losses(run) == undisturbed and nothing_is_left(hosts)


def test_a_link_that_was_cut_is_used_again(
    hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = launch(hosts, run, tokens)
    wait_for_step(run, 40, process)
    hosts[0].cut_link()
    time.sleep(20)
    hosts[0].restore_link()
    restored = time.time()
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    tell_first_new_step(run, restored, "the link was back")
    assert losses(run) == undisturbed and nothing_is_left(hosts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launch_that_is_signalled_saves_and_goes_on(
    number: int, hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = launch(hosts, run, tokens)
    wait_for_step(run, 40, process)
    hosts[2].signal(number, "cluster.cli launch")
    assert process.wait(PATIENCE) == (75 if number == signal.SIGTERM else -9)
    until(
        lambda: nothing_is_left(hosts), said=lambda: [host.processes() for host in hosts], pause=0.2
    )
    stopped = RunFolder(run).newest_checkpoint()
    assert stopped is not None and stopped % 20, "it did not save when it was asked to stop"
    assert launch(hosts, run, tokens).wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert losses(run) == undisturbed and nothing_is_left(hosts)
