"""A hostfile that is not as it should be starts nothing anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import cli
from cluster.launch.backend import LaunchRequest
from cluster.launch.backends import BACKENDS, usual_backend
from cluster.launch.backends.hostfile import HostfileBackend
from cluster.launch.hosts import Hosts, choose_hosts, read_hostfile, this_machine
from model.errors import ConfigError
from tests.trainer.launching import MAGE
from tests.trainer.worlds import run_world


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "node1 slots=4\n-oProxyCommand=touch${IFS}/tmp/x slots=1\n",
            "line 2: '-oProxyCommand=touch${IFS}/tmp/x' is no",
        ),
        ("root@node1 slots=1", "line 1: 'root@node1' is no host name"),
        ("node1;reboot slots=1", "is no host name"),
        ("node[1-4] slots=1", "is no host name"),
        ("node1 slots=0", "slots=0 is no number"),
        ("node1 slots=4x", "slots=4x is no number"),
        ("node1", "'node1' is not of the form HOST slots=N"),
        ("node1 slots=4 max=8", "is not of the form"),
        ("node1 slots=4\n\nnode1 slots=4", "line 3: node1 stands there twice"),
        ("# nothing\n", "names no host"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_line(
    text: str | None, words: str, tmp_path: Path
) -> None:
    """By `addp train`, before any launcher sees it."""
    hostfile, config = tmp_path / "hosts", tmp_path / "run.yaml"
    config.write_text("{}")
    if text is not None:
        hostfile.write_text(text)
    result = CliRunner().invoke(
        cli.app, ["train", str(config), f"run={tmp_path}", "--hostfile", str(hostfile)]
    )
    assert isinstance(result.exception, ConfigError) and words in str(result.exception)
    assert str(hostfile) in str(result.exception)


def test_ranks_of_a_hostfile(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# ours\nnode-1.example slots=8\n  node_2 slots=4  \n")
    assert read_hostfile(hostfile) == {"node-1.example": 8, "node_2": 4}
    assert choose_hosts(hostfile, None, None).ranks == 12
    hosts = choose_hosts(hostfile, 4, "10.0.0.1")
    arguments = ["data.mixture={a:1,b:2}", "data.tokens=/with space", "run=/a $b `c`\\d"]
    request = LaunchRequest("trainer.pretrain", arguments, hosts, 29500)
    assert usual_backend(hosts) == "hostfile"
    command = list(HostfileBackend().command(request).words)
    assert command[command.index("--master_port") + 1] == "29500"
    assert command[command.index("--master_addr") + 1] == "10.0.0.1"
    assert (
        hosts.ranks == 8
        and command[command.index("--num_gpus") + 1] == "4"
        and "--force_multi" in command
    )
    assert command[-3:-1] == [
        "'data.mixture={a:1,b:2}'",
        "data.tokens=/with space",
    ]  # for the shell on the other side
    assert command[-1] == "run=/a \\$b \\`c\\`\\\\d"  # the launcher puts double quotes round it
    with pytest.raises(ConfigError, match="node_2 has 4"):
        choose_hosts(hostfile, 5, None)
    with pytest.raises(ConfigError, match="is no address"):
        choose_hosts(hostfile, None, "-x")
    here = Hosts({"localhost": 2}, None, hostfile)
    assert usual_backend(here) == usual_backend(this_machine(2)) == "local"
    assert str(hostfile) not in BACKENDS["local"].command(LaunchRequest("m", [], here)).words


def test_a_backend_refuses_hosts_that_are_not_for_it(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    several = LaunchRequest("m", [], choose_hosts(tmp_path / "hosts", None, None))
    with pytest.raises(ConfigError, match="on this machine only, not on node1, node2"):
        BACKENDS["local"].check(several)
    with pytest.raises(ConfigError, match="needs a hostfile"):
        BACKENDS["hostfile"].check(LaunchRequest("m", [], this_machine(2)))


def test_another_number_of_ranks_than_expected_is_refused(tokens: Path, tmp_path: Path) -> None:
    """As where `deepspeed --hostfile` does not find the file, and starts on one machine."""
    codes, output = run_world(
        tmp_path / "run", *MAGE, f"data.tokens={tokens}", "expect_ranks=16", processes=1
    )
    assert (
        codes == [78]
        and "expect_ranks = 16, but the launcher starts 1" in output
        and "go on" not in output
    )
    assert not (tmp_path / "run").exists()


def test_a_hostfile_with_other_ranks_than_the_run_file_expects_starts_nothing(
    tmp_path: Path,
) -> None:
    hostfile, config = tmp_path / "hosts", tmp_path / "run.yaml"
    config.write_text("expect_ranks: 16\n")
    hostfile.write_text("node1 slots=8\n")
    result = CliRunner().invoke(
        cli.app, ["train", str(config), f"run={tmp_path}", "--hostfile", str(hostfile)]
    )
    assert isinstance(result.exception, ConfigError), result.output
    assert "expect_ranks = 16, but the launcher starts 8" in str(result.exception)


def test_secrets_do_not_go_through_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    harmless = "AWS_PROFILE=x\nAWS_WEB_IDENTITY_TOKEN_FILE=/run/token\nNCCL_SOCKET_IFNAME=ib0\nNO_PROXY=http://a:80/@b\n"
    secret = "AWS_SECRET_ACCESS_KEY=very-secret\nSTORAGE_KEY=very-secret\nHTTPS_PROXY=http://me:very-secret@proxy\n"
    (tmp_path / ".deepspeed_env").write_text(harmless + secret)
    hosts = choose_hosts(tmp_path / "hosts", None, None)
    with pytest.raises(
        ConfigError, match="holds AWS_SECRET_ACCESS_KEY, STORAGE_KEY, HTTPS_PROXY, "
    ) as caught:
        HostfileBackend().check(LaunchRequest("m", [], hosts))
    assert "very-secret" not in str(caught.value)
