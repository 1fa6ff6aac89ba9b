"""Launches across hosts: words and variables arrive as they are, and trainings as on one host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.launch.record_words import HOSTILE
from tests.cluster.launch.two_hosts import Host, several_hosts
from tests.patience import PATIENCE
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import finish
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.long

START = """
import json, sys
from cluster.launch.backend import LaunchRequest
from cluster.launch.backends.deepspeed import DeepSpeedOptions
from cluster.launch.hosts import Hosts
from cluster.launch.launch import start
from pathlib import Path
asked = json.loads(sys.argv[1])
request = LaunchRequest(asked["module"], asked["arguments"], Hosts(asked["hosts"]), asked["port"],
    Path(asked["folder"]), carried=asked["carried"], options=DeepSpeedOptions(**asked["options"]))
sys.exit(start(request, backend="deepspeed").code)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    with several_hosts(tmp_path_factory.mktemp("hosts"), 2) as made:
        yield made


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi"])
def test_words_and_variables_arrive_as_they_are(
    launcher: str, hosts: list[Host], tmp_path: Path
) -> None:
    variables = {f"ADDP_{index}": word for index, word in enumerate(HOSTILE) if "\n" not in word}
    variables["GLOO_SOCKET_IFNAME"] = "eth0"
    asked = {
        "module": "tests.cluster.launch.record_words",
        "arguments": [str(tmp_path / "seen"), *HOSTILE],
        "hosts": {host.name: 1 for host in hosts},
        "port": 29400,
        "folder": str(tmp_path / "a folder"),
        "carried": list(variables),
        "options": {"launcher": launcher},
    }
    command = [sys.executable, "-c", START, json.dumps(asked)]
    done = hosts[0].run(command, environment=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank, host in enumerate(hosts):
        seen = json.loads((tmp_path / "seen" / f"rank-{rank}.json").read_text())
        assert seen["host"] == host.name and seen["words"] == HOSTILE
        assert seen["environment"]["MASTER_ADDR"] == "node1"
        got = {name: seen["environment"].get(name) for name in variables}
        assert got == {name: value.strip() for name, value in variables.items()}
    assert not Path("/tmp/addp-injected").exists()


# Trainings: plain launchers, and `addp launch` by each backend, as on one host.


@pytest.fixture(scope="module")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two ranks on one host."""
    run = tmp_path_factory.mktemp("one-host") / "run"
    finish(run, *MAGE, f"data.tokens={tokens}")
    return losses(run)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics()]


def trainer_words(run: Path, tokens: Path) -> list[str]:
    return [*MAGE, *SMALL, f"data.tokens={tokens}", f"run={run}"]


def finish_all(commands: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    """Wait for commands that must end well. What is left of them is killed."""
    try:
        codes = [command.wait(PATIENCE) for command in commands]
    finally:
        for command in commands:
            command.kill()
    assert codes == [0] * len(codes), log.read_text()


def test_plain_deepspeed_by_pdsh(
    hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile"]
    command += [f"{hosts[0].folder}/hostfile", "--no_ssh_check", "--master_addr=node1"]
    command += ["--master_port=29411", "--module", "trainer.pretrain"]
    log = tmp_path / "log"
    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\n")
    environment = {"DS_ENV_FILE": str(tmp_path / ".deepspeed_env")}
    words = trainer_words(tmp_path / "run", tokens)
    finish_all([hosts[0].start([*command, *words], log, environment=environment)], log)
    assert losses(tmp_path / "run") == undisturbed


def test_plain_deepspeed_without_ssh(
    hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile"]
    command += [f"{hosts[0].folder}/hostfile", "--no_ssh", "--master_addr=node1"]
    command += ["--master_port=29412"]
    log, words = tmp_path / "log", trainer_words(tmp_path / "run", tokens)
    commands = [
        host.start(
            [*command, "--node_rank", str(rank), "--module", "trainer.pretrain", *words], log
        )
        for rank, host in enumerate(hosts)
    ]
    finish_all(commands, log)
    assert losses(tmp_path / "run") == undisturbed


def test_plain_torchrun(
    hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--master-addr=node1", "--master-port=29413"]
    log, words = tmp_path / "log", trainer_words(tmp_path / "run", tokens)
    commands = [
        host.start([*command, f"--node-rank={rank}", "-m", "trainer.pretrain", *words], log)
        for rank, host in enumerate(hosts)
    ]
    finish_all(commands, log)
    assert losses(tmp_path / "run") == undisturbed


BACKENDS = {
    "pdsh": [],
    "openmpi": ["--launcher", "openmpi"],
    "no ssh": ["--no-ssh"],
    "torchrun": ["--backend", "torchrun"],
}


@pytest.mark.parametrize("way", BACKENDS)
def test_addp_launch(
    way: str, hosts: list[Host], tokens: Path, undisturbed: list[float], tmp_path: Path
) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    config = tmp_path / "run.yaml"
    config.write_text("seed: 0\n")
    command = [sys.executable, "-m", "cluster.cli", "launch", str(config), *BACKENDS[way]]
    command += ["--hostfile", f"{hosts[0].folder}/hostfile", *trainer_words(run, tokens)]
    if way in ("no ssh", "torchrun"):
        commands = [
            host.start([*command, "--node-rank", str(rank)], log) for rank, host in enumerate(hosts)
        ]
    else:
        commands = [hosts[0].start(command, log)]
    finish_all(commands, log)
    assert losses(run) == undisturbed
    left = [line for host in hosts for line in host.processes("cluster.").values()]
    assert not left and not (run / "launch" / "environment").exists()
