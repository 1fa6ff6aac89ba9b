"""What each backend plans, and what it refuses to start."""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch.backend import HERE, LaunchRequest, PlannedFile
from cluster.launch.backends import BACKENDS
from cluster.launch.backends.deepspeed import DeepSpeedBackend, DeepSpeedOptions
from cluster.launch.files import written
from cluster.launch.hosts import Hosts, this_machine
from cluster.launch.launch import start
from cluster.launch.supervised import Supervision
from cluster.launch.timeouts import BEAT_SECONDS, LOST_SECONDS
from cluster.launch.variables import is_secret, split_secrets
from cluster.supervise.__main__ import parse
from cluster.supervise.limits import Limits
from cluster.supervise.policy import Rules
from model.errors import ConfigError
from tests.cluster.launch.record_words import HOSTILE

TWO = Hosts({"node1": 1, "node2": 1})


def request_for(hosts: Hosts, folder: Path, **options: object) -> LaunchRequest:
    return LaunchRequest(
        "cluster.supervise",
        ["--run", "/a run", "--", "seed=1"],
        hosts,
        29500,
        folder,
        options=DeepSpeedOptions(**options),  # type: ignore[arg-type]
    )


def test_a_local_launch_is_the_module_itself(tmp_path: Path) -> None:
    (command,) = BACKENDS["local"].plan(request_for(this_machine(1), tmp_path)).commands
    assert list(command.words) == [
        *(sys.executable, "-u", "-m", "cluster.supervise"),
        *("--run", "/a run", "--", "seed=1"),
    ]
    assert command.where == HERE and command.environment == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def test_torchrun_has_a_command_for_each_host(tmp_path: Path) -> None:
    commands = BACKENDS["torchrun"].plan(request_for(TWO, tmp_path)).commands
    assert [command.where for command in commands] == ["node1", "node2"]
    assert list(commands[1].words) == [
        *(sys.executable, "-u", "-m", "torch.distributed.run", "--nnodes=2", "--node-rank=1"),
        *("--nproc-per-node=1", "--max-restarts=0", "--master-addr=node1", "--master-port=29500"),
        *("-m", "--", "cluster.supervise", "--run", "/a run", "--", "seed=1"),
    ]
    (alone,) = BACKENDS["torchrun"].plan(request_for(this_machine(2), tmp_path)).commands
    assert alone.where == HERE and "--nproc-per-node=2" in alone.words


def test_deepspeed_by_pdsh_is_one_command_and_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plan = BACKENDS["deepspeed"].plan(request_for(TWO, tmp_path))
    (command,) = plan.commands
    assert command.where == HERE and plan.waits
    assert list(command.words) == [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", f"{tmp_path}/hostfile"),
        *("--master_addr", "node1", "--force_multi", "--no_ssh_check", "--launcher", "pdsh"),
        *("--master_port", "29500", "--no_local_rank", "--module", "cluster.supervise"),
        *("--run", "/a run", "--", "seed=1"),
    ]
    assert [(file.path.name, file.private) for file in plan.files] == [
        ("hostfile", False),
        ("environment", True),
    ]
    assert plan.files[0].text == "node1 slots=1\nnode2 slots=1\n"
    assert command.environment["DS_ENV_FILE"] == f"{tmp_path}/environment"
    # A user's own options come first: ssh takes the first of two.
    assert re.match(r"-p 2222 .*ServerAliveInterval", command.environment["PDSH_SSH_ARGS_APPEND"])
    assert not list(tmp_path.iterdir())  # a plan touches nothing


def test_deepspeed_without_ssh_has_a_command_for_each_host(tmp_path: Path) -> None:
    plan = BACKENDS["deepspeed"].plan(request_for(TWO, tmp_path, no_ssh=True))
    assert [command.where for command in plan.commands] == ["node1", "node2"]
    words = list(plan.commands[1].words)
    assert words[words.index("--no_ssh") : words.index("--no_ssh") + 3] == [
        *("--no_ssh", "--node_rank", "1")
    ]


def test_openmpi_brings_names_of_variables_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "ours")
    request = LaunchRequest(
        *("m", [], TWO, 29500, tmp_path),
        carried=["AWS_PROFILE"],
        options=DeepSpeedOptions(launcher="openmpi"),
    )
    (command,) = BACKENDS["deepspeed"].plan(request).commands
    (mpirun,) = (word for word in command.words if word.startswith("--launcher_args="))
    assert "-x AWS_PROFILE" in mpirun and "-x MASTER_ADDR" in mpirun and "ours" not in mpirun
    assert command.environment["MASTER_ADDR"] == "node1"


def test_deepspeed_on_this_machine_reads_no_hostfile(tmp_path: Path) -> None:
    for hosts in (this_machine(2), Hosts({"localhost": 2})):
        (command,) = BACKENDS["deepspeed"].plan(request_for(hosts, tmp_path)).commands
        words = list(command.words)
        assert words[words.index("--hostfile") + 1] == os.devnull
        assert words[words.index("--num_gpus") + 1] == "2"


def test_a_backend_refuses_hosts_that_are_not_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on this machine only, not on node1, node2"):
        BACKENDS["local"].check(request_for(TWO, tmp_path))
    with pytest.raises(ConfigError, match="starts one process, not 2"):
        BACKENDS["local"].plan(request_for(this_machine(2), tmp_path))
    with pytest.raises(ConfigError, match="the same number of processes on each host"):
        BACKENDS["torchrun"].check(request_for(Hosts({"a": 1, "b": 2}), tmp_path))
    with pytest.raises(ConfigError, match="does not start and wait for all from here"):
        start(request_for(TWO, tmp_path), backend="torchrun")


# Words and variables on their way through a shell.


def pdsh_line(request: LaunchRequest) -> str:
    """What DeepSpeed gives to pdsh for the first host, as pdsh hands it to the shell there."""
    from deepspeed.launcher.multinode_runner import PDSHRunner
    from deepspeed.launcher.runner import encode_world_info

    plan = DeepSpeedBackend().plan(request)
    words = list(plan.commands[0].words)
    arguments = words[words.index("--module") + 2 :]
    runner = PDSHRunner(
        argparse.Namespace(
            user_script=request.module,
            user_args=arguments,
            ssh_port=None,
            launcher_args="",
            master_addr="127.0.0.1",
            master_port=request.port,
            venv_script=None,
            no_python=False,
            module=True,
            no_local_rank=True,
            save_pid=False,
            enable_each_rank_log=None,
        ),
        encode_world_info({"node1": [0]}),
    )
    for line in plan.files[1].text.splitlines():
        runner.add_export(*line.split("=", maxsplit=1))
    command, _, _ = runner.get_cmd({}, {"node1": [0]})
    line = " ".join(command[command.index("-w") + 2 :])
    return re.sub("%(.)", lambda match: {"n": "0", "%": "%"}.get(match[1], "REPLACED"), line)


def test_words_and_variables_pass_a_shell_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real shell and the real launcher of a host; by pdsh and ssh in
    test_across_hosts."""
    variables = {f"ADDP_{index}": word for index, word in enumerate(HOSTILE) if "\n" not in word}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen = tmp_path / "seen"
    request = LaunchRequest(
        "tests.cluster.launch.record_words",
        [str(seen), *HOSTILE],
        *(Hosts({"node1": 1}), 29500, tmp_path),
        carried=[*variables],
    )
    done = subprocess.run(
        ["/bin/sh", "-c", pdsh_line(request)],
        check=False,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((seen / "rank-0.json").read_text())
    assert record["words"] == HOSTILE
    got = {name: record["environment"].get(name) for name in variables}
    assert got == {name: value.strip() for name, value in variables.items()}
    assert not Path("/tmp/addp-injected").exists()


def test_places_that_a_shell_would_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed hands the directory to the other hosts' shell as it stands."""
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b", "a;b", "$(id)", "a%n"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(ConfigError, match=r"this directory, .* cannot pass on"):
            BACKENDS["deepspeed"].check(request_for(TWO, tmp_path))


# Secrets.


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("AWS_ACCESS_KEY_ID", "x", True),
        ("AWS_SESSION_TOKEN", "x", True),
        ("WANDB_API_KEY", "x", True),
        ("MY_PASSWORD", "x", True),
        ("HTTPS_PROXY", "http://me:word@proxy:80", True),
        ("https_proxy", "me:word@proxy:80", True),
        ("HTTPS_PROXY", "http://proxy:80", False),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token", False),
        ("AWS_PROFILE", "x", False),
        ("NO_PROXY", "http://a:80/@b", False),
        ("NCCL_SOCKET_IFNAME", "ib0", False),
    ],
)
def test_what_is_a_secret(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) == secret
    travels, stays = split_secrets([name, "UNSET"], {name: value})
    assert (travels, stays) == (([], [name]) if secret else ([name], []))


def test_secrets_do_not_go_through_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    harmless = "AWS_PROFILE=x\nAWS_WEB_IDENTITY_TOKEN_FILE=/run/token\nNO_PROXY=http://a:80/@b\n"
    secret = "AWS_SECRET_ACCESS_KEY=very-secret\nHTTPS_PROXY=http://me:very-secret@proxy\n"
    (tmp_path / ".deepspeed_env").write_text(harmless + secret)
    with pytest.raises(
        ConfigError, match="holds AWS_SECRET_ACCESS_KEY, HTTPS_PROXY, which"
    ) as caught:
        BACKENDS["deepspeed"].check(request_for(TWO, tmp_path))
    assert "very-secret" not in str(caught.value)
    (tmp_path / ".deepspeed_env").write_text(harmless)
    monkeypatch.setenv("MY_TOKEN", "very-secret")
    request = LaunchRequest("m", [], TWO, 29500, tmp_path, carried=["MY_TOKEN"])
    with pytest.raises(ConfigError, match="MY_TOKEN must not leave this host"):
        BACKENDS["deepspeed"].check(request)
    monkeypatch.setenv("ADDP_X", "two\nlines")
    request = LaunchRequest("m", [], TWO, 29500, tmp_path, carried=["ADDP_X"])
    with pytest.raises(ConfigError, match="ADDP_X has several lines"):
        BACKENDS["deepspeed"].check(request)


def test_a_users_own_variables_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_PROFILE", "shell")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    (tmp_path / ".deepspeed_env").write_text("AWS_PROFILE=file\n")
    carried = ["AWS_PROFILE", "PYTHONPATH"]
    plan = BACKENDS["deepspeed"].plan(LaunchRequest("m", [], TWO, 29500, tmp_path, carried=carried))
    assert plan.files[1].text.splitlines() == [
        "AWS_PROFILE=shell",
        f"PYTHONPATH={tmp_path}:/ours",
        "AWS_PROFILE=file",
    ]


def test_files_are_their_owners_and_private_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "launch"
    files = [PlannedFile(folder / "a", "text\n"), PlannedFile(folder / "b", "X=1\n", private=True)]
    folder.mkdir()
    (folder / "a").write_text("of an earlier launch")
    (folder / "a").chmod(0o644)
    with written(files):
        for file in files:
            assert file.path.read_text() == file.text
            assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert len(list(folder.iterdir())) == 2
    assert [path.name for path in folder.iterdir()] == ["a"]
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        written([PlannedFile(Path("/proc/x/y"), "")]),
    ):
        pass
    (folder / "b").mkdir()
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        written([replace(files[1], private=False)]),
    ):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]  # nothing is left of it


@pytest.mark.parametrize("backend", ["torchrun", "deepspeed"])
def test_launchers_on_this_machine_pass_words_on_as_they_are(backend: str, tmp_path: Path) -> None:
    """Also the options of supervisors, of which some begin as a launcher's own."""
    rules = Rules(
        nodes=2, ranks=3, min_nodes=1, spares=1, worlds=(3, 6), max_restarts=5, rejoin=9, grow=1
    )
    limits = Limits(**dict.fromkeys(Limits.model_fields, 77))
    supervision = Supervision(
        tmp_path / "run", HOSTILE, rules, limits, port=20_000, grace=30, devices="0,1,2"
    )
    words = supervision.arguments()
    assert len([word for word in words if word.startswith("--limit-")]) == len(Limits.model_fields)
    module = "tests.cluster.launch.record_words"
    request = LaunchRequest(module, [str(tmp_path), *words], this_machine(1))
    assert start(request, backend=backend, stdout=2).code == 0
    assert json.loads((tmp_path / "rank-0.json").read_text())["words"] == words


def test_supervisors_understand_the_words_of_a_launch(tmp_path: Path) -> None:
    rules = Rules(nodes=2, ranks=3, min_nodes=1, spares=1, worlds=(3, 6), max_restarts=5, grow=0.5)
    limits = Limits(limit_step=44.5)
    supervision = Supervision(
        tmp_path / "a run", HOSTILE, rules, limits, port=20_000, grace=30, devices="0,1,2"
    )
    place = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "node1"}
    understood = parse(supervision.arguments(), place)
    assert (understood.rules, understood.limits) == (rules, limits)
    assert understood.run.path == tmp_path / "a run"
    node = understood.node
    assert list(node.command[-len(HOSTILE) :]) == HOSTILE
    assert (node.index, node.address, node.port) == (1, "node1", 20_000)
    assert node.devices == ("0", "1", "2") and node.timing.grace == 30
    assert node.timing.lost == LOST_SECONDS and node.timing.beat == BEAT_SECONDS
