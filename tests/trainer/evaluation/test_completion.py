"""Completing images: what is kept stays, what is generated changes with the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.errors import ConfigError, DataError
from model.sampler import generate, given_tokens
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer
from trainer.evaluation.completion import generated_mask, read_images
from trainer.evaluation.options import KEEP


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("masked", [1, 6, 16])
def test_kept_tokens_stay(masked: int, schedule: str, tokenizer: VQTokenizer) -> None:
    torch.manual_seed(0)
    network = ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    ids = torch.randint(16, (3, 16))
    mask = torch.zeros(16, dtype=torch.bool)
    mask[torch.randperm(16)[:masked]] = True
    mask = mask.expand(3, -1)
    sampling = SamplingOptions(steps=5, schedule=schedule)  # type: ignore[arg-type]
    given = given_tokens(tokenizer, None, ids, mask)
    ends = []
    for seed in (0, 1):
        before = mask
        given = given_tokens(tokenizer, None, ids, mask)
        for state in generate(
            network, tokenizer, seed=seed, start=0, count=3, sampling=sampling, given=given
        ):
            assert torch.equal(state.ids[~mask], ids[~mask])
            assert not (state.mask & ~before).any()  # nothing known becomes unknown
            before = state.mask
        assert (state.mask.sum(1) == 1).all() and state.image.isfinite().all()
        ends.append(state.ids)
    assert masked == 1 or not torch.equal(ends[0], ends[1])


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


def test_masks(tmp_path: Path) -> None:
    masks = {keep: generated_mask(keep, 4).view(4, 4) for keep in KEEP}
    assert not masks["left"][:, :2].any() and masks["left"][:, 2:].all()
    assert not masks["top"][:2].any() and masks["bottom"][:2].all()
    assert (
        masks["border"].sum() == 4
        and masks["border"][1:3, 1:3].all()
        and not (masks["center"] & masks["border"]).any()
    )
    image = Image.new("L", (64, 64))
    image.putpixel((17, 2), 255)
    image.save(tmp_path / "mask.png")
    assert generated_mask(str(tmp_path / "mask.png"), 4).nonzero().tolist() == [[1]]
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    with pytest.raises(ConfigError, match="leaves nothing to generate"):
        generated_mask(str(tmp_path / "black.png"), 4)
    with pytest.raises(ConfigError, match="neither one of left"):
        generated_mask("sideways", 4)


def test_a_run_completes_images(run: Path, images: Path, tmp_path: Path) -> None:
    from trainer.evaluation.generate import main

    folder = images / "ellipse"
    out = tmp_path / "completed.png"
    main(str(run), complete=folder, keep="left", steps=4, out=out)
    assert Image.open(out).size == (
        6 * 18 + 2,
        8 * 18 + 2,
    )  # the image, what is kept, four completions
    assert read_images(folder / "000.png", 16).shape == (1, 3, 16, 16)
    with pytest.raises(DataError):
        read_images(tmp_path / "none.png", 16)
