"""Sets of generated images: the same files on any number of ranks, from any checkpoint, after any
number of kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from data_pipeline.progress import SECONDS
from model.errors import ConfigError
from model.sampling_options import SamplingOptions
from tests.trainer.evaluation.evaluating import codes
from tests.trainer.worlds import CONTEXT
from trainer.evaluation.generate import main
from trainer.evaluation.generating import _same_step_for_all
from trainer.evaluation.options import SetOptions
from trainer.evaluation.sample_set import SETTINGS, SampleSet, step_of_set
from trainer.evaluation.trained import Trained, load_addp

# A sampler in which all options meet.
GUIDED = {"guidance_weight": 1.0, "top_p": 0.8, "steps": 6}


def _generate(
    rank: int, world_size: int, run: Path, into: Path, options: dict[str, object]
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    from trainer.evaluation.generate import main

    main(str(run), **{"count": 60, "steps": 4, "batch": 8, "into": into, **options})  # type: ignore[arg-type]


def start(run: Path, into: Path, world_size: int = 1, **options: object) -> list[ForkServerProcess]:
    ranks = [
        CONTEXT.Process(target=_generate, args=(r, world_size, run, into, options))
        for r in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def finished(ranks: list[ForkServerProcess]) -> None:
    assert codes(ranks) == [0] * len(ranks)


def contents(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if ".tmp" not in p.name
    }


@pytest.mark.parametrize(
    ("container", "sampler"), [("png", {}), ("webdataset", {}), ("png", GUIDED)]
)
def test_one_rank_and_two_make_the_same_files(
    container: str, sampler: dict[str, object], run: Path, tmp_path: Path
) -> None:
    for world_size in (1, 2):
        into = tmp_path / str(world_size)
        finished(start(run, into, world_size, container=container, **sampler))
    one = contents(tmp_path / "1")
    assert one == contents(tmp_path / "2") and len(one) == (61 if container == "png" else 9)
    if container == "png":
        assert (
            Image.open(tmp_path / "1" / "000059.png").size == (16, 16)
            and len(set(one.values())) > 50
        )
    else:
        shards = sorted(map(str, (tmp_path / "1").glob("*.tar")))
        samples = [
            s for shard in shards for s in wds.WebDataset(shard, shardshuffle=False).decode("pil")
        ]
        assert [s["__key__"] for s in samples] == [f"{i:06d}" for i in range(60)]
        assert samples[0]["png"].size == (16, 16)


@pytest.mark.parametrize(
    ("kills", "sampler"),
    [(3, GUIDED), *(pytest.param(20, s, marks=pytest.mark.long) for s in ({}, GUIDED))],
)
def test_killed_at_random_it_ends_with_the_same_files(
    kills: int, sampler: dict[str, object], run: Path, tmp_path: Path
) -> None:
    finished(start(run, tmp_path / "whole", count=400, **sampler))
    dice, folder = random.Random(0), tmp_path / "killed"
    for _ in range(kills):
        ranks = start(run, folder, 2, count=400, **sampler)
        time.sleep(dice.uniform(0.2, 1.0))
        for rank in ranks:
            rank.kill()
            rank.join()
    finished(start(run, folder, 2, count=400, **sampler))
    assert contents(folder) == contents(tmp_path / "whole")


def test_from_a_checkpoint_and_from_the_ema(run: Path, tmp_path: Path) -> None:
    for name, options in (
        ("raw", {}),
        ("ema", {"weights": "ema"}),
        ("last", {"checkpoint": 12}),
        ("early", {"checkpoint": 4}),
        ("half", {"precision": "bf16"}),
    ):
        finished(start(run, tmp_path / name, count=8, **options))
    images = {
        name: (tmp_path / name / "000003.png").read_bytes()
        for name in ("raw", "ema", "last", "early")
    }
    assert images["raw"] == images["last"] and len(set(images.values())) == 3
    assert len(contents(tmp_path / "half")) == 9 and Image.open(
        tmp_path / "half" / "000007.png"
    ).size == (16, 16)


def test_the_first_process_chooses_the_checkpoint(run: Path, tmp_path: Path) -> None:
    """A run goes on: processes that come later, or see its folder later, take the step that the set
    has."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("done.json", "step-00000012"))
    finished(start(folder, tmp_path / "whole", count=24))
    whole = contents(tmp_path / "whole")
    for name in sorted(whole.keys() - {SETTINGS})[1::2]:
        (tmp_path / "whole" / name).unlink()
    finished(start(run, tmp_path / "whole", 2, count=24))  # its end has come meanwhile
    assert contents(tmp_path / "whole") == whole
    trained = [load_addp(str(run), step=step) for step in (8, 4)]

    def load(step: int | None) -> Trained:
        """Another process is faster: it has the set of step 8 before we have ours of step 4."""
        if step is None:
            SampleSet(tmp_path / "late", trained[0], *args)
        return trained[step == 4 or step is None]

    args = (SetOptions(count=24, batch=8), SamplingOptions(steps=4))
    samples = _same_step_for_all(
        load, lambda t: SampleSet(tmp_path / "late", t, *args), None, tmp_path / "late"
    )
    assert samples._trained.step == step_of_set(tmp_path / "late") == 8


def test_another_set_is_not_mixed_in(run: Path, tmp_path: Path) -> None:
    finished(start(run, tmp_path / "set", count=8))
    with pytest.raises(ConfigError, match="holds another set of samples"):
        _generate(0, 1, run, tmp_path / "set", {"count": 8, "seed": 1})
    with pytest.raises(ConfigError, match=r"holds another set of samples .*weight': 2"):
        _generate(0, 1, run, tmp_path / "set", {"count": 8, "sampler": "guided"})
    with pytest.raises(ConfigError, match="no checkpoint of step 5"):
        _generate(0, 1, run, tmp_path / "x", {"checkpoint": 5})


@pytest.mark.parametrize("complete", [False, True])
def test_a_grid_is_made_in_the_precision_that_is_asked_for(
    complete: bool, run: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "image.png")
    image = tmp_path / "image.png" if complete else None
    for precision in ("fp32", "bf16"):
        main(
            str(run),
            count=4,
            steps=4,
            precision=precision,
            complete=image,
            out=tmp_path / f"{precision}.png",
        )
        assert json.loads((tmp_path / f"{precision}.json").read_text())["precision"] == precision
    assert (tmp_path / "fp32.png").read_bytes() != (tmp_path / "bf16.png").read_bytes()


def test_it_says_how_far_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no terminal: a line now and then."""
    monkeypatch.setenv(SECONDS, "0.01")
    for into, out in ((tmp_path / "set", None), (None, tmp_path / "grid.png")):
        main(str(run), count=24, batch=4, steps=8, into=into, out=out)
        title = (
            "generating: 24 of 24 images"
            if into
            else "generating 24 images: 192 of 192 denoising steps"
        )
        assert f"\n{title} (100%) in 0:0" in capsys.readouterr().err
