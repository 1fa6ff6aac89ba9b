"""What a run costs: operations of one image, parameters, memory of each ZeRO stage, bytes of a
checkpoint.

Operations are counted by PyTorch's own counter over the real networks on the meta device, where
nothing is computed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TokenizerConfig, TransformerConfig
from model.masking import masked_count, ratio_table
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.engine.optimizers import STATE
from trainer.engine.precision import MODES

_PEAKS = {  # dense bf16 operations a second, from the makers' data sheets
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "V100": 125e12,
}
# Bytes over width that a block keeps of a token for its backward pass: 34 in 16 bits (arXiv
# 2205.05198, eq. 2); in float32 twice as many; in mixed precision the two norms' inputs, 2 of the
# 34 each, are float32.
_SAVED_PER_TOKEN = {("float32", "float32"): 68, ("float32", "bfloat16"): 38}
_SAVED_IN_16_BITS = 34


class Operations(NamedTuple):
    """Floating-point operations (two a multiply-add) of one image: forward and backward of what is
    trained, forward of what is frozen."""

    trained: float
    frozen: float

    @property
    def total(self) -> float:
        return self.trained + self.frozen


class Memory(NamedTuple):
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    ema: float
    frozen: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def device_peak() -> float | None:
    """bf16 operations a second of this process's GPU, where it is a known one."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


class _Sizes(NamedTuple):
    """Of a configuration what its networks depend on."""

    objective: str
    method: Literal["finetune", "linear"]
    tokenizer: TokenizerConfig
    predictor: TransformerConfig
    addp: TransformerConfig

    @classmethod
    def of(cls, config: RunConfig) -> _Sizes:
        return cls(
            config.objective,
            config.classifier.method,
            config.tokenizer.sizes,
            config.predictor.sizes,
            config.addp.sizes,
        )

    def with_blocks(self, depth: int, decoder_depth: int) -> _Sizes:
        new = {"depth": depth, "decoder_depth": decoder_depth}
        return self._replace(
            predictor=self.predictor.model_copy(update=new), addp=self.addp.model_copy(update=new)
        )


def _networks(sizes: _Sizes) -> tuple[nn.Module, list[nn.Module]]:
    """(trained, frozen), on the meta device."""
    geometry = Geometry.of(sizes.tokenizer)
    with torch.device("meta"):
        tokenizer = VQTokenizer(sizes.tokenizer)
        if sizes.objective == "tokenizer":
            return tokenizer, []
        if sizes.objective == "mage":
            return TokenPredictor(geometry, sizes.predictor), []
        if sizes.objective == "classify":
            classes = tuple(map(str, range(1000)))
            return Classifier(
                geometry, ClassifierConfig(encoder=sizes.addp, classes=classes, method=sizes.method)
            ), []
        predictor = TokenPredictor(geometry, sizes.predictor)
        return ADDP(geometry, sizes.addp), [predictor, tokenizer.decoder]


def parameters(config: RunConfig) -> tuple[int, int]:
    """(trained, frozen)."""
    return _parameters(_Sizes.of(config))


@lru_cache(maxsize=8)
def _parameters(sizes: _Sizes) -> tuple[int, int]:
    trained, frozen = _networks(sizes)
    still = sum(p.numel() for p in trained.parameters() if not p.requires_grad)
    return _size(trained), still + sum(_size(network) for network in frozen)


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _mean_visible(geometry: Geometry) -> int:
    ratios, weights = ratio_table()
    mean = sum(r * w for r, w in zip(ratios, weights, strict=True))
    return geometry.tokens - masked_count(geometry.tokens, mean)


def image_operations(config: RunConfig) -> Operations:
    """At the mean mask ratio. Of a tokenizer: its encoder and decoder, without the losses' own
    networks.

    The blocks of a transformer are alike: what one more costs is counted, and the others are
    multiplied.
    """
    sizes = _Sizes.of(config)
    least = _counted(sizes.with_blocks(1, 1))
    if sizes.objective == "tokenizer":
        return least
    deeper, wider = _counted(sizes.with_blocks(2, 1)), _counted(sizes.with_blocks(1, 2))
    trained = sizes.predictor if sizes.objective == "mage" else sizes.addp
    return Operations(
        *(
            at_least
            + (of.depth - 1) * (deep - at_least)
            + (of.decoder_depth - 1) * (wide - at_least)
            for of, at_least, deep, wide in zip(
                (trained, sizes.predictor), least, deeper, wider, strict=True
            )
        )
    )


@lru_cache(maxsize=8)
def _counted(sizes: _Sizes) -> Operations:
    trained, _ = _networks(sizes)
    trained.train()
    with torch.device("meta"):
        if sizes.objective == "tokenizer":
            assert isinstance(trained, VQTokenizer)
            size = sizes.tokenizer.image_size
            with FlopCounterMode(display=False) as counter:
                _backward(trained.decoder(trained.encoder(torch.empty(1, 3, size, size))))
            return Operations(counter.get_total_flops(), 0)
        g = Geometry.of(sizes.tokenizer)
        ids = torch.empty(1, g.tokens, dtype=torch.int64)
        mask = torch.empty(1, g.tokens, dtype=torch.bool)
        if sizes.objective == "mage":
            assert isinstance(trained, TokenPredictor)
            kept = torch.empty(1, g.tokens // 2, dtype=torch.int64)
            with FlopCounterMode(display=False) as counter:
                _backward(trained.logits(ids, mask, kept))
            return Operations(counter.get_total_flops(), 0)
        images = torch.empty(1, 3, g.image_size, g.image_size)
        if isinstance(trained, Classifier):
            with FlopCounterMode(display=False) as counter:
                _backward(trained.eval().logits(images))
            return Operations(counter.get_total_flops(), 0)
        assert isinstance(trained, ADDP)
        with FlopCounterMode(display=False) as counter:
            _backward(trained.logits(images, ids, mask, _mean_visible(g)))
        predictor = TokenPredictor(g, sizes.predictor)
        tokenizer = VQTokenizer(sizes.tokenizer)
        codes = torch.empty(1, tokenizer.config.code_dim, g.grid, g.grid)
        with FlopCounterMode(display=False) as frozen, torch.no_grad():
            predictor.logits(ids, mask)
            predictor.logits(ids, mask)
            tokenizer.decode(codes)
    return Operations(counter.get_total_flops(), frozen.get_total_flops())


def _backward(result: torch.Tensor) -> None:
    torch.autograd.backward(result.sum())


def rank_memory(config: RunConfig, stage: int, world_size: int) -> Memory:
    """An estimate: what the training's own tensors take, without buffers of communication and the
    allocator's waste. Offloaded parts lie in host memory."""
    trained, frozen = parameters(config)
    mode = MODES[config.precision]
    divided = world_size if stage >= 1 else 1
    # Float32 weights are the optimizer's own where ZeRO does not copy its share of them.
    master = 0 if mode.width == 4 and stage in (0, 3) else 4
    states = len(STATE[config.optimizer.name])
    return Memory(
        # Mixed precision keeps what it casts until the backward pass, whole in every stage.
        weights=mode.width * trained / (world_size if stage == 3 else 1)
        + (2 * trained if mode.mixed else 0),
        gradients=4 * trained / (world_size if stage >= 2 else 1),
        optimizer=(master + 4 * states) * trained / divided,
        ema=4 * trained / world_size if config.ema_decay is not None else 0,
        frozen=(4 if mode.frozen == "float32" else 2) * frozen,
        activations=activation_bytes(config) * config.batch.micro,
    )


def activation_bytes(config: RunConfig) -> float:
    """Of one image between forward and backward, with memory-efficient attention. Of a tokenizer:
    0, not estimated; of a linear probe next to nothing, and 0 here."""
    if config.objective == "tokenizer":
        return 0
    sizes: TransformerConfig = (
        config.predictor.sizes if config.objective == "mage" else config.addp.sizes
    )
    tokens = config.geometry.tokens
    lengths = (
        (1 + tokens // 2, 1 + tokens)
        if config.objective == "mage"
        else (1 + tokens, 1 + tokens + _mean_visible(config.geometry))
    )
    if config.objective == "classify":
        if config.classifier.method == "linear":
            return 0
        lengths = (1 + tokens, 0)
    mode = MODES[config.precision]
    saved = _SAVED_PER_TOKEN.get((mode.weights, mode.products), _SAVED_IN_16_BITS)
    total = 0.0
    for length, depth in zip(lengths, (sizes.depth, sizes.decoder_depth), strict=True):
        recomputed = -(-depth // config.recompute_every) if config.recompute_every else 0
        total += length * sizes.dim * (saved * (depth - recomputed) + mode.width * recomputed)
    if config.objective == "classify":
        return total
    logits = (
        3 * 4 * tokens * config.geometry.vocabulary
    )  # in float32: logits, log-softmax, gradient
    return total + logits


def checkpoint_bytes(config: RunConfig) -> float:
    """Of all ranks' files together."""
    trained, _ = parameters(config)
    kinds = 1 + len(STATE[config.optimizer.name]) + (config.ema_decay is not None)
    return 4.0 * kinds * trained
