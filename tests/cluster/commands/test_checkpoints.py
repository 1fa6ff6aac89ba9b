"""`addp checkpoints` and `addp plan`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cluster.calling import addp
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish


@pytest.fixture(scope="module")
def run(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    upload = f"checkpoint.upload={folder / 'store'}"
    finish(folder / "run", *MAGE, f"data.tokens={tokens}", "ema_decay=0.9", "zero_stage=3", upload)
    return folder / "run"


def test_list_verify_export_prune(run: Path, tmp_path: Path) -> None:
    rows = json.loads(addp("checkpoints", run, "list", "--json").stdout)
    assert (
        [row["step"] for row in rows] == [12, 8, 4]
        and rows[0]["zero_stage"] == 3
        and rows[0]["ranks"] == 2
    )
    assert addp("checkpoints", run).stdout.count("unchecked") == 3
    done = addp("checkpoints", run, "verify")
    assert done.code == 0 and done.stdout.count("valid") == 3

    done = addp("export", run, tmp_path / "out")
    assert (
        done.code == 0 and json.loads((tmp_path / "out" / "config.json").read_text())["step"] == 12
    )
    exported, trained = (
        load_file(tmp_path / "out" / "network.safetensors"),
        load_file(run / "network.safetensors"),
    )
    assert all((exported[name] == value).all() for name, value in trained.items())
    assert "exists; give a name that is free" in addp("export", run, tmp_path / "out").stderr
    done = addp("export", run, tmp_path / "x", "--step", 5)
    assert done.code == 78 and "it has 12, 8, 4" in done.stderr

    file = run / "checkpoints" / "step-00000012" / "rank-00000.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    done = addp("checkpoints", run, "verify")
    assert done.code == 1 and "rank-00000.safetensors is damaged" in done.stdout
    would = json.loads(addp("checkpoints", run, "prune", "--keep", 1, "--dry-run", "--json").stdout)
    assert [row["step"] for row in would] == [4] and would[0]["bytes"] > 1000
    done = addp("checkpoints", run, "prune", "--keep", 1, "--dry-run")
    assert done.code == 0 and "would remove 1 of 3 checkpoints" in done.stdout
    assert (
        "nothing was removed" in done.stdout
        and len(list((run / "checkpoints").glob("step-*"))) == 3
    )
    done = addp("checkpoints", run, "prune", "--keep", 1)
    assert "removed 1 checkpoints: steps 4" in done.stdout  # 8 is the newest valid one
    file.write_bytes(content)


def test_on_a_store(run: Path, tmp_path: Path) -> None:
    """A folder stands for a bucket here; tests/trainer/checkpointing/test_upload.py has the
    bucket."""
    from trainer.checkpointing import admin
    from trainer.checkpointing.catalog import open_catalog

    store = open_catalog(str(run.parent / "store"))
    assert admin.verified(store, None)[0]["state"] == "valid"
    assert [row["step"] for row in admin.prunable(store, 1, 8)] == [
        4
    ]  # 12 is the newest, 8 is kept for good
    from trainer.export import export, open_network

    export(open_network(store.name, 12, "ema"), "native", tmp_path / "out", "drop", None)
    exported, ema = (
        load_file(tmp_path / "out" / "network.safetensors"),
        load_file(run / "network-ema.safetensors"),
    )
    assert all((exported[name] == value).all() for name, value in ema.items())


def test_mistakes(tmp_path: Path) -> None:
    assert "is no run folder" in addp("checkpoints", tmp_path, "list").stderr
    assert addp("plan", "--gpus", "7").code == 78
    assert addp("checkpoints", tmp_path, "list", "--dry-run").code == 2
