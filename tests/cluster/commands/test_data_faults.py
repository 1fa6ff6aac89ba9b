"""One error for one fault of a data set, whichever command reads it: a run's start, its check and
plan, an evaluation, and all that looks at data."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shards.manifest import MANIFEST
from model.errors import DataError
from tests.cluster.calling import addp
from tests.hostile.tiny_job import copied, edit, rewrite_shard
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.evaluation.contents import tokens_key
from trainer.objectives.registry import make_objective
from trainer.preflight.checks import check_run

_BATCH = ("--global-batch", "8")


def _every_shard(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm_all(data: Path) -> None:
        for shard in list(data.glob("*.tar")):
            content = shard.read_bytes()
            shard.unlink()
            (data.parent / "away" / shard.name).write_bytes(content)
            harm(shard)

    return harm_all


def _token_65535(content: np.ndarray) -> None:
    content[640:642] = 255


# What is harmed, what everyone says, and whether the manifest alone tells.
FAULTS: dict[str, tuple[Callable[[Path], Any], str, bool]] = {
    "no shards": (
        lambda data: edit(data / MANIFEST, lambda c: c.update(shards=[])),
        "data set: shards: ",
        True,
    ),
    "a name out of the folder": (
        lambda data: edit(data / MANIFEST, lambda c: c["shards"][0].update(name="../x")),
        "shards.0.name: ",
        True,
    ),
    "a FIFO for dataset.json": (
        lambda data: ((data / MANIFEST).unlink(), os.mkfifo(data / MANIFEST)),
        "dataset.json is no regular file",
        True,
    ),
    "FIFOs for shards": (_every_shard(os.mkfifo), "is no regular file", False),
    "shards elsewhere": (
        _every_shard(lambda shard: shard.symlink_to(shard.parent.parent / "away" / shard.name)),
        "is a link out of",
        False,
    ),
    "a token beyond the codebook": (
        lambda data: rewrite_shard(data, _token_65535),
        "beyond the codebook (16)",
        False,
    ),
}


def _first_batch(run: RunConfig) -> None:
    with closing(make_objective(run)) as objective:
        objective.batch(0, 0, 8)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_says_the_same(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = copied(tmp_path)
    (tmp_path / "away").mkdir()
    harm, says, by_manifest = FAULTS[fault]
    harm(data)
    commands: list[tuple[object, ...]] = [
        ("tokenize", "verify", data),
        ("tokenize", "inspect", data),
        ("data", "bench", data, "--seconds", "0.1", *_BATCH),
        ("data", "order", data, "--step", "0", *_BATCH),
        ("data", "preview", data, "--tokenizer", "tokenizer.safetensors", *_BATCH),
    ]
    if by_manifest:
        commands += [("plan", "run.yaml", "--gpus", "1"), ("tokenize", "finalize", data)]
        with pytest.raises(DataError) as evaluated:
            tokens_key(str(data))
        assert says in str(evaluated.value)
    for command in commands:
        if fault == "a FIFO for dataset.json" and command[1] == "finalize":
            continue  # it is about to write that file
        called = addp(*command)
        assert (
            called.code == 1 and says in called.stderr and len(called.stderr.splitlines()) == 1
        ), (command, called)
    run = load_config("run.yaml", ["batch.global_batch=8", "batch.micro=8"])
    with pytest.raises(DataError) as trained:
        _first_batch(run)
    assert says in str(trained.value)
    found = {
        check.name: check
        for check in check_run(Path("run.yaml"), ["batch.global_batch=8", "batch.micro=8"], 1)
    }
    assert found["data"].state == "FAILED" and says in found["data"].text
