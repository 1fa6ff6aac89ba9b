"""The two steps that are compared, made of the same networks.

`ReferenceStep` does what the reference implementation does (github.com/ChangyaoTian/ADDP, whose
requirements pin torch 2.0.1): eagerly; images tokenised in the step; the predictor in two passes
with its dropout on; attention as a formula, with scores in float32 and their maximum subtracted;
SiLU as a product; NCHW; the loss over all positions in NCHW; AdamW with PyTorch's defaults, which
are a loop over tensors on CPUs and foreach on GPUs, then as now; and a wait for the loss in each
step. It does not divide its work between GPUs here. Not imitated: the head at the appended visible
tokens (0.2 % of its operations), float16 with a loss scale (bfloat16 stands for it), and the
meters of its loop. Masks lie on the device before either step begins.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model.addp
import model.encoder
import model.predictor
import model.transformer
import model.vq
from benchmarks.step.stages import Follower
from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.masking import DenoisingMasks, denoising_masks
from model.precision import keep_float32
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.engine.engine import Engine, start_distributed
from trainer.engine.optimizers import parameter_groups
from trainer.engine.precision import MODES
from trainer.objectives.addp import denoising_inputs, frozen_dtype
from trainer.timing import Stopwatch

_RATE = 1e-5  # learning rate of a step


class Networks(NamedTuple):
    """The three networks, with random weights, in training mode."""

    tokenizer: VQTokenizer
    predictor: TokenPredictor
    network: ADDP


def networks(
    config: RunConfig,
    device: torch.device,
    frozen: torch.dtype = torch.float32,
    trained: torch.dtype = torch.float32,
) -> Networks:
    """Make the networks of a run on a device. frozen, trained: the types of their weights."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    try:
        with device:
            torch.set_default_dtype(frozen)
            tokenizer = VQTokenizer(config.tokenizer.sizes)
            predictor = TokenPredictor(config.geometry, config.predictor.sizes)
            torch.set_default_dtype(trained)
            return Networks(tokenizer, predictor, ADDP(config.geometry, config.addp.sizes))
    finally:
        torch.set_default_dtype(usual)


class Step(Protocol):
    """One optimizer step of a variant."""

    device: torch.device

    def __call__(self, masks: DenoisingMasks) -> Any:
        """Take it. Returns whether the weights changed."""


def drawn_masks(config: RunConfig, draw: int, device: torch.device) -> DenoisingMasks:
    """Return the masks that a run draws, on the device."""
    masks = denoising_masks(0, draw, 0, config.batch.micro, config.geometry.tokens)
    return masks._replace(mask_t=masks.mask_t.to(device), mask_next=masks.mask_next.to(device))


class OurStep:
    """A run's step, made of what a run is made of: its engine, its objective's inputs."""

    def __init__(self, config: RunConfig, stages: Follower, accumulation: int = 1) -> None:
        _, world_size, self.device = start_distributed()
        self.config, self.accumulation = config, accumulation
        made = networks(config, self.device, frozen_dtype(config))
        shape = (config.batch.micro, config.geometry.tokens)
        self.ids = torch.randint(config.geometry.codebook_size, shape, device=self.device)
        self.frozen = FrozenNetworks(made.tokenizer, made.predictor)
        if config.compile == "on":
            _compile(self.frozen, made.network, config)
        self.engine = Engine(made.network, config, accumulation, world_size)
        follow_ours(self.frozen, made.network, stages)
        stages.follow(self.engine._engine, "backward", "backward")
        stages.follow(self.engine._engine, "step", "optimizer")

    def __call__(self, masks: DenoisingMasks) -> Any:
        smoothing = self.config.label_smoothing
        batches = (
            denoising_inputs(self.frozen, self.ids, masks, smoothing)
            for _ in range(self.accumulation)
        )
        return self.engine.optimizer_step(batches, _RATE, Stopwatch(False)).applied


def _compile(frozen: FrozenNetworks, network: ADDP, config: RunConfig) -> None:
    """Compile what a run with `compile: on` does; at the first step, which is not counted."""
    from model.compiling import compile_blocks, torch_compiler

    compiler = torch_compiler(deterministic=config.deterministic)
    frozen.use_compiler(compiler)
    compile_blocks(network, compiler)


def follow_ours(frozen: FrozenNetworks, network: ADDP, stages: Follower) -> None:
    """Follow the forward stages of our step: what of the frozen networks is not the predictor is
    the VQ decoder, what of the trained one is neither encoder nor loss is its decoder. Nothing that
    is compiled is touched."""
    stages.follow(frozen, "forward", "VQ decoder")
    stages.follow(frozen.predictor, "probabilities", "predictor")
    stages.follow(network, "forward", "decoder")
    stages.follow(network, "encode", "encoder")
    stages.follow(model.addp, "smoothed_cross_entropy", "loss")


class ReferenceStep:
    """A step as the reference takes it, in float32 or under autocast."""

    def __init__(self, config: RunConfig, stages: Follower, device: torch.device) -> None:
        keep_float32()  # the reference turns TF32 off, too
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # what OMP_NUM_THREADS says aside
        self.config, self.device = config, device
        self.forward = ReferenceForward(config, networks(config, device), stages)
        size = config.geometry.image_size
        self.images = torch.rand(config.batch.micro, 3, size, size, device=device)
        decay, betas = config.optimizer.weight_decay, config.optimizer.betas
        self.trained = [p for p in self.forward.made.network.parameters() if p.requires_grad]
        groups = parameter_groups(self.forward.made.network.named_parameters(), decay)
        self.optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=betas)
        stages.follow(self, "backward", "backward")
        stages.follow(self, "update", "optimizer")

    def __call__(self, masks: DenoisingMasks) -> bool:
        loss = self.forward(self.images, masks)
        finite = bool(loss.isfinite())  # its loop waits for the loss, too
        self.backward(loss)
        self.update()
        return finite

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        """Clip the gradients, and change the weights."""
        nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class ReferenceForward:
    """From images to the loss. From its making on, attention, dropout and SiLU of this process
    are the reference's."""

    def __init__(self, config: RunConfig, made: Networks, stages: Follower) -> None:
        self.config, self.made = config, made
        for frozen in made[:2]:
            frozen.requires_grad_(False)
        # `patch` refuses names that are not there.
        patch.object(model.transformer, "attention", explicit_attention).start()
        patch.object(model.vq, "_silu", lambda x: x * x.sigmoid()).start()
        for module in (model.encoder, model.predictor, model.transformer):
            patch.object(module, "dropout", F.dropout).start()
        stages.follow(made.tokenizer, "encode", "tokenisation")
        stages.follow(self, "predict", "predictor")
        stages.follow(made.tokenizer, "decode", "VQ decoder")
        stages.follow(made.network, "encode", "encoder")
        stages.follow(made.network, "decode", "decoder")
        stages.follow(self, "loss", "loss")

    def __call__(self, images: Tensor, masks: DenoisingMasks) -> Tensor:
        """Return the loss of images (B, 3, H, W)."""
        tokenizer, _, network = self.made
        mode = MODES[self.config.precision]
        dtype = getattr(torch, mode.products)
        with torch.autocast(images.device.type, dtype=dtype, enabled=mode.mixed):
            with torch.no_grad():
                ids = tokenizer.encode(images)
                soft = tokenizer.soft_embed(self.predict(ids, masks.mask_next))
                target = self.predict(ids, masks.mask_t)
                side = self.config.geometry.grid
                unreliable = masks.mask_t.view(-1, 1, side, side)
                x_t = tokenizer.decode(torch.where(unreliable, soft, tokenizer.embed(ids)))
            visible = ids.shape[1] - masks.masked
            logits = network.decode(network.encode(x_t), ids, masks.mask_t, visible)
            return self.loss(logits, target, masks.mask_t)

    def predict(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the probabilities of the codes, float32 (B, L, K)."""
        logits = self.made.predictor.logits(ids, mask)
        return logits[..., : self.config.geometry.codebook_size].float().softmax(-1)

    def loss(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over masked positions of the cross-entropy of logits (B, L, V)."""
        target = F.pad(target, (0, logits.shape[-1] - target.shape[-1]))
        side = self.config.geometry.grid
        # (B, V, h, w), as the reference has them
        grids = [x.unflatten(1, (side, side)).permute(0, 3, 1, 2) for x in (logits, target)]
        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(*grids, reduction="none", label_smoothing=smoothing).flatten(1)
        return (losses * mask).sum() / mask.sum()


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention as the reference writes it; arguments as those of `model.attention.attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5
    scores = scores - scores.max(-1, keepdim=True)[0]
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ v).transpose(1, 2)
