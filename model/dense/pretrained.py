"""What a backbone begins with: an encoder of ours, or any ViT of timm's layout, as the files of MAE
and DINOv2 have it.

A file's tensors are taken one and all, or the file is refused. timm's names are ours, except:

    norm_pre.*                     tokenizer_norm.*
    pos_embed without class token  its row for the class token is zero
    norm.*, fc_norm.*, head.*      left out: a backbone has no norm after its blocks, and no head
    mask_token, decoder_*          left out: what MAE and DINOv2 need for pre-training only
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from model.classifier import Classifier
from model.config import Geometry, TransformerConfig
from model.dense.backbone import Backbone
from model.dense.config import BackboneConfig
from model.documents import first_problem
from model.encoder import Encoder
from model.errors import ConfigError, WeightsError
from model.official import import_official
from model.official_sizes import Untold, own_tensors
from model.weights import load_network, read_kind, read_state, stated_sizes

_LEFT_OUT = re.compile(r"(norm|fc_norm|head|mask_token|decoder_\w+)(\.|$)")
_LEARNED_FOR_DENSE = re.compile(r"blocks\.\d+\.(attn\.rel_pos_[hw]|ls[12]\.gamma)")
_HEAD_WIDTH = 64  # of all published ViTs from Tiny to Large


class Pretrained(NamedTuple):
    """A pre-trained encoder. geometry, encoder: its sizes. tokenizer_norm, layer_scale: whether it
    has them. tensors: by the names of a `Backbone`. path: the file's, for messages."""

    geometry: Geometry
    encoder: TransformerConfig
    tokenizer_norm: bool
    layer_scale: bool
    tensors: Mapping[str, Tensor]
    path: Path


def read_pretrained(path: Path | str, heads: int | None = None) -> Pretrained:
    """Read the encoder of a file: ADDP's or a classifier's of ours, an official ADDP file, or a ViT
    of timm's layout, as `.safetensors` or as a pickle, of which no code is run.

    heads: of attention, which neither timm's layout nor the official one tells; one for each 64
    channels if None. Raises WeightsError for a file that is unreadable, or that is no ViT which a
    backbone can be.
    """
    path = Path(path)
    state, metadata = read_state(path)
    if stated_sizes(metadata, path) or own_tensors("addp", state) is not None:
        return _of_encoder(path, "kind" in metadata, heads)
    return _of_timm(state, heads, path)


def _of_encoder(path: Path, ours: bool, heads: int | None) -> Pretrained:
    network = (
        load_network(path, read_kind(path))
        if ours
        else import_official(path, Untold(heads=heads)).networks["addp"]
    )
    if not isinstance(network, Encoder):
        raise WeightsError(
            f"{path} holds a {network.kind}, but a backbone begins with an ADDP network, a "
            "classifier or a ViT of timm's layout"
        )
    config = network.config.encoder if isinstance(network, Classifier) else network.config
    wanted = ("cls_token", "pos_embed", "patch_embed.", "tokenizer_norm.", "blocks.")
    tensors = {key: t for key, t in network.state_dict().items() if key.startswith(wanted)}
    has_norm = "tokenizer_norm.weight" in tensors
    return Pretrained(network.geometry, config, has_norm, False, tensors, path)


def _of_timm(state: Mapping[str, Tensor], heads: int | None, path: Path) -> Pretrained:
    own = {key.replace("norm_pre.", "tokenizer_norm."): value for key, value in state.items()}
    tensors = {key: value.float() for key, value in own.items() if not _LEFT_OUT.match(key)}
    if any(key.startswith(("reg", "dist_token")) for key in tensors):
        raise WeightsError(
            f"{path} has register or distillation tokens, which a backbone does not have; give a "
            "ViT without them"
        )
    try:
        width, channels, patch, columns = tensors["patch_embed.proj.weight"].shape
        table, class_token = tensors["pos_embed"], tensors["cls_token"]
        grid = math.isqrt(table.shape[1])
        if grid**2 == table.shape[1]:
            tensors["pos_embed"] = torch.cat([torch.zeros_like(class_token), table], 1)
        depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
        geometry = Geometry(image_size=grid * patch, patch_size=patch)
        encoder = TransformerConfig(
            dim=width,
            depth=depth,
            heads=heads or max(1, width // _HEAD_WIDTH),
            decoder_heads=1,
            dropout=0,
        )
    except KeyError as error:
        raise WeightsError(
            f"{path} is no ViT of timm's layout: it has no {error}; its first keys: "
            f"{', '.join(list(state)[:3])}"
        ) from error
    except (ValueError, IndexError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        raise WeightsError(
            f"{path}: the sizes of its ViT cannot be told from its tensors ({reason})"
        ) from error
    if (channels, columns) != (3, patch):
        raise WeightsError(f"{path} has patches of {channels} x {patch} x {columns}, not of RGB")
    # timm leaves this bias out where `norm_pre` follows.
    tensors.setdefault("patch_embed.proj.bias", torch.zeros(width))
    return Pretrained(
        geometry,
        encoder,
        "tokenizer_norm.weight" in tensors,
        "blocks.0.ls1.gamma" in tensors,
        tensors,
        path,
    )


def take(backbone: Backbone, pretrained: Pretrained) -> None:
    """Give a backbone the weights of a pre-trained encoder.

    Relative positions, and factors of branches that the encoder lacks, keep their first values,
    with which they change nothing. The norm before the blocks is left out if the backbone has
    none. Raises WeightsError if anything else of the one is missing in the other, or is of another
    shape.
    """
    own = backbone.state_dict()
    given = dict(pretrained.tensors)
    if not backbone.config.tokenizer_norm:
        given = {key: t for key, t in given.items() if not key.startswith("tokenizer_norm.")}
    missing = [k for k in own if k not in given and not _LEARNED_FOR_DENSE.fullmatch(k)]
    strange = [k for k in given if k not in own]
    shapes = [k for k in given if k in own and given[k].shape != own[k].shape]
    problems = [
        f"{len(keys)} {what}, first: {keys[0]}"
        for keys, what in (
            (missing, "missing"),
            (strange, "not of this network"),
            (shapes, "of another shape"),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{pretrained.path} does not fit the backbone that is configured: {'; '.join(problems)}"
        )
    backbone.load_state_dict(own | given)


def configured(pretrained: Pretrained, config: BackboneConfig | None = None) -> BackboneConfig:
    """Return a backbone's config with the sizes of a pre-trained encoder. config: the rest of it;
    its first values if None. A norm before the blocks is kept if `config` says so and the encoder
    has one. Raises ConfigError if `config` names blocks that the encoder does not have."""
    config = config or BackboneConfig()
    values = {
        **dict(config),
        "encoder": pretrained.encoder.model_copy(update={"dropout": config.encoder.dropout}),
        "tokenizer_norm": config.tokenizer_norm and pretrained.tokenizer_norm,
        "layer_scale": config.layer_scale or pretrained.layer_scale,
    }
    try:
        return BackboneConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"no such backbone can be made of {pretrained.path}: {first_problem(error)}"
        ) from error
