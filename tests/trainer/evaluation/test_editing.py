"""Edits by `generate`: completions of pictures, and pictures between two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.errors import ConfigError, DataError
from model.sampler import generate
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer
from tests.cluster.calling import addp
from tests.trainer.evaluation.test_generate import contents
from trainer.evaluation.editing import read_images
from trainer.evaluation.generate import main


def test_steps_in_which_nothing_is_known_are_computed_once(tokenizer: VQTokenizer) -> None:
    """The short cut gives what the long way gives."""
    torch.manual_seed(0)
    network = ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    which = {"seed": 0, "start": 0, "count": 4, "sampling": SamplingOptions(steps=12)}
    short = list(generate(network, tokenizer, **which, all_images=False))
    long = list(generate(network, tokenizer, **which))
    assert torch.equal(short[-1].ids, long[-1].ids) and torch.equal(short[-1].image, long[-1].image)
    state = long[0]
    whole = network.logits(
        torch.rand(4, 3, 16, 16), torch.randint(16, (4, 16)), torch.ones(4, 16, dtype=torch.bool)
    )
    assert torch.allclose(state.logits, whole[..., :16], atol=1e-5)


def cell(sheet: Path, row: int, column: int) -> np.ndarray:
    """One of the pictures of 16 pixels on a sheet."""
    at = [2 + 18 * number for number in (row, column)]
    return np.asarray(Image.open(sheet))[at[0] : at[0] + 16, at[1] : at[1] + 16]


def test_a_sheet_of_completions(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "completed.png"
    main(str(run), complete=images / "ellipse", mask="left", steps=4, variants=3, out=out)
    assert Image.open(out).size == (5 * 18 + 2, 8 * 18 + 2)  # given, known, three completions
    given, known = cell(out, 1, 0), cell(out, 1, 1)
    assert (known[:, :8] == 128).all() and np.array_equal(known[:, 8:], given[:, 8:])
    assert not np.array_equal(cell(out, 1, 2), cell(out, 1, 3))
    settings = json.loads(out.with_suffix(".json").read_text())
    assert settings["count"] == 24 and settings["edit"] == "completed"


def test_a_sheet_between_two_pictures(run: Path, images: Path, tmp_path: Path) -> None:
    ends, out = (images / "ellipse" / "000.png", images / "line" / "001.png"), tmp_path / "b.png"
    main(str(run), between=ends, frames=3, variants=2, steps=4, out=out)
    assert Image.open(out).size == (5 * 18 + 2, 2 * 18 + 2)
    for row in range(2):
        assert [np.array_equal(cell(out, 0, i), cell(out, row, i)) for i in (0, 4)] == [True, True]
    assert not np.array_equal(cell(out, 0, 2), cell(out, 1, 2))


@pytest.mark.parametrize("kind", ["complete", "between"])
def test_a_set_of_an_edit_goes_on_where_it_was_cut_off(
    kind: str, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks, one after the other: the files are those of one rank."""
    ends = (images / "ellipse" / "000.png", images / "line" / "001.png")
    between = {"between": ends, "frames": 4}
    edit = {"complete": images / "ellipse"} if kind == "complete" else between
    options = {**edit, "variants": 2, "steps": 4}
    main(str(run), into=tmp_path / "whole", **options)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 1 + (16 if kind == "complete" else 8)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        main(str(run), into=tmp_path / "cut", **options)
        if rank == "0":
            assert len(contents(tmp_path / "cut")) < len(whole)
            (tmp_path / "cut" / "000001.png").unlink()  # of the first chunk
    monkeypatch.undo()
    main(str(run), into=tmp_path / "cut", **options)
    assert contents(tmp_path / "cut") == whole
    changed = {"complete": images / "line"} if kind == "complete" else {"between": ends[::-1]}
    with pytest.raises(ConfigError, match=r"holds another set of samples .*given"):
        main(str(run), into=tmp_path / "cut", **{**options, **changed})


def test_edits_that_cannot_be(run: Path, images: Path, tmp_path: Path) -> None:
    image = images / "ellipse" / "000.png"  # 24 x 20 pixels
    Image.new("L", (24, 24), 255).save(tmp_path / "mask.png")
    (tmp_path / "empty").mkdir()
    for options, said in (
        (("--complete", image, "--mask", tmp_path / "mask.png"), "24 x 24 pixels, and the picture"),
        (("--complete", image, "--mask", "sideways"), "neither one of left, right"),
        (("--complete", image, "--between", image, image), "are two commands"),
        (("--between", image, image), "nothing between them"),
        (("--complete", image, "--into", tmp_path / "set"), "makes a set of files, and --out a"),
    ):
        done = addp("generate", run, *options, "--out", tmp_path / "out.png")
        assert done.code != 0 and said in " ".join(done.stderr.split()), (options, done.stderr)
    with pytest.raises(DataError, match="holds no images"):
        read_images(tmp_path / "empty")
    with pytest.raises(DataError, match=r"cannot read .*none.png: No such file"):
        read_images(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"mask": "right"}, "--complete;"),
        ({"complete": Path("a.png"), "frames": 8}, "--between;"),
        ({"variants": 4}, "--complete or --between;"),
        ({"container": "png"}, "--into;"),
        ({"into": Path("set"), "zoom": 2}, "into makes a set of files"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    options: dict[str, object], without: str
) -> None:
    """Also with the value that they have if they are not given."""
    with pytest.raises(typer.BadParameter, match=without):
        main("run", **options)  # type: ignore[arg-type]
