"""Supervisors with ranks that fail in every way: what is noticed, what is done, what is left."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from cluster.supervise import downtime, history
from tests.cluster.supervise.link import Link
from tests.cluster.supervise.supervising import job


def test_a_run_is_seen_through(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with job(run, "--ranks", "2", words=["steps=8"]) as one:
        one.start(0)
        assert one.wait() == 0
        kinds = [event.event for event in one.events()]
        assert [kind for kind in kinds if kind != "checkpoint"] == [
            *("joined", "start", "progress", "end", "verdict")
        ]
        (verdict,) = one.of(history.Verdict)
        assert (verdict.verdict, verdict.code) == ("done", 0)
        (log, _) = sorted((run / "logs").glob("*/rank-*.log"))
        assert "rank 0 of 2 at 3" in log.read_text() and "rank 1 of 2" in one.said()
        assert not one.processes()


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("kill", "death", -9),
        pytest.param("crash", "crash", 1, marks=pytest.mark.long),
        pytest.param("74", "storage", 74, marks=pytest.mark.long),
        pytest.param("75", "stopped", 75, marks=pytest.mark.long),
        ("stop", "hang", 76),
    ],
)
def test_ranks_that_fail_are_started_again(
    fault: str, kind: str, code: int, tmp_path: Path
) -> None:
    options = ("--ranks", "2", "--limit-step", "3", "--limit-first-step", "3")
    words = ["steps=12", f"fault=1:6:{fault}:1", "pause=0.1"]
    if fault == "75":  # which ranks agree on
        words.append("fault=0:6:75:1")
    with job(tmp_path / "run", *options, words=words) as one:
        one.start(0)
        assert one.wait() == 0
        (found,) = one.of(history.Fault)
        assert (found.kind, found.node) == (kind, "n0"), found
        assert found.rank == 1 or fault in ("75", "stop"), found
        first, second = one.of(history.Start)
        assert first.checkpoint is None and second.checkpoint in (4, 8, 12)
        assert [end.code for end in one.of(history.End)] == [code, 0]
        if fault == "stop":
            assert found.seconds >= 3 and "[" not in found.reason
            (stacks,) = one.of(history.Stacks)
            assert "stopped by a signal" in stacks.summary
            assert (tmp_path / "run" / stacks.file).exists()
        if fault == "kill":
            assert "rank 1 on n0 was killed by SIGKILL at step 6" in one.said()
            (recovery,) = downtime.recoveries(one.events())
            assert recovery.stepped is not None
        assert not one.processes()


@pytest.mark.parametrize(
    "code", [pytest.param(77, marks=pytest.mark.long), 78, pytest.param(79, marks=pytest.mark.long)]
)
def test_what_no_start_helps_is_passed_on(code: int, tmp_path: Path) -> None:
    words = ["steps=12", f"fault=0:2:{code}:9", f"fault=1:2:{code}:9"]
    with job(tmp_path / "run", "--ranks", "2", words=words) as one:
        one.start(0)
        assert one.wait() == code
        assert len(one.of(history.Start)) == 1
        assert one.of(history.Verdict)[0].verdict == "failed"


def test_it_gives_up_without_progress_and_stays_so(tmp_path: Path) -> None:
    with job(tmp_path / "run", "--ranks", "2", words=["steps=12", "fault=1:2:crash:9"]) as one:
        one.start(0)
        assert one.wait() == 80
        assert len(one.of(history.Start)) == 3
        assert one.of(history.Verdict)[-1].verdict == "gave up"
        report = one.folder.failure.read_text()
        assert "RuntimeError" in report and "rank 1" in report
        one.start(0)
        assert one.wait() == 80 and len(one.of(history.Start)) == 3


@pytest.mark.long
def test_it_tries_again_once_somebody_has_looked(tmp_path: Path) -> None:
    """Progress forgives failures, and so does whoever removes the report."""
    options = ("--ranks", "2", "--max-restarts", "2")
    with job(tmp_path / "run", *options, words=["steps=12", "fault=1:6:crash:9"]) as one:
        one.start(0)
        assert one.wait() == 80 and len(one.of(history.Start)) == 3
        one.folder.failure.unlink()
        one.start(0)
        assert one.wait() == 80 and len(one.of(history.Start)) == 5


def test_a_stop_reaches_all_ranks_and_they_save(tmp_path: Path) -> None:
    with job(tmp_path / "run", "--ranks", "2", words=["steps=1000"]) as one:
        one.start(0)
        one.until(lambda: one.of(history.Progress))
        one.signal(0, signal.SIGTERM)
        assert one.wait() == 75
        (verdict,) = one.of(history.Verdict)
        assert (verdict.verdict, verdict.code) == ("stopped", 75)
        assert one.of(history.End)[0].checkpoint is not None and not one.processes()
        (tmp_path / "run" / "STOP").touch()
        one.start(0)
        assert one.wait() == 75
        assert not (tmp_path / "run" / "STOP").exists()
        assert [verdict.by_user for verdict in one.of(history.Verdict)] == [False, True]


def test_a_users_stop_ends_the_run_although_the_ranks_remove_the_file(tmp_path: Path) -> None:
    with job(tmp_path / "run", "--ranks", "2", words=["steps=1000", "removes=stop"]) as one:
        one.start(0)
        one.until(lambda: one.of(history.Progress))
        (tmp_path / "run" / "STOP").touch()
        assert one.wait() == 75 and len(one.of(history.Start)) == 1
        (verdict,) = one.of(history.Verdict)
        assert (verdict.verdict, verdict.by_user) == ("stopped", True)


@pytest.mark.long
def test_ranks_that_do_not_save_in_time_are_killed(tmp_path: Path) -> None:
    words = ["steps=1000", "ignore=term"]
    with job(tmp_path / "run", "--ranks", "2", "--grace", "1", words=words) as one:
        one.start(0)
        one.until(lambda: one.of(history.Progress))
        one.signal(0, signal.SIGTERM)
        assert one.wait() == 75
        assert "did not save" in one.said() and not one.processes()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)]
)
def test_no_rank_outlives_its_supervisor(number: int, tmp_path: Path) -> None:
    """Killed, its ranks and their children end at once; stopped, within the time in which the
    others would take this node for lost."""
    words = ["steps=1000000", "child=yes"]
    with job(tmp_path / "run", "--ranks", "2", "--lost", "3", words=words) as one:
        one.start(0)
        one.until(lambda: one.of(history.Progress))
        assert len(one.processes()) == 4
        one.signal(0, number)
        one.until(lambda: not one.processes())


@pytest.mark.long
def test_two_nodes_and_a_spare(tmp_path: Path) -> None:
    """A node is killed, and the spare takes its place."""
    options = ("--nodes", "2", "--spares", "1", "--ranks", "2", "--lost", "3")
    with job(tmp_path / "run", *options, words=["steps=60", "pause=0.1"]) as three:
        for node in range(3):
            three.start(node, 3)
        three.until(lambda: three.of(history.Progress))
        (start,) = three.of(history.Start)
        names = [node.node for node in start.nodes]
        victim = int(names[1].removeprefix("n"))
        three.nodes[victim].kill()
        (fault,) = three.until(lambda: three.of(history.Fault))
        assert fault.kind == "lost node" and fault.node == f"n{victim}"
        assert three.wait() == 0
        assert {three.wait(node) for node in range(3) if node != victim} == {0}
        again = three.of(history.Start)[1]
        assert {node.node for node in again.nodes} == {f"n{n}" for n in range(3) if n != victim}
        assert again.ranks == 4 and not three.processes()


@pytest.mark.long
def test_fewer_nodes_go_on_and_grow_again(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--min-nodes", "1", "--lost", "3", "--grow", "1")
    with job(tmp_path / "run", *options, words=["steps=300", "pause=0.1"]) as two:
        two.start(0, 2)
        two.start(1, 2)
        two.until(lambda: two.of(history.Progress))
        two.signal(1, signal.SIGTERM)
        assert two.wait(1) == 75 and two.nodes[0].poll() is None
        two.until(lambda: len(two.of(history.Progress)) == 2)
        assert [start.ranks for start in two.of(history.Start)] == [2, 1]
        two.start(1, 2)
        two.until(lambda: len(two.of(history.Start)) == 3)
        assert two.wait(0) == two.wait(1) == 0
        assert [start.ranks for start in two.of(history.Start)] == [2, 1, 2]
        assert not [end for end in two.of(history.End) if end.failed]


@pytest.mark.long
def test_without_its_coordinator_a_node_ends(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--lost", "2", "--rejoin", "1")
    with job(tmp_path / "run", *options, words=["steps=10000"]) as two:
        two.start(0, 2)
        two.start(1, 2)
        two.until(lambda: two.of(history.Progress))
        two.nodes[0].kill()
        assert two.wait(1) == 81
        assert not two.processes()


def test_too_few_nodes_are_incomplete(tmp_path: Path) -> None:
    with job(tmp_path / "run", "--nodes", "2", "--rejoin", "1", words=["steps=1"]) as one:
        one.start(0, 2)
        assert one.wait() == 81
        assert "1 of 2 nodes are there" in one.said()


@pytest.mark.long
def test_a_cut_link(tmp_path: Path) -> None:
    """A short cut is no fault. A long one loses the node, which kills its ranks by itself, comes
    back when the link does, and takes part again."""
    options = ("--nodes", "2", "--min-nodes", "1", "--lost", "4", "--grow", "1")
    with (
        job(tmp_path / "run", *options, words=["steps=3000", "pause=0.1"]) as two,
        Link(two.port) as link,
    ):
        two.start(0, 2)
        two.start(1, 2, port=link.port)
        two.until(lambda: two.of(history.Progress))
        link.cut()
        time.sleep(1.5)
        link.restore()
        time.sleep(3)
        assert not two.of(history.Left) and not two.of(history.End)
        cut = time.time()
        link.cut()
        (fault,) = two.until(lambda: two.of(history.Fault))
        assert fault.kind == "lost node" and fault.time - cut > 3
        two.until(lambda: len(two.of(history.Start)) == 2)
        two.until(lambda: "the ranks here are killed" in two.said())
        link.restore()
        two.until(lambda: len(two.of(history.Start)) == 3)
        assert [start.ranks for start in two.of(history.Start)] == [2, 1, 2]
        two.until(lambda: len(two.of(history.Progress)) == 3)
        for node in (0, 1):
            two.signal(node, signal.SIGTERM)
        assert two.wait(0) == two.wait(1) == 75
        assert two.of(history.Verdict)[-1].verdict == "stopped"


@pytest.mark.long
def test_a_node_that_is_not_fit_is_left_out(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--spares", "1", "--health", "tests.cluster.supervise.unfit")
    run = tmp_path / "run"
    with job(run, *options, words=["steps=30", "fault=1:5:crash:1", "pause=0.1"]) as three:
        three.start(0, 3)
        three.start(1, 3)
        three.until(lambda: three.of(history.Start))
        three.start(2, 3)
        (run / "unfit").write_text("1")
        assert three.wait() == 0
        kinds = [(fault.kind, fault.node) for fault in three.of(history.Fault)]
        assert kinds == [("crash", "n1"), ("unfit node", "n1")]
        assert [node.node for node in three.of(history.Start)[1].nodes] == ["n0", "n2"]
        assert "n1 is not fit and is left out: ECC: 12 errors" in three.said()


def test_a_launcher_that_is_gone(tmp_path: Path) -> None:
    """Its supervisor saves and ends, and asks to be started again."""
    launcher = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[2:]))"
    before = [sys.executable, "-c", launcher, "deepspeed.launcher.launch"]
    with job(tmp_path / "run", "--ranks", "2", words=["steps=10000"]) as one:
        one.start(0, before=before)
        one.until(lambda: one.of(history.Progress))
        one.signal(0, signal.SIGKILL)
        (verdict,) = one.until(lambda: one.of(history.Verdict))
        assert (verdict.verdict, verdict.code) == ("incomplete", 81)
        assert one.of(history.End)[0].code == 75
        one.until(lambda: not one.processes())


@pytest.mark.long
def test_a_second_supervisor_with_the_same_rank_is_refused(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--min-nodes", "1", "--lost", "3", "--rejoin", "1")
    with job(tmp_path / "run", *options, words=["steps=10000"]) as two:
        two.start(0, 2)
        two.start(1, 2)
        two.until(lambda: two.of(history.Progress))
        first = two.nodes[1]
        two.start(1, 2)
        assert two.wait(1) == 81
        assert "RANK has to be different on each node" in two.said()
        assert first.poll() is None and not two.of(history.End)
        first.kill()
        first.wait()
