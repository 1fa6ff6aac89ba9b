"""Generation (ADDP section 3.4): N alternating steps of predicting tokens and decoding pixels.

    image, ids, mask --network--> logits --draw where masked--> ids
                                     |                           |
                                     |   remask the least confident ids (fewer each step)
                                     v                           v
                    next image = decode(expected codes where masked, drawn codes elsewhere)

That is the published sampler. `model.sampling` has strategies that take its place by options: other
orders, guidance, remasking, and schedules of what is drawn. A network that learned classes is told
one for each sample, where one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model.addp import ADDP
from model.conditioning import KnowsClasses, labels_of
from model.errors import ConfigError
from model.predictor import TokenPredictor
from model.randomness import uniforms
from model.sampling.guidance import code_logits, fully_masked_logits, guided
from model.sampling.orders import halton_ranks, last_in_order, least_confident, random_ranks
from model.sampling.remasking import Returned, any_returned, doubted_returned
from model.sampling.schedules import mask_length, mends, noise_scale, token_temperature, top_p
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer


class Generation(NamedTuple):
    """The state after a step.

    image: (B, 3, H, W), nominally in [0, 1]. ids: (B, L). mask: (B, L) bool, True where unknown.
    logits: (B, L, K) over codes, of the network alone (and of the classes), which led to this
    state.
    """

    image: Tensor
    ids: Tensor
    mask: Tensor
    logits: Tensor


class Advisers(NamedTuple):
    """Networks beside the one that generates. guide: predicts worse, for autoguidance. critic: says
    which tokens are mended. Both are in eval mode, and have the tokens of the network."""

    guide: ADDP | None = None
    critic: TokenPredictor | None = None


def sample_ids(
    logits: Tensor, u: Tensor, top_p: float = 1.0, *, temperature: float = 1.0
) -> Tensor:
    """Draw ids (B, L) from logits (B, L, K) by the inverse CDF of uniforms u (B, L). top_p below 1
    keeps the smallest set of codes with this probability. temperature: divides the logits first."""
    p = (logits.float() / temperature).softmax(-1)
    if top_p < 1.0:
        sorted_p, order = p.sort(-1, descending=True)
        kept = sorted_p.cumsum(-1) - sorted_p < top_p
        p = torch.zeros_like(p).scatter(-1, order, sorted_p * kept)
    cdf = p.cumsum(-1)
    targets = (u.to(cdf) * cdf[..., -1]).unsqueeze(-1)
    drawn = torch.searchsorted(cdf, targets, right=True).squeeze(-1)
    return drawn.clamp_max(p.shape[-1] - 1)


def next_image(
    tokenizer: VQTokenizer,
    logits: Tensor,
    ids: Tensor,
    mask: Tensor,
    returned: Returned | None = None,
) -> Tensor:
    """Decode the next image, (B, 3, H, W): expected codes under the logits (B, L, K) where masked,
    the codes of `ids` elsewhere (section 3.2). Tokens that returned have their own expectation."""
    p = logits.float().softmax(-1)
    if returned is not None:
        p = torch.where(returned.where.unsqueeze(-1), returned.expected, p)
    soft = tokenizer.soft_embed(p)
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
    tokenizer: VQTokenizer,
    predictor: TokenPredictor | None,
    ids: Tensor,
    mask: Tensor,
    classes: Tensor | None = None,
) -> Given:
    """Return a start that keeps the tokens outside of `mask`, so that the rest is generated
    (section 3.4 from a later step on).

    The first image is what training shows for this state: unreliable tokens are the predictor's
    expected codes (section 3.2). Without a predictor they are the mean code. classes: labels, (B,)
    int64, that the predictor is told (`told_beside`); None tells it nothing.
    """
    if predictor is not None:
        told = None if classes is None else classes.to(ids.device)
        soft = tokenizer.soft_embed(predictor.probabilities(ids, mask, told))
    else:
        soft = tokenizer.codebook.mean(0).view(1, -1, 1, 1)
    z = torch.where(tokenizer.to_grid(mask.unsqueeze(-1)), soft, tokenizer.embed(ids))
    return Given(tokenizer.decode(z), ids, mask)


def told_beside(
    network: ADDP, other: KnowsClasses | None, classes: Tensor | None, sampling: SamplingOptions
) -> Tensor | None:
    """Return the labels, (B,), that another network is told beside the one that generates: the
    samples' where it knows the same classes; None where it does not, and where none is told."""
    same = other is not None and other.classes == network.classes
    return classes if same and sampling.class_guidance else None


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
    poorer: Tensor | None = None,
    ranks: Tensor | None = None,
    returned: Returned | None = None,
    classes: Tensor | None = None,
) -> Generation:
    """Do one step.

    u, gumbel: noise of this step, (B, L). sampled: ids to take instead of drawing them (for
    parity). visible: the number of unmasked positions now, if it is known; next_visible: after this
    step, as the schedule has it if None. decode: whether the image is needed; otherwise it stays
    the last one. poorer: logits that guidance leads away from, or None. ranks: the order in which
    positions become known, (B, L); by confidence if None. returned: known tokens that become
    unknown, the same number in each image, or None. classes: labels, (B,) int64, or None.
    """
    length = state.ids.shape[1]
    logits = code_logits(network, *state[:3], visible, classes, sampling.class_guidance)
    drawn_by = guided(logits, poorer, sampling.guidance_weight)
    if sampled is None:
        temperature = token_temperature(sampling, step)
        sampled = sample_ids(drawn_by, u, top_p(sampling, step), temperature=temperature)
    ids = torch.where(state.mask, sampled, state.ids)
    count = mask_length(sampling, step, length) if next_visible is None else length - next_visible
    if returned is not None:
        count -= int(returned.where[0].sum())
    if ranks is None:
        scale = noise_scale(sampling, step)
        mask = least_confident(drawn_by, ids, state.mask, gumbel=gumbel, scale=scale, count=count)
    else:
        mask = last_in_order(ranks, state.mask, count)
    if returned is not None:
        mask = mask | returned.where
    image = next_image(tokenizer, logits, ids, mask, returned) if decode else state.image
    return Generation(image, ids, mask, logits)


@torch.no_grad()
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
    advisers: Advisers | None = None,
    classes: Tensor | None = None,
) -> Iterator[Generation]:
    """Generate the samples start .. start+count-1, and yield all N states in turn; the last image
    is the sample.

    The noise of a sample is keyed by (seed, sample index), so it is the same image in any batch and
    on any rank. given: where generation starts; from nothing if None. all_images: whether images
    are decoded that no later step depends on (while all tokens are masked). advisers: the networks
    that some options ask for. classes: the samples' labels, (count,) int64, of `network.classes`;
    None generates without a class. Raises ConfigError where a network is missing, or knows no such
    class.
    """
    advisers = _asked_for(advisers or Advisers(), sampling)
    device = network.pos_embed.device
    if classes is not None:
        labels_of(network.classes, classes.tolist())
        classes = classes.to(device) if sampling.class_guidance else None
    of_guide = told_beside(network, advisers.guide, classes, sampling)
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
    ranks = None
    if sampling.order != "confidence":
        ranks = _RANKS[sampling.order](seed, start, count, length).to(device)
    # What the network predicts when it knows nothing, no class either. From nothing and without a
    # class, the first step computes it.
    wanted = sampling.guidance_weight > 0 or sampling.remask_steps > 0
    computed = visible == 0 and classes is None
    nothing = fully_masked_logits(network) if wanted and not computed else None
    for step in range(sampling.steps):
        noise = torch.from_numpy(uniforms(seed, f"generate/{step}", start, count, 2 * length))
        u, g = noise.view(count, 2, length).unbind(1)
        gumbel = -torch.log(-torch.log(g))
        following = length - mask_length(sampling, step, unknown)
        returned = None
        if mends(sampling, step):
            assert nothing is not None  # the first step mends nothing
            draw = uniforms(seed, f"generate/remask/{step}", start, count, length)
            known = visible - (length - unknown)  # of those that are generated
            returned = _returned(
                state,
                given.mask & ~state.mask,
                noise=torch.from_numpy(draw).to(device),
                count=int(sampling.remask_share * known),
                critic=advisers.critic,
                nothing=nothing,
            )
        poorer = nothing
        if advisers.guide is not None:
            poorer = code_logits(advisers.guide, *state[:3], visible, of_guide)
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
            poorer=poorer,
            ranks=ranks,
            returned=returned,
            classes=classes,
        )
        if visible == 0 and computed:
            nothing = state.logits[:1]
        visible = following
        yield state


def generated(
    network: ADDP,
    tokenizer: VQTokenizer,
    *,
    seed: int,
    start: int,
    count: int,
    sampling: SamplingOptions,
    given: Given | None = None,
    advisers: Advisers | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Return the samples start .. start+count-1, (count, 3, H, W): the last images of `generate`,
    which then decodes no image that nothing depends on."""
    for state in generate(
        network,
        tokenizer,
        seed=seed,
        start=start,
        count=count,
        sampling=sampling,
        given=given,
        all_images=False,
        advisers=advisers,
        classes=classes,
    ):
        last = state.image
    return last


_RANKS = {"halton": halton_ranks, "random": random_ranks}


def _asked_for(advisers: Advisers, sampling: SamplingOptions) -> Advisers:
    """Return the networks that the options need, and no others. Raises ConfigError where one is
    missing."""
    guide = advisers.guide if sampling.has_guide else None
    critic = advisers.critic if sampling.has_critic else None
    if sampling.has_guide and guide is None:
        raise ConfigError(f"the guide {sampling.guide} was not loaded; pass it in `advisers`")
    if sampling.has_critic and critic is None:
        raise ConfigError("critic=predictor needs the predictor; pass it in `advisers`")
    return Advisers(guide, critic)


def _returned(
    state: Generation,
    candidates: Tensor,
    *,
    noise: Tensor,
    count: int,
    critic: TokenPredictor | None,
    nothing: Tensor,
) -> Returned:
    """Choose `count` of the candidates, (B, L) bool, to become unknown. nothing: the logits of the
    fully masked image."""
    if critic is None:
        return any_returned(candidates, noise, count, nothing.float().softmax(-1))
    return doubted_returned(critic, state.ids, state.mask, candidates, noise=noise, count=count)
