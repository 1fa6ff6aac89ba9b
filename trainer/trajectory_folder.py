"""A trajectory folder: what the reference did in some optimizer steps, and what came of them.

weights.safetensors      the start of all three networks, under official names
trajectory.safetensors   tokens, masks, learning rates, losses, norms, and the final tensors
meta.json                sizes and hyperparameters
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.documents import MIB, parse_record, read_file
from model.errors import ConfigError, WeightsError
from model.networks import Sizes, outline
from model.official_keys import from_official, match_official
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import read_state
from trainer.config.reading import checked_config
from trainer.config.schema import RunConfig

Share = Annotated[float, Field(ge=0, lt=1)]


class _Transformer(BaseModel):
    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    decoder_depth: PositiveInt
    decoder_heads: PositiveInt


class _Meta(_Transformer):
    """`meta.json`: the trained network's sizes, those of the frozen ones, the optimizer."""

    image_size: PositiveInt
    codebook_size: PositiveInt
    code_dim: PositiveInt
    channels: PositiveInt
    channel_multipliers: tuple[PositiveInt, ...]
    residual_blocks: PositiveInt
    norm_groups: PositiveInt = 32
    predictor: _Transformer
    accumulation: PositiveInt
    micro: PositiveInt
    clip: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    betas: tuple[Share, Share]
    eps: float = Field(gt=0)
    label_smoothing: Share


class Trajectory(NamedTuple):
    """What the reference did in S steps, and what came of it.

    token_indices: (S, rows, L) int64. mask_t, mask_t_next: the same, bool, True = masked.
    learning_rate, loss, grad_norm: (S,) float64. final: the trained tensors after the last step, by
    name.
    """

    token_indices: Tensor
    mask_t: Tensor
    mask_t_next: Tensor
    learning_rate: Tensor
    loss: Tensor
    grad_norm: Tensor
    final: dict[str, Tensor]


_DTYPES = dict.fromkeys(("mask_t", "mask_t_next"), torch.bool) | {"token_indices": torch.int64}


class TrajectoryFolder:
    """The folder of one trajectory, and what it holds. The constructor raises WeightsError where it
    is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = read_file(path / "meta.json", MIB, WeightsError)
            self.meta = parse_record(
                _Meta, meta, f"{path / 'meta.json'} describes no trajectory", WeightsError
            )
            tensors = load_file(path / "trajectory.safetensors")
            single = {
                n: tensors[n].to(_DTYPES.get(n, torch.float64))
                for n in Trajectory._fields
                if n != "final"
            }
        except (OSError, SafetensorError, KeyError) as error:
            raise WeightsError(
                f"{path} is no trajectory (meta.json, trajectory.safetensors, "
                f"weights.safetensors): {error}"
            ) from error
        final = {
            key.removeprefix("final."): value
            for key, value in tensors.items()
            if key.startswith("final.")
        }
        self.steps = Trajectory(**single, final=final)
        self._check_shapes()

    @property
    def rows(self) -> int:
        """Samples of one optimizer step."""
        return self.meta.accumulation * self.meta.micro

    def _check_shapes(self) -> None:
        steps, tokens = self.steps.loss.numel(), self.config(1, "fp32", 1).geometry.tokens
        for name in Trajectory._fields[:-1]:
            shape = (steps, self.rows, tokens) if name in _DTYPES else (steps,)
            held = tuple(getattr(self.steps, name).shape)
            if held != shape:
                raise WeightsError(
                    f"{self.path}: {name} has the shape {held}, and meta.json asks for {shape}"
                )
        if not steps or not self.steps.final:
            raise WeightsError(
                f"{self.path} holds {steps} steps and {len(self.steps.final)} final tensors"
            )
        masked = self.steps.mask_t.view(steps, -1, self.meta.micro, tokens).sum(-1)
        if bool((masked != masked[..., :1]).any()):
            raise WeightsError(
                f"{self.path}: mask_t masks different numbers of tokens in one micro batch"
            )

    def config(self, world_size: int, precision: str, stage: int) -> RunConfig:
        """The run that trains as the reference did, in micro batches that lie within the
        reference's: only there have all samples equally many masked tokens. Raises ConfigError
        where the ranks cannot share a step's samples."""
        m = self.meta
        if self.rows % world_size:
            raise ConfigError(
                f"a step of {self.path} has {self.rows} samples, which {world_size} ranks cannot "
                "share"
            )
        sizes = {"dropout": 0.0}
        return checked_config(
            {
                "objective": "addp",
                "precision": precision,
                "zero_stage": stage,
                "tokenizer": {
                    "sizes": m.model_dump(
                        include={
                            "image_size",
                            "channels",
                            "channel_multipliers",
                            "residual_blocks",
                            "code_dim",
                            "codebook_size",
                            "norm_groups",
                        }
                    )
                },
                "predictor": {"sizes": m.predictor.model_dump() | sizes},
                "addp": {"sizes": m.model_dump(include=set(_Transformer.model_fields)) | sizes},
                "batch": {
                    "global_batch": self.rows,
                    "micro": math.gcd(m.micro, self.rows // world_size),
                },
                "optimizer": m.model_dump(include={"betas", "eps", "weight_decay", "clip"}),
                "label_smoothing": m.label_smoothing,
            },
            str(self.path / "meta.json"),
        )

    def networks(self, config: RunConfig, kind: type[ADDP]) -> tuple[FrozenNetworks, ADDP]:
        """The frozen networks and the trained one, as they are before the first step. Raises
        WeightsError."""
        path, geometry = self.path / "weights.safetensors", config.geometry
        state, _ = read_state(path)
        tokenizer = from_official("tokenizer", Sizes(config.tokenizer.sizes, None), state, path)
        predictor = from_official("predictor", Sizes(config.predictor.sizes, geometry), state, path)
        assert isinstance(tokenizer, VQTokenizer) and isinstance(predictor, TokenPredictor)
        wanted = outline("addp", Sizes(config.addp.sizes, geometry), len(state), path)
        own = match_official("addp", wanted, state, path)
        addp = kind(geometry, config.addp.sizes)
        addp.load_state_dict(own)
        return FrozenNetworks(tokenizer, predictor), addp
