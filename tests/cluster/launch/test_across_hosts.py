"""Launches across hosts: words and variables arrive as they are, and trainings as on one host."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.launch.two_hosts import Host, several_hosts

pytestmark = pytest.mark.long

HOSTILE = [
    "plain=1",
    "with space=a b",
    "quotes='single' \"double\"",
    "quotes='single'\"double\"",
    "dollar=$HOME `id` $(id)",
    "dollar=$HOME`id`$(id)",
    "back=\\ \\\\ \\n",
    "back=\\\\x\\$y",
    "semi=; touch /tmp/addp-injected #",
    "semi;touch${IFS}/tmp/addp-injected",
    "a&b|c>d<e*?[x]{1,2}~!^()",
    "a & b | c > d < e * ? [x] {1,2} ~ ! ^ ()",
    "line\nbreak",
    "line\nbreak with space",
    "percent=%n%h%u%%",
    "percent %n %h %u %%",
    "umlaut=ä€",
    "",
    "tab\there",
]
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
