"""The command that a supervisor asks before it starts ranks on a node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.preflight.finding_states import state
from trainer.preflight.finding import Finding, finding_of
from trainer.preflight.node import __main__ as node
from trainer.preflight.node.fitness import report

COMMAND = [sys.executable, "-m", "trainer.preflight.node", "--json"]


def ask(*words: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def test_this_machine(tmp_path: Path) -> None:
    code, answer = ask(str(tmp_path / "run"))
    findings = [finding_of(one) for one in answer["checks"]]
    assert code == (0 if answer["fit"] else 78) and answer["host"]
    assert state(findings, "run folder") == "ok" and not list(tmp_path.iterdir())
    names = {one.name for one in findings}
    assert names >= {"memory", "container limits", "GPUs", "shared memory", "processor", "clock"}
    assert names >= {"limits", "network", "leftovers"}


def test_it_needs_no_torch() -> None:
    """It is asked while ranks wait, and torch takes seconds to import."""
    code = (
        "import sys, trainer.preflight.node.__main__, trainer.preflight.node.device\n"
        "print({'torch', 'numpy', 'boto3', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_node_that_is_not_fit(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    code, answer = ask(str(tmp_path / "run"))
    assert code == 78 and not answer["fit"] and "is a file" in "\n".join(answer["reasons"])


def _mounts(script: str, folder: Path) -> dict[str, Any]:
    """Run the command where `script` has mounted what it likes, which nobody else sees."""
    command = f'{script}\nexec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", command, "sh"]
    done = subprocess.run(
        [*words, *COMMAND, str(folder)], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_full_disk_leaves_the_node_fit(tmp_path: Path) -> None:
    """A real one: without this node, the run would fare no better."""
    answer = _mounts(
        f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}'\nhead -c 64k /dev/zero > '{tmp_path}/full'",
        tmp_path,
    )
    findings = [finding_of(one) for one in answer["checks"]]
    assert state(findings, "run folder") == "FAILED" and "is full" in findings[0].found
    assert findings[0].shared and "run folder" not in "\n".join(answer["reasons"])


def test_a_disk_and_a_shared_memory_that_are_nearly_full(tmp_path: Path) -> None:
    answer = _mounts(
        f"mount -t tmpfs -o size=4m,nr_inodes=50 tmpfs '{tmp_path}'\n"
        "mount -t tmpfs -o size=1m tmpfs /dev/shm",
        tmp_path,
    )
    findings = [finding_of(one) for one in answer["checks"]]
    assert state(findings, "run folder") == "ok" and state(findings, "disk space") == "FAILED"
    assert any("inodes" in one.found for one in findings)
    assert state(findings, "shared memory") != "ok"


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    answer = _mounts(f"mount -t tmpfs -o ro tmpfs '{tmp_path}'", tmp_path)
    assert not answer["fit"] and "Read-only file system" in "\n".join(answer["reasons"])


def test_the_words_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Finding("memory", "FAILED", "none left", "buy some")
    monkeypatch.setattr(node, "check_node", lambda run: [broken])
    assert node.main([]) == 78
    assert capsys.readouterr().out.splitlines()[-1] == "not fit"
    assert report([broken], 0.1)["reasons"] == ["memory: none left; buy some"]
    assert report([broken._replace(shared=True)], 0.1)["fit"]
