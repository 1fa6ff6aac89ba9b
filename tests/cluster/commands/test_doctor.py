"""`addp doctor`: on this machine, under a launcher, and what it says where it starts nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cluster.supervise import ranks
from tests.cluster.calling import addp, typed
from tests.cluster.launch.two_hosts import Host, several_hosts
from tests.trainer.launching import MAGE, SMALL, warm_launcher
from trainer.preflight.doctor.examination import PORTS
from trainer.preflight.doctor.reporting import from_lines

CONFIG = [*MAGE, *SMALL]


def test_this_machine(tmp_path: Path) -> None:
    done = typed("doctor", *CONFIG, f"run={tmp_path / 'run'}", "--no-device", "--json")
    answer = json.loads(done.stdout)
    assert done.code == (0 if answer["ready"] else 78) and not list(tmp_path.iterdir())
    checks = {one["name"] for one in answer["nodes"][0]["checks"]}
    assert {"run folder", "memory", "saving"} <= checks and "device" not in checks


def test_a_configuration_that_cannot_be() -> None:
    done = typed("doctor", *CONFIG, "batch.mikro=2", "--no-device")
    assert done.code == 78 and "the nearest known one is batch.micro" in done.stdout
    assert "this machine is not ready" in done.stdout
    done = typed("doctor", "no-such-recipe")
    assert done.code == 78 and done.stderr.startswith("error: 'no-such-recipe' is neither a run")


def test_time_outs_in_an_order_that_does_not_work() -> None:
    """Those of the supervisors, beside the configuration's own."""
    done = addp("doctor", *CONFIG, "health.hang=20")
    assert done.code == 78
    assert "silence in a step (30 s) must be shorter than health.hang (20 s)" in done.stderr


def test_two_nodes_under_a_launcher(tmp_path: Path) -> None:
    words = [*CONFIG, f"run={tmp_path / 'run'}", "--no-device", "--lines"]
    done = subprocess.run(
        warm_launcher(2, "trainer.preflight.doctor", words),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )
    answer, _ = from_lines(done.stdout)
    assert answer is not None, done.stdout + done.stderr
    assert len(answer["nodes"]) == 2 and done.returncode == (0 if answer["ready"] else 78)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("node1 slots=8\nnode2 slots=8\n")
    return path


def test_a_backend_that_starts_nothing_on_other_hosts(hostfile: Path) -> None:
    done = addp("doctor", *CONFIG, "--hostfile", hostfile, "--backend", "torchrun")
    assert done.code == 78 and "--lines" not in done.stderr
    for node in (0, 1):
        assert f"  on node{node + 1}: " in done.stderr and f"--node-rank={node}" in done.stderr
    assert (
        "trainer.preflight.doctor objective=mage" in done.stderr
        and "--nproc-per-node=1" in done.stderr
    )


@pytest.mark.parametrize(
    ("backend", "command"),
    [("slurm", "`srun --ntasks-per-node=1 python"), ("kubernetes", "`python")],
)
def test_a_scheduler(backend: str, command: str, hostfile: Path) -> None:
    done = addp("doctor", "--hostfile", hostfile, "--backend", backend)
    assert done.code == 78 and f"start {command} -m trainer.preflight.doctor`" in done.stderr


def test_names_that_are_none(hostfile: Path, tmp_path: Path) -> None:
    done = addp("doctor", "--hostfile", hostfile, "--backend", "smoke-signals")
    assert done.code == 78 and "there is no backend smoke-signals; there are " in done.stderr
    done = addp("doctor", "--hostfile", tmp_path / "none")
    assert done.code == 78 and "cannot be read: No such file" in done.stderr


def test_the_ports_that_are_tried_are_those_of_the_ranks() -> None:
    assert (ranks.PORTS[0], ranks.PORTS[-1]) == PORTS


def test_a_password_goes_on_no_command_line(hostfile: Path) -> None:
    done = addp("doctor", "--hostfile", hostfile, "checkpoint.upload=s3://key:very-secret@bucket/x")
    assert done.code == 78 and "checkpoint.upload holds a password" in done.stderr
    assert "very-secret" not in done.stdout + done.stderr


@pytest.mark.long
def test_two_hosts(tmp_path: Path) -> None:
    """Over ssh: what is well, and what is not once each host has a disk and a name of its own."""
    with several_hosts(tmp_path / "hosts") as hosts:
        words = [*CONFIG, f"run={tmp_path / 'run'}", "--no-device", "--json"]
        answer = _ask(hosts, words)
        assert answer["ready"], answer
        names = {one["name"]: one["state"] for one in answer["checks"]}
        assert names["reachability"] == names["links"] == names["clocks"] == "ok"
        assert [node["host"] for node in answer["nodes"]] == ["node1", "node2"]

        closed = ["pref", "1", "ipproto", "tcp", "dport", "30000-32699", "prohibit"]
        assert hosts[0].run(["ip", "rule", "add", *closed]).returncode == 0
        answer = _ask(hosts, words)
        (one,) = (one["found"] for one in answer["checks"] if one["state"] == "FAILED")
        assert one.startswith("node1 does not reach node2 at 10.77.0.2:3"), answer
        hosts[0].run(["ip", "rule", "del", *closed])

        (tmp_path / "own").mkdir()
        hosts[1].run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "own")])
        answer = _ask(hosts, [*words, f"run={tmp_path / 'own' / 'run'}", "--sight=2"])
        failed = [one for one in answer["nodes"][1]["checks"] if one["state"] == "FAILED"]
        assert "is not the run folder that node 0 sees" in failed[0]["found"], answer

        named = tmp_path / "names"
        named.write_text("127.0.0.1 localhost\n127.0.1.1 node2\n10.77.0.1 node1\n")
        hosts[1].run(["mount", "--bind", str(named), "/etc/hosts"])
        answer = _ask(hosts, words, GLOO_SOCKET_IFNAME="")
        failed = [one for one in answer["checks"] if one["state"] == "FAILED"]
        assert "on node2, the host's name stands for 127.0.1.1" in failed[0]["found"], answer


def _ask(hosts: list[Host], words: list[str], **environment: str) -> dict[str, object]:
    import sys

    command = [sys.executable, "-m", "cluster.cli", "doctor", *words]
    hostfile = str(hosts[0].folder / "hostfile")
    own = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path.cwd()), **environment}
    done = hosts[0].run([*command, "--hostfile", hostfile], environment=own)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer
