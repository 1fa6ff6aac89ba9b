"""Unconditional generation (ADDP section 3.4): N alternating steps of predicting tokens and
decoding pixels.

    image, ids, mask --network--> logits --draw where masked--> ids
                                     |                           |
                                     |   remask the least confident ids (fewer each step)
                                     v                           v
                    next image = decode(expected codes where masked, drawn codes elsewhere)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.addp import ADDP
from model.predictor import TokenPredictor
from model.randomness import uniforms
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer


class Generation(NamedTuple):
    """The state after a step.

    image: (B, 3, H, W), nominally in [0, 1]. ids: (B, L). mask: (B, L) bool, True where unknown.
    logits: (B, L, K) over codes, which led to this state.
    """

    image: Tensor
    ids: Tensor
    mask: Tensor
    logits: Tensor


def mask_length(sampling: SamplingOptions, step: int, length: int) -> int:
    """Return how many of L tokens stay masked after a step 0 .. N-1.

    They are clip(ceil(L f((step + 1) / N)), 1, L), f the schedule.
    """
    u = (step + 1) / sampling.steps
    f = math.cos(math.pi / 2 * u) if sampling.schedule == "cosine" else 1 - u
    # In float32, as in the reference: in float64, an error above a whole number would add a token.
    return min(max(math.ceil(np.float32(length) * np.float32(f)), 1), length)


def noise_scale(sampling: SamplingOptions, step: int) -> float:
    """Return the weight of the Gumbel noise in the confidence."""
    decay = 1 - (step + 1) / sampling.steps if sampling.temperature == "dynamic" else 1.0
    return sampling.choice_temperature * decay


def sample_ids(logits: Tensor, u: Tensor, top_p: float = 1.0) -> Tensor:
    """Draw ids (B, L) from logits (B, L, K) by the inverse CDF of uniforms u (B, L). top_p below 1
    keeps the smallest set of codes with this probability."""
    p = logits.float().softmax(-1)
    if top_p < 1.0:
        sorted_p, order = p.sort(-1, descending=True)
        kept = sorted_p.cumsum(-1) - sorted_p < top_p
        p = torch.zeros_like(p).scatter(-1, order, sorted_p * kept)
    cdf = p.cumsum(-1)
    targets = (u.to(cdf) * cdf[..., -1]).unsqueeze(-1)
    drawn = torch.searchsorted(cdf, targets, right=True).squeeze(-1)
    return drawn.clamp_max(p.shape[-1] - 1)


def remask(
    logits: Tensor, ids: Tensor, mask: Tensor, *, gumbel: Tensor, scale: float, count: int
) -> Tensor:
    """Return the `count` least confident positions, (B, L) bool. The confidence is log p(id) +
    scale * gumbel; known positions have +inf."""
    logp = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    confidence = (logp + scale * gumbel).masked_fill(~mask, math.inf)
    least = confidence.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(mask).scatter(1, least, True)


def next_image(tokenizer: VQTokenizer, logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Decode the next image, (B, 3, H, W): expected codes under the logits (B, L, K) where masked,
    the codes of `ids` elsewhere (section 3.2)."""
    soft = tokenizer.soft_embed(logits.float().softmax(-1))
    return tokenizer.decode(
        torch.where(tokenizer.to_grid(mask.unsqueeze(-1)), soft, tokenizer.embed(ids))
    )


class Given(NamedTuple):
    """Where generation starts.

    image: (B, 3, H, W). ids: (B, L). mask: (B, L) bool, True where tokens are to be generated, the
    same number in each image.
    """

    image: Tensor
    ids: Tensor
    mask: Tensor


@torch.no_grad()
def given_tokens(
    tokenizer: VQTokenizer, predictor: TokenPredictor | None, ids: Tensor, mask: Tensor
) -> Given:
    """Return a start that keeps the tokens outside of `mask`, so that the rest is generated
    (section 3.4 from a later step on).

    The first image is what training shows for this state: unreliable tokens are the predictor's
    expected codes (section 3.2). Without a predictor they are the mean code.
    """
    if predictor is not None:
        soft = tokenizer.soft_embed(predictor.probabilities(ids, mask))
    else:
        soft = tokenizer.codebook.mean(0).view(1, -1, 1, 1)
    z = torch.where(tokenizer.to_grid(mask.unsqueeze(-1)), soft, tokenizer.embed(ids))
    return Given(tokenizer.decode(z), ids, mask)


@torch.no_grad()
def advance(
    network: ADDP,
    tokenizer: VQTokenizer,
    state: Generation,
    *,
    u: Tensor,
    gumbel: Tensor,
    sampling: SamplingOptions,
    step: int,
    sampled: Tensor | None = None,
    visible: int | None = None,
    next_visible: int | None = None,
    decode: bool = True,
) -> Generation:
    """Do one step.

    u, gumbel: noise of this step, (B, L). sampled: ids to take instead of drawing them (for
    parity). visible: the number of unmasked positions now, if it is known; next_visible: after this
    step, as the schedule has it if None. decode: whether the image is needed; otherwise it stays
    the last one.
    """
    k, length = network.geometry.codebook_size, state.ids.shape[1]
    if visible == 0:  # neither image nor ids matter: the same logits for every image
        one = network.logits(state.image[:1], state.ids[:1], state.mask[:1], 0)[..., :k]
        logits = one.expand(len(state.ids), -1, -1)
    else:
        logits = network.logits(state.image, state.ids, state.mask, visible)[..., :k]
    drawn = sample_ids(logits, u, sampling.top_p) if sampled is None else sampled
    ids = torch.where(state.mask, drawn, state.ids)
    count = mask_length(sampling, step, length) if next_visible is None else length - next_visible
    mask = remask(
        logits, ids, state.mask, gumbel=gumbel, scale=noise_scale(sampling, step), count=count
    )
    image = next_image(tokenizer, logits, ids, mask) if decode else state.image
    return Generation(image, ids, mask, logits)


def generate(
    network: ADDP,
    tokenizer: VQTokenizer,
    *,
    seed: int,
    start: int,
    count: int,
    sampling: SamplingOptions,
    given: Given | None = None,
    all_images: bool = True,
) -> Iterator[Generation]:
    """Generate the samples start .. start+count-1, and yield all N states in turn; the last image
    is the sample.

    The noise of a sample is keyed by (seed, sample index), so it is the same image in any batch and
    on any rank. given: where generation starts; from nothing if None. all_images: whether images
    are decoded that no later step depends on (while all tokens are masked).
    """
    device = network.pos_embed.device
    length, size = network.geometry.tokens, network.geometry.image_size
    if given is None:
        given = Given(
            torch.zeros(count, 3, size, size, device=device),
            torch.zeros(count, length, dtype=torch.int64, device=device),
            torch.ones(count, length, dtype=torch.bool, device=device),
        )
    unknown = int(given.mask[0].sum())
    state = Generation(*given, torch.empty(0, device=device))
    visible = length - unknown
    for step in range(sampling.steps):
        noise = torch.from_numpy(uniforms(seed, f"generate/{step}", start, count, 2 * length))
        u, g = noise.view(count, 2, length).unbind(1)
        gumbel = -torch.log(-torch.log(g))
        following = length - mask_length(sampling, step, unknown)
        state = advance(
            network,
            tokenizer,
            state,
            u=u.float().to(device),
            gumbel=gumbel.float().to(device),
            sampling=sampling,
            step=step,
            visible=visible,
            next_visible=following,
            decode=all_images or following > 0 or step + 1 == sampling.steps,
        )
        visible = following
        yield state
