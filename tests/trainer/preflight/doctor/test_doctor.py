"""The doctor of two real nodes on one machine, and of one alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.launching import MAGE, SMALL
from tests.trainer.preflight.finding_states import state, text
from tests.trainer.worlds import Ranks
from trainer.preflight.doctor import __main__ as doctor
from trainer.preflight.doctor import examination, looking
from trainer.preflight.doctor.reporting import from_lines
from trainer.preflight.finding import Finding, finding_of
from trainer.resilience.leaving import leave


def found(answer: dict[str, Any], node: int | None = None) -> list[Finding]:
    """The findings of a node, or of all of them together."""
    records = answer["checks"] if node is None else answer["nodes"][node]["checks"]
    return [finding_of(one) for one in records]


def alone(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = doctor.main([*words, "--json", "--no-device"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_machine(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "run"
    places = [f"run={run}", f"data.tokens={tokens}", f"checkpoint.upload={tmp_path}/up"]
    _, answer = alone(capsys, *MAGE, *SMALL, *places)
    own = found(answer, 0)
    for name in ("configuration", "time-outs", "run folder", "data and weights", "saving"):
        assert state(own, name) == "ok", text(own, "FAILED")
    assert state(found(answer), "checkpoint.upload") == "ok"
    assert state(found(answer), "versions") == "ok"
    assert not list(tmp_path.iterdir())


def test_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = alone(capsys)
    assert code == (0 if answer["ready"] else 78)
    names = {one.name for one in found(answer, 0)}
    assert "memory" in names and not names & {"configuration", "run folder", "saving"}
    assert doctor.main(["--no-device"]) == code
    assert "this machine is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch.mikro=2", "the nearest known one is batch.micro"),
        ("collective_timeout=60", "is not above health.hang = 1800"),
    ],
)
def test_a_configuration_that_cannot_be(
    override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time-outs in the wrong order are one kind of it."""
    code, answer = alone(capsys, override)
    assert code == 78 and words in text(found(answer, 0), "FAILED")


def test_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*MAGE, "run=/proc/run", "health.hang=0", f"data.tokens={tmp_path}/none"]
    code, answer = alone(capsys, *words)
    own = found(answer, 0)
    assert code == 78 and state(own, "time-outs") == "warning"
    assert state(own, "run folder") == state(own, "data and weights") == "FAILED"


def test_a_device_that_computes_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Finding("device", "FAILED", "cuda:3: products differ", "replace it")
    monkeypatch.setattr(looking, "check_devices", lambda rates: iter([wrong]))
    assert doctor.main(["--json"]) == 78
    assert wrong in found(json.loads(capsys.readouterr().out), 0)


@pytest.mark.parametrize("words", ["5", "9-8", "0-9", "1-70000", "a-b"])
def test_ports_that_are_no_range(words: str) -> None:
    with pytest.raises(doctor.ConfigError, match="no range"):
        doctor.main(["--ports", words])


def two(tmp_path: Path, main: Any, *words: str) -> tuple[list[int | None], dict[str, Any], str]:
    """Two nodes; the exit codes, the answer, and all that was said."""
    codes, output = Ranks(main, [*words, "--lines", "--no-device"], 2, tmp_path / "log").wait()
    answer, _ = from_lines(output)
    assert answer is not None, output
    return codes, answer, output


def test_two_nodes_that_are_alike(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    codes, answer, _ = two(tmp_path, doctor.main, *MAGE, *SMALL, f"run={run}")
    together = found(answer)
    assert codes == [0 if answer["ready"] else 78] * 2
    for name in ("versions", "reachability", "clocks", "links", "collectives"):
        assert state(together, name) == "ok", text(together, "FAILED")
    assert "4 calls between nodes" in text(together, "ok")  # two ports, each way
    (link,) = answer["links"]
    assert link["rate"] > 0 and link["seconds"] > 0
    assert state(found(answer, 1), "shared folder") == "ok"
    assert all(state(found(answer, node), "saving") == "ok" for node in (0, 1))
    assert not run.parent.exists()


def differing(words: list[str]) -> int:
    """Node 1 has another numpy, another configuration, another run folder, and lacks variables."""
    if os.environ["RANK"] == "1":
        folder = Path(os.environ["OTHERS"])
        sys.path.insert(0, str(folder))
        assert importlib.metadata.version("numpy") == "9.9.9"
        words = [*words, "batch.micro=4", f"run={folder}/run"]
        del os.environ["NCCL_IB_DISABLE"]
    return doctor.main(words)


def test_two_nodes_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "others" / "numpy-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    monkeypatch.setenv("OTHERS", str(info.parent))
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    codes, answer, output = two(
        tmp_path, differing, *MAGE, *SMALL, f"run={tmp_path}/run", "--sight=1"
    )
    together = found(answer)
    assert codes == [78, 78], output
    assert "numpy differs" in text(together, "FAILED") and "9.9.9 on" in text(together, "FAILED")
    assert "configuration differs" in text(together, "FAILED")
    assert "NCCL_IB_DISABLE is set on other ranks" in text(together, "warning")
    assert "is not the run folder that node 0 sees" in text(found(answer, 1), "FAILED")
    assert not (tmp_path / "run").exists()


def deserting(words: list[str]) -> int:
    """Node 1 comes, and ends before it has looked."""
    if os.environ["RANK"] == "1":
        examination.look = lambda *_: os._exit(3)  # type: ignore[assignment]
    else:
        looking.OWN_SECONDS = -238.0  # waits for answers for 2 s
    return doctor.main(words)


def test_a_node_that_dies_meanwhile(tmp_path: Path) -> None:
    codes, answer, _ = two(tmp_path, deserting)
    assert codes == [78, 3]
    assert "node 1 came, and did not answer" in text(found(answer), "FAILED")
    assert found(answer, 0) and not found(answer, 1)


def staying_away(words: list[str]) -> int:
    return 3 if os.environ["RANK"] == "1" else doctor.main([*words, "--meeting", "0.5"])


def test_a_node_that_does_not_come(tmp_path: Path) -> None:
    codes, answer, _ = two(tmp_path, staying_away)
    assert codes == [78, 3]
    assert "node 1 has not come within 0.5 s" in text(found(answer), "FAILED")


def lonely(words: list[str]) -> int:
    leave(lambda: 3 if os.environ["RANK"] == "0" else doctor.main([*words, "--meeting", "0"]))


def test_no_node_0(tmp_path: Path) -> None:
    """The others say why they do not meet it, and what is wrong with themselves."""
    words = ["run=/proc/run", "--no-device"]
    codes, output = Ranks(lonely, words, 2, tmp_path / "log").wait()
    assert codes == [3, 78], output
    assert "does not meet node 0 at 127.0.0.1:" in output and "Connection refused" in output
    assert "FAILED run folder: " in output
