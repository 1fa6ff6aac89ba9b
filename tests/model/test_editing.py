"""Editing pictures: a token counts as known only if all of it is, known tokens never change, and
what is hidden has no influence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given as over
from hypothesis import strategies as st
from PIL import Image

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.editing import MASKS, between, hide, known_tokens, unknown_tokens
from model.errors import ConfigError, DataError
from model.sampler import generate, given_tokens
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer

GEOMETRY = Geometry(image_size=16, patch_size=4, codebook_size=16)


@pytest.fixture(scope="module")
def network(tokenizer: VQTokenizer) -> ADDP:
    torch.manual_seed(0)
    return ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]


def states_keep(
    network: ADDP,
    tokenizer: VQTokenizer,
    ids: torch.Tensor,
    unknown: torch.Tensor,
    **options: object,
) -> torch.Tensor:
    """Generate what is unknown, check each state on the way, and return the last one's ids."""
    before, sampling = unknown, SamplingOptions(**options)  # type: ignore[arg-type]
    start = given_tokens(tokenizer, None, ids, unknown)
    for state in generate(
        network, tokenizer, seed=0, start=0, count=len(ids), sampling=sampling, given=start
    ):
        assert torch.equal(state.ids[~unknown], ids[~unknown])
        assert not (state.mask & ~before).any()  # nothing known becomes unknown
        before = state.mask
    assert (state.mask.sum(1) == 1).all() and state.image.isfinite().all()
    return state.ids


@over(st.data())
def test_a_token_is_unknown_if_any_of_its_pixels_is(data: st.DataObject) -> None:
    """For pictures of any size: it is compared with the definition, pixel by pixel."""
    width, height = (data.draw(st.integers(5, 40)) for _ in range(2))
    masked = np.zeros((height, width), np.bool_)
    spots = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    for y, x in data.draw(st.lists(spots, min_size=1, max_size=4)):
        masked[y, x] = True
    side = min(width, height)
    expected = np.zeros((4, 4), np.bool_)
    for row in range(4):
        for column in range(4):
            for y, x in np.argwhere(masked):  # do pixel and patch overlap? In quarters of pixels.
                overlaps = [
                    max(4 * at, 2 * (whole - side) + side * cell)
                    < min(4 * at + 4, 2 * (whole - side) + side * (cell + 1))
                    for at, whole, cell in ((y, height, row), (x, width, column))
                ]
                expected[row, column] |= all(overlaps)
    if 0 < expected.sum() < 16:
        found = unknown_tokens(masked, (width, height), GEOMETRY)
        assert np.array_equal(found.view(4, 4).numpy(), expected)
    else:
        with pytest.raises(DataError, match="the mask leaves nothing"):
            unknown_tokens(masked, (width, height), GEOMETRY)


def test_named_masks() -> None:
    size = (24, 20)  # of no importance: the name is about the network's square
    of = {name: unknown_tokens(name, size, GEOMETRY).view(4, 4) for name in MASKS[:-1]}
    assert of["left"][:, :2].all() and not of["left"][:, 2:].any()
    for one, other in (("left", "right"), ("top", "bottom"), ("center", "border")):
        assert torch.equal(of[one], ~of[other]), one
    assert of["top"][:2].all() and of["center"][1:3, 1:3].all() and of["center"].sum() == 4
    wide = unknown_tokens("border:5", size, Geometry(image_size=32, patch_size=4, codebook_size=16))
    assert (~wide).view(8, 8)[2:6, 2:6].all() and (~wide).sum() == 16


def test_masks_that_cannot_be() -> None:
    for mask, error, said in (
        (np.zeros((20, 24), np.bool_), DataError, "leaves nothing to generate"),
        (np.ones((20, 24), np.bool_), DataError, "leaves nothing known"),
        ("border:7", DataError, "leaves nothing known"),  # each token has a pixel of it
        (
            Image.new("L", (20, 24), 255),
            DataError,
            "the mask has 20 x 24 pixels, and the picture 2",
        ),
        ("border:8", ConfigError, "from 1 to 7"),
        ("border:", ConfigError, "from 1 to 7"),
        ("sideways", ConfigError, "neither one of left, right"),
    ):
        with pytest.raises(error, match=said):
            unknown_tokens(mask, (24, 20), GEOMETRY)
    left_out = np.zeros((20, 24), np.bool_)
    left_out[:, :2] = True  # the centred square has none of it
    with pytest.raises(DataError, match="leaves nothing to generate"):
        unknown_tokens(left_out, (24, 20), GEOMETRY)


def test_what_is_hidden_has_no_influence(tokenizer: VQTokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    unknown = unknown_tokens("center", (16, 16), GEOMETRY)
    other = image.clone()
    other[..., 4:12, 4:12] = torch.rand(3, 8, 8, generator=generator)
    assert torch.equal(
        known_tokens(tokenizer, image, unknown), known_tokens(tokenizer, other, unknown)
    )
    hidden = hide(image, unknown)
    known = torch.ones(16, 16, dtype=torch.bool)
    known[4:12, 4:12] = False
    assert torch.equal(hidden[..., known], image[..., known])
    assert hidden.min() >= image.min() and hidden.max() <= image.max()  # means, and nothing grey
    flat = torch.full_like(image, 0.25)
    assert torch.allclose(hide(flat, unknown), flat)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("masked", [1, 6, 16])
def test_known_tokens_of_a_completion_stay(
    masked: int, schedule: str, network: ADDP, tokenizer: VQTokenizer
) -> None:
    torch.manual_seed(0)
    ids = torch.randint(16, (3, 16))
    mask = torch.zeros(16, dtype=torch.bool)
    mask[torch.randperm(16)[:masked]] = True
    made = states_keep(network, tokenizer, ids, mask.expand(3, -1), steps=5, schedule=schedule)
    assert masked == 1 or not torch.equal(made, ids)


@over(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 40))
def test_between_two_pictures(seed: int, frames: int, length: int) -> None:
    """A only loses tokens and B only gains them, what both have stays, and something is always
    generated, but never more than half of what differs, beside rounding."""
    a, b = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (2, length)))
    if torch.equal(a, b):
        with pytest.raises(DataError, match="nothing between them"):
            between(a, b, 0.5, seed=seed, start=0, count=1)
        return
    differ = a != b
    had_a, had_b = differ.expand(3, -1), torch.zeros(3, length, dtype=torch.bool)
    for frame in range(1, frames + 1):
        share = frame / (frames + 1)
        ids, unknown = between(a, b, share, seed=seed, start=0, count=3)
        assert torch.equal(ids[:, ~differ], a[~differ].expand(3, -1))
        assert not unknown[:, ~differ].any()
        of_a, of_b = (differ & ~unknown & (ids == end) for end in (a, b))
        assert torch.equal(of_a | of_b | unknown, differ.expand(3, -1))
        assert not (of_a & ~had_a).any() and not (had_b & ~of_b).any()
        had_a, had_b = of_a, of_b
        counts = unknown.sum(1)
        assert (counts == counts[0]).all() and 1 <= counts[0] <= differ.sum() / 2 + 2
    alone = between(a, b, share, seed=seed, start=2, count=1)  # keyed by the picture
    assert torch.equal(alone[0][0], ids[2]) and torch.equal(alone[1][0], unknown[2])


def test_known_tokens_of_an_interpolation_stay(network: ADDP, tokenizer: VQTokenizer) -> None:
    torch.manual_seed(0)
    a, b = torch.randint(16, (2, 16))
    for share in (0.2, 0.5, 0.9):
        known = between(a, b, share, seed=0, start=0, count=3)
        states_keep(network, tokenizer, *known, steps=3)
