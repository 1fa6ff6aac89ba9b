"""`addp launch` shows what it would do, and refuses what cannot work, before it does anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.calling import addp

BATCH = ("batch.global_batch=64", "batch.micro=2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run file and a hostfile of three hosts with four slots."""
    monkeypatch.chdir(tmp_path)
    for name in ("DS_ENV_FILE", "PDSH_SSH_ARGS_APPEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "run.yaml").write_text("seed: 1\nrun: runs/a\n")
    (tmp_path / "hosts").write_text("node1 slots=4\nnode2 slots=4\nnode3 slots=4\n")
    return tmp_path


def plan(*options: str) -> dict[str, Any]:
    done = addp("launch", "run.yaml", *BATCH, "--dry-run", "--json", *options)
    assert done.code == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(*options: str, code: int = 78) -> str:
    done = addp("launch", "run.yaml", *BATCH, *options)
    assert done.code == code, done.stdout + done.stderr
    return " ".join(done.stderr.replace("│", " ").split())


def test_a_plan_on_this_machine(place: Path) -> None:
    said = plan("--processes", "4", "--min-nodes", "1", "--port", "21000", "seed=5")
    assert (said["backend"], said["ranks"], said["hosts"]) == ("local", 4, ["localhost"])
    assert said["batch"] == {"size": 64, "micro": 2, "accumulation": 8}
    assert said["worlds"] == [1, 2, 4] and said["variables"] == {"carried": None, "kept": []}
    assert said["ports"] == {"coordinator": 21000, "launcher": 21001, "ranks": [30000, 32699]}
    (command,) = said["commands"]
    words = command["words"]
    split = words.index("--")
    assert words[split + 1 :] == ["--config", f"{place}/run.yaml", *BATCH, "seed=5"]
    assert words[:split][3:] == [
        *("cluster.supervise", "--run", f"{place}/runs/a", "--nodes", "1", "--ranks", "4"),
        *("--port", "21000", "--grace", "60", "--worlds", "1,2,4", "--min-nodes", "1"),
    ]
    assert [t["name"] for t in said["timeouts"]] == [
        *("beat", "lost node", "silence in a step", "health.hang", "collective_timeout"),
        *("save", "grace"),
    ]
    assert not (place / "runs").exists()  # nothing was touched


def test_a_plan_for_a_hostfile_with_a_spare(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "very-secret", "HTTPS_PROXY": "http://u:very-secret@p"}
    for name, value in {**secrets, "AWS_PROFILE": "very-own", "GLOO_SOCKET_IFNAME": "ib7"}.items():
        monkeypatch.setenv(name, value)
    for output in ((), ("--json",)):
        done = addp(
            *("launch", "run.yaml", *BATCH, "--dry-run", *output, "--hostfile", "hosts"),
            *("--nodes", "2", "--min-nodes", "1"),
        )
        assert done.code == 0, done.stderr
        for value in ("very-secret", "very-own", "ib7"):  # names only
            assert value not in done.stdout + done.stderr
        assert "AWS_PROFILE" in done.stdout and "AWS_SECRET_ACCESS_KEY" in done.stdout
    said = json.loads(done.stdout)
    assert (said["nodes"], said["spares"], said["min_nodes"], said["ranks"]) == (2, 1, 1, 8)
    assert {"AWS_PROFILE", "GLOO_SOCKET_IFNAME"} <= set(said["variables"]["carried"])
    assert said["variables"]["kept"] == ["AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"]
    words = said["commands"][0]["words"]
    assert words[words.index("--rejoin") + 1] == "5"  # this command starts them again itself
    files = {Path(file["path"]).name: file["text"] for file in said["files"]}
    assert files["environment"] is None
    assert files["hostfile"] == "node1 slots=1\nnode2 slots=1\nnode3 slots=1\n"


def test_a_plan_for_people(place: Path) -> None:
    options = ("--hostfile", "hosts", "--nodes", "2", "--min-nodes", "1")
    done = addp("launch", "run.yaml", *BATCH, "--dry-run", *options)
    assert done.code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "hosts node1, node2, node3" in lines
    assert "nodes 2 of 4 ranks, together 8; 1 spare; at least 1" in lines
    assert "batch 64 images = 8 ranks x 4 x 2" in lines
    assert "possible ranks 1, 2, 4, 8" in lines
    assert any(line.startswith("silence in a step 30 or 10 x p99") for line in lines)
    assert any("deepspeed.launcher.runner" in line and "seed" not in line for line in lines)
    assert f"file {place}/runs/a/launch/hostfile" in lines and "node1 slots=1" in lines


def test_a_command_for_each_host_says_what_to_type_there(place: Path) -> None:
    done = addp(
        *("launch", "run.yaml", *BATCH, "--hostfile", "hosts", "--nodes", "2", "--no-ssh"),
        *("--dry-run", "--node-rank", "1"),
    )
    assert done.code == 0, done.stderr
    for number in range(3):
        assert f"--nodes 2 --no-ssh --node-rank {number}\n" in done.stdout
    said = refused("--hostfile", "hosts", "--nodes", "2", "--no-ssh")
    assert "run the command above on each of them, with --node-rank 0 to 2" in said


@pytest.mark.parametrize(
    ("options", "start", "words"),
    [
        (("--backend", "slurm"), "sbatch", "#SBATCH --nodes=2"),
        (
            ("--backend", "kubernetes", "--image", "x", "--claim", "runs=/mnt", "run=/mnt/a"),
            "kubectl apply -f",
            "completions: 2",
        ),
    ],
)
def test_what_a_scheduler_gets_is_written_to_a_file(
    options: tuple[str, ...], start: str, words: str, place: Path
) -> None:
    done = addp(
        *("launch", "run.yaml", *BATCH, "--nodes", "2", "--write", "a file", "--json", *options)
    )
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["nodes"] == 2
    assert f"nothing is started; `{start} 'a file'` starts it" in done.stderr
    assert words in (place / "a file").read_text()
    assert sorted(path.name for path in place.iterdir()) == ["a file", "hosts", "run.yaml"]
    assert "there is no script" in refused("--write", "b", code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--limit-step", "5"), "set --limit-step above 10"),
        (("health.hang=20", "collective_timeout=2400"), "set health.hang above 30"),
        (("--processes", "3"), "cannot be split over 3 ranks"),
        (("--processes", "2", "expect_ranks=4"), "expect_ranks = 4, but the launcher starts 2"),
        (("--min-nodes", "2"), "--min-nodes 2 is more than the 1 nodes"),
        (("--nodes", "2"), "on this machine only, not on node-0, node-1"),
        (("--nodes", "2", "--backend", "deepspeed"), "2 nodes need a hostfile"),
        (("--nodes", "2", "--backend", "torchrun"), "have to know where they meet"),
        (("--hostfile", "hosts", "--nodes", "4"), "lists 3 hosts, which are too few for 4 nodes"),
        (("--hostfile", "hosts", "--backend", "slurm"), "slurm chooses the hosts by itself"),
        (("--hostfile", "hosts", "--spares", "3"), "too few for 1 nodes and 3 spares"),
        (("--hostfile", "hosts", "--nodes", "2", "--processes", "5"), "node1 has 4"),
        (("checkpoint.upload=s3://key:very-secret@bucket/x",), "holds a password"),
    ],
)
def test_what_cannot_work_is_refused(options: tuple[str, ...], words: str, place: Path) -> None:
    said = refused(*options)
    assert words in said and "very-secret" not in said
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "ray"), "there are local, deepspeed, torchrun"),
        (("--time", "24:00:00"), "an option of --backend slurm, and the backend is local"),
        (("--backend", "slurm", "--image", "x"), "an option of --backend kubernetes"),
        (("--no-ssh",), "an option of --backend deepspeed"),
        (("--node-rank", "0"), "one command starts all hosts here"),
        (("--devices", "0;1"), "is not a list such as 0,1"),
        (("--processes", "2", "--devices", "0"), "fewer than the 2 ranks"),
        (("--hostfile", "hosts", "--nodes", "2", "--no-ssh", "--node-rank", "3"), "from 0 to 2"),
        (("--launcher", "ssh"), "pdsh"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], words: str, place: Path) -> None:
    assert words in refused(*options, code=2)


def test_hosts_with_different_slots_need_a_number(place: Path) -> None:
    (place / "hosts").write_text("node1 slots=4\nnode2 slots=8\n")
    assert "give it with --processes" in refused("--hostfile", "hosts")
    assert plan("--hostfile", "hosts", "--processes", "4")["ranks"] == 8


def test_several_tasks_of_slurm_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "addp launch starts ranks by itself" in refused()
