"""What masked tokens of held-out images cost a predictor or ADDP: cross-entropy, beside that of a
guess by frequency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.streaming.loader import TokenLoader
from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.errors import ConfigError
from model.masking import DenoisingMasks, denoising_masks, masked_count
from model.predictor import TokenPredictor
from model.randomness import orders
from trainer.evaluation.benchmarks.base import Outcome
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.grids import png, zoom_of
from trainer.evaluation.task import Task
from trainer.objectives.addp import load_frozen
from trainer.objectives.condition import tells_classes

Predict = Callable[[Tensor, DenoisingMasks, Tensor | None], Tensor]
_BATCH = 64
_MASK_DRAWS = 8  # mask ratios that an image is evaluated at
_RATIOS = (0.99, 0.9, 0.75, 0.6, 0.51)  # shares of unreliable tokens that are shown
_SHOWN = 8  # images
_SEED = 20230609  # of the masks: the same for every network that is compared


def measure(task: Task) -> Outcome:
    """Predict masked tokens of held-out images, by all ranks together; where the run tells its
    network classes, given their classes. Raises ADDPError."""
    options, network = task.options, task.network
    assert isinstance(network, TokenPredictor | ADDP)
    with_images = isinstance(network, ADDP) and options.images is not None
    crops = task.crops("val") if with_images else None
    if options.tokens is None:
        raise ConfigError(
            "held-out metrics of a predictor or ADDP need --tokens, a token data set of held-out "
            "images"
        )
    if options.train_tokens is None:
        raise ConfigError("held-out metrics of a predictor or ADDP need --train-tokens")
    held_out = TokenLoader(options.tokens, global_batch=1, seed=0)
    ids = torch.from_numpy(held_out.all_tokens().astype(np.int64))
    frequencies = TokenLoader(options.train_tokens, global_batch=1, seed=0).code_frequencies()
    classes = None
    if tells_classes(task.config):
        label_of = torch.tensor(labels_in(network.classes, held_out.manifest.classes))
        classes = label_of[held_out.all_labels()].to(task.device)
    frozen = load_frozen(task.config).to(task.device) if isinstance(network, ADDP) else None
    predict, codes = _predictor_of(network, frozen), task.config.geometry.codebook_size
    on_device = ids.to(task.device)
    draws = task.over(
        "masked tokens",
        _MASK_DRAWS,
        lambda draw: _masked_nats(predict, on_device, classes, draw, codes),
    )
    if task.collectives.rank:
        return Outcome({})
    entropy = sum(nats for nats, _ in draws) / sum(tokens for _, tokens in draws)
    unigram = _unigram_cross_entropy(frequencies, ids)
    metrics = {"cross_entropy": entropy, "unigram": unigram, "gain": unigram - entropy}
    if classes is not None:
        metrics["classes_told"] = len(network.classes)
    if frozen is None or crops is None:
        return Outcome(metrics)
    shown = crops.read(0).on(task.device)[:_SHOWN]
    noisy = _noisy_images(frozen, shown).cpu()
    grid = image_grid(noisy, columns=len(_RATIOS) + 2, zoom=zoom_of(task.image_size))
    return Outcome(metrics, {"x_t": png(grid)})


def _unigram_cross_entropy(frequencies: NDArray[np.float64], ids: Tensor) -> float:
    """Return what held-out ids cost under the code frequencies (K,) of the training set, in nats a
    token."""
    return float(-np.log(frequencies)[ids.numpy().ravel()].mean())


@torch.no_grad()
def _masked_nats(
    predict: Predict, ids: Tensor, classes: Tensor | None, draw: int, codes: int
) -> tuple[float, int]:
    """Predict ids (N, L) at the positions that mask_t masks.

    classes: the labels that are told, (N,), or None. draw: which of the `_MASK_DRAWS` mask ratios,
    each drawn by the law of the training. predict(ids, masks, classes) -> logits (B, L, K).
    Returns the nats that the ids cost, by a softmax over the K codes, and the number of tokens,
    both summed over all images.
    """
    total, count = 0.0, 0
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        masks = denoising_masks(_SEED, draw, start, len(batch), batch.shape[1])
        masks = masks._replace(
            mask_t=masks.mask_t.to(ids.device), mask_next=masks.mask_next.to(ids.device)
        )
        told = None if classes is None else classes[start : start + _BATCH]
        logits = predict(batch, masks, told)[..., :codes]
        nats = F.cross_entropy(logits.float().transpose(1, 2), batch, reduction="none")
        total += float(nats[masks.mask_t].sum())
        count += int(masks.mask_t.sum())
    return total, count


def _predictor_of(network: TokenPredictor | ADDP, frozen: FrozenNetworks | None) -> Predict:
    """Return a function (ids, masks, classes) -> logits. ADDP sees x_t, decoded as in training."""
    if isinstance(network, TokenPredictor):
        return lambda ids, masks, classes: network.logits(ids, masks.mask_t, classes=classes)
    assert frozen is not None
    return lambda ids, masks, classes: network.logits(
        frozen(ids, masks, classes).x_t, ids, masks.mask_t, ids.shape[1] - masks.masked, classes
    )


@torch.no_grad()
def _noisy_images(frozen: FrozenNetworks, pixels: Tensor) -> Tensor:
    """Make what ADDP sees of images (N, 3, H, W) in [0, 1], as rows of a grid.

    Returns (N * columns, 3, H, W). A row is the image, x_t at falling shares of unreliable tokens,
    and the reconstruction.
    """
    ids = frozen.tokenizer.encode(pixels)
    length = ids.shape[1]
    ranks = torch.from_numpy(orders(0, "report", 0, len(ids), length)).argsort(1).to(ids.device)
    columns = [pixels]
    for ratio in _RATIOS:
        count = masked_count(length, ratio)
        columns.append(frozen(ids, DenoisingMasks(ranks < count, ranks < count, count)).x_t)
    columns.append(frozen.tokenizer.decode(frozen.tokenizer.embed(ids)))
    return torch.stack(columns, 1).flatten(0, 1)
