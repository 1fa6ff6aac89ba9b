"""The official files whole: sizes read from the tensors, import into our networks, export in the official layout; and a
plain ViT under timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.classifier import Classifier
from model.config import UNUSED_CLASS_IDS, Geometry, TokenizerConfig, TransformerConfig
from model.encoder import Encoder
from model.errors import WeightsError
from model.weights import Config, Network, build, fill_official, read_state

_PREFIX = {"tokenizer": "vqgan.", "predictor": "token_predictor.", "addp": ""}
_HEAD_WIDTH = 64  # of the encoders, Base and Large
_DECODER_HEADS = 16


def import_official(path: Path, heads: int | None, decoder_heads: int | None, image_size: int) -> dict[str, Network]:
    """Every network of an official ADDP, MAGE or VQGAN file, by kind.

    heads, decoder_heads: which no tensor tells; the published ones when None. image_size: of a tokenizer that stands
    alone. Raises WeightsError.
    """
    state, _ = read_state(path)
    geometry: Geometry | None = None
    networks: dict[str, Network] = {}
    for kind in ("addp", "predictor", "tokenizer"):
        own = _own(kind, state)
        if own is None:
            continue
        try:
            if kind == "tokenizer":
                config: Config = _tokenizer_sizes(own, geometry.image_size if geometry else image_size)
            else:
                config = _transformer_sizes(own, heads, decoder_heads)
                geometry = geometry or _geometry(own, image_size)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{path}: the sizes of its {kind} cannot be told from its tensors ({error})") from error
        network = build(kind, config, geometry)
        fill_official(network, state, path)
        networks[kind] = network
    if not networks:
        raise WeightsError(f"{path} holds no network of ADDP, MAGE or the VQGAN; its first keys: {list(state)[:3]}")
    return networks


def official_state(networks: Mapping[str, Network]) -> dict[str, Tensor]:
    """The tensors of networks, by kind, under the names of one official ADDP file."""
    return {
        _PREFIX[kind] + key: value.detach().cpu().contiguous()
        for kind, network in networks.items()
        for key, value in network.state_dict().items()
    }


def timm_state(encoder: Encoder, tokenizer_norm: Literal["drop", "keep"]) -> dict[str, Tensor]:
    """An encoder, or a classifier with its head, under the names of timm's `vit_base_patch16`.

    drop: without `tokenizer_norm`, as the reference fine-tunes; the features are then not the pre-trained ones before
    some fine-tuning. keep: it becomes `norm_pre` of `pre_norm=True`, where timm has no bias of the patch embedding: it
    is added to the positions, and the features are the same.
    """
    state = {key: value.detach().cpu().clone() for key, value in encoder.state_dict().items()}
    wanted: tuple[str, ...] = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    if isinstance(encoder, Classifier):
        wanted = (*wanted, "fc_norm.", "head.")
    plain = {key: value for key, value in state.items() if key.startswith(wanted)}
    before = {key: value for key, value in state.items() if key.startswith("tokenizer_norm.")}
    if tokenizer_norm == "keep" and before:
        plain |= {key.replace("tokenizer_norm.", "norm_pre."): value for key, value in before.items()}
        plain["pos_embed"][:, 1:] += plain.pop("patch_embed.proj.bias")
    return plain


def _own(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A network's tensors without prefix; None where the file has none of it."""
    marker = {
        "addp": "decoder_pos_mask_embed", "predictor": "token_emb.word_embeddings.weight",
        "tokenizer": "quantize.embedding.weight",
    }[kind]  # fmt: skip
    for prefix in (_PREFIX[kind], ""):
        if prefix + marker in state:
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return None


def _count(state: dict[str, Tensor], pattern: str) -> int:
    found = [int(m[1]) for key in state if (m := re.match(pattern, key))]
    return max(found) + 1 if found else 0


def _transformer_sizes(state: dict[str, Tensor], heads: int | None, decoder_heads: int | None) -> TransformerConfig:
    dim = state["norm.weight"].shape[0]
    return TransformerConfig(
        dim=dim, depth=_count(state, r"blocks\.(\d+)\."), heads=heads or max(1, dim // _HEAD_WIDTH),
        decoder_depth=_count(state, r"decoder_blocks\.(\d+)\."), decoder_heads=decoder_heads or _DECODER_HEADS,
    )  # fmt: skip


def _geometry(state: dict[str, Tensor], image_size: int) -> Geometry:
    words = state["token_emb.weight" if "token_emb.weight" in state else "token_emb.word_embeddings.weight"]
    grid = round((state["decoder_pos_embed_learned"].shape[1] - 1) ** 0.5)
    patch = state["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in state else image_size // grid
    return Geometry(image_size=grid * patch, patch_size=patch, codebook_size=words.shape[0] - UNUSED_CLASS_IDS - 1)


def _tokenizer_sizes(state: dict[str, Tensor], image_size: int) -> TokenizerConfig:
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    channels = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    codes, width = state["quantize.embedding.weight"].shape
    return TokenizerConfig(
        image_size=image_size, channels=channels, channel_multipliers=tuple(w // channels for w in widths),
        residual_blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\."), code_dim=width, codebook_size=codes,
    )  # fmt: skip


def write_state(state: dict[str, Tensor], path: Path) -> None:
    """`.safetensors`, or a `.pth` that wraps the tensors in `model`, as the official files do; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, partial)
    else:
        torch.save({"model": state}, partial)
    partial.replace(path)
