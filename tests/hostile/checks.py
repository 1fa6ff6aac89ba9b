"""The same run twice: `addp check` finds in a table what `trainer.pretrain` ends by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import MANIFEST
from tests.hostile.case import Case, text_file
from tests.hostile.tiny_job import copied, edit
from tests.hostile.weights import STEP
from trainer.run_folder import RUN

_CHECK, _PRETRAIN = ("check", "--gpus", "1", "run.yaml"), ("run.yaml",)
_WEIGHTS = ("objective=mage", "predictor.weights=given.safetensors")


def _laid(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        copied(folder)
        harm(folder)

    return make


def _both(
    name: str, harm: Callable[[Path], object], *says: str, more: tuple[str, ...] = (), code: int = 1
) -> list[Case]:
    """harm: of the folder that holds run.yaml and its data set. code: of the run itself."""

    make = _laid(harm)
    return [
        Case(f"{name}: check", (*_CHECK, *more), ("FAILED", *says), 78, make),
        Case(f"{name}: pretrain", (*_PRETRAIN, *more), says, code, make, "trainer.pretrain"),
    ]


def _edited(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(
        folder / "tokens" / MANIFEST, lambda content: content["shards"][0].update(values)
    )


def _fifo(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(folder / name)

    return make


def _checkpoint(content: str) -> Callable[[Path], object]:
    return text_file(f"run/{STEP}/manifest.json", content)


CASES = [
    *_both(
        "data with 10^18 rows", _edited(rows=10**18, bytes=2048 * 10**18), "dataset.json", "rows"
    ),
    *_both(
        "data with a name above its folder",
        _edited(name="../../outside/x"),
        "dataset.json",
        "inside",
    ),
    *_both("data that are a FIFO", _fifo(f"tokens/{MANIFEST}"), "dataset.json", "no regular file"),
    *_both(
        "a FIFO for given weights", _fifo("given.safetensors"), "given.safetensors", more=_WEIGHTS
    ),
    *_both(
        "text for given weights",
        text_file("given.safetensors", b"x" * 99),
        "given.safetensors",
        more=_WEIGHTS,
    ),
    *_both("a micro batch of nothing", str, "batch.micro", more=("batch.micro=0",), code=78),
    *_both(
        "a run of one step at rate 0", str, "schedule.total", more=("schedule.warmup=0.5",), code=78
    ),
    *_both(
        "a step that is kept never", str, "checkpoint.every", more=("checkpoint.every=-1",), code=78
    ),
    *_both(
        "a run file that is a bomb",
        text_file("run.yaml", "a: &a [x]\nb: [*a, *a]\n"),
        "aliases",
        code=78,
    ),
    *_both(
        "a checkpoint that is a list to go on from",
        _checkpoint("[1]"),
        "step-00000004",
        "object",
        code=79,
    ),
    *_both(
        "a checkpoint that nests to go on from",
        _checkpoint("[" * 100_000),
        "step-00000004",
        code=79,
    )[:1],
    *(
        Case(f"an identity that is {name}", _CHECK, ("ready",), 0, _laid(make))
        for name, make in {
            "a list": text_file(f"run/{RUN}", "[1]"),
            "a FIFO": _fifo(f"run/{RUN}"),
        }.items()
    ),
    *_both("rewinds that are a FIFO", _fifo("run/rewinds.json"), "rewinds.json", "no regular file")[
        :1
    ],
    *_both(
        "rewinds that are no numbers",
        text_file("run/rewinds.json", '[{"step": "x"}]'),
        "rewinds.json",
    ),
    Case(
        "an override before the file of check",
        ("check", "--gpus", "1", "batch.micro=0", "--config", "run.yaml"),
        ("FAILED", "batch.micro"),
        78,
        text_file("run.yaml", "seed: 1\n"),
    ),
]
