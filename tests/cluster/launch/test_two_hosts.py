"""The hosts that other tests run on do what hosts do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.launch.two_hosts import several_hosts
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.long


def test_hosts_are_apart_and_meet_over_ssh(tmp_path: Path) -> None:
    with several_hosts(tmp_path / "hosts", 3) as (one, two, three):
        assert one.run(["hostname"]).stdout == "node1\n"
        ssh = ["ssh", "-F", f"{tmp_path}/hosts/ssh_config", "-o", "ConnectTimeout=2"]
        assert one.run([*ssh, "node2", "hostname"]).stdout == "node2\n"
        pdsh = one.run(["pdsh", "-R", "ssh", "-w", "node2,node3", "hostname"])
        assert sorted(pdsh.stdout.splitlines()) == ["node2: node2", "node3: node3"]

        sleeping = two.start(["sleep", "1000"], tmp_path / "log")
        until(lambda: len(two.processes("sleep 1000")) == 1, pause=0.1)
        assert not one.processes("sleep 1000")
        two.kill()
        assert sleeping.wait(PATIENCE) and not two.is_up
        assert one.run([*ssh, "node2", "true"]).returncode == 255
        two.boot()
        assert one.run([*ssh, "node2", "hostname"]).stdout == "node2\n"

        three.cut_link()
        assert one.run([*ssh, "node3", "true"]).returncode == 255
        three.restore_link()
        assert one.run([*ssh, "node3", "true"]).returncode == 0
    assert not one.is_up
