"""A hostfile that is not as it should be starts nothing anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.launch.hosts import Hosts, choose_hosts, read_hostfile, this_machine, unnamed
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
        ("node1 slots=4\n\nnode1 slots=4", "line 3: node1 is listed twice"),
        ("# nothing\n", "names no host"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_line(
    text: str | None, words: str, tmp_path: Path
) -> None:
    """Before any launcher sees it."""
    hostfile = tmp_path / "hosts"
    if text is not None:
        hostfile.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_hostfile(hostfile)
    assert words in str(caught.value) and str(hostfile) in str(caught.value)


def test_processes_of_a_hostfile(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# ours\nnode-1.example slots=8\n  node_2 slots=4  \n")
    assert read_hostfile(hostfile) == {"node-1.example": 8, "node_2": 4}
    assert choose_hosts(hostfile, None, None).processes == 12
    hosts = choose_hosts(hostfile, 4, "10.0.0.1")
    assert hosts.processes == 8 and hosts.meeting_address == "10.0.0.1"
    with pytest.raises(ConfigError, match="node_2 has 4"):
        choose_hosts(hostfile, 5, None)
    with pytest.raises(ConfigError, match="is no address"):
        choose_hosts(hostfile, None, "-x")


def test_the_address_belongs_to_the_first_host() -> None:
    hosts = Hosts({"a": 8, "b": 8, "c": 4}, "10.0.0.1")
    assert hosts.among(["c", "a"]) == Hosts({"a": 8, "c": 4}, "10.0.0.1")
    assert hosts.among(["c", "b"]) == Hosts({"b": 8, "c": 4})
    assert hosts.among(["c", "b"]).meeting_address == "b"
    assert hosts.with_processes(1).processes == 3
    assert this_machine(2).is_this_machine and this_machine(2).meeting_address == "127.0.0.1"
    assert not unnamed(2, 1).is_this_machine and unnamed(3, 2).processes == 6


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
