"""Whole official files: import into our networks, with sizes read from the tensors, and export in
the official layout; also export of a plain ViT under timm's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from model.classifier import Classifier
from model.documents import first_problem
from model.encoder import Encoder
from model.errors import WeightsError
from model.files import whole_file
from model.networks import Network
from model.official_keys import from_official
from model.official_sizes import PREFIX, Unsaid, Untold, all_sizes, own_tensors
from model.vq import VQTokenizer
from model.weights import OFFICIAL_FORMAT, STATED, read_state, stated_sizes, write_safetensors


class Imported(NamedTuple):
    """The networks of a file, by kind. guesses: a sentence for each size that was assumed."""

    networks: dict[str, Network]
    guesses: list[str]


def import_official(path: Path, given: Untold = Untold()) -> Imported:  # noqa: B008 - it is immutable
    """Import every network of an official ADDP, MAGE or VQGAN file, or of a file of ours.

    Sizes that the file states must agree with its tensors and with `given`. What neither says is
    guessed: it is the published size, where that fits. Raises WeightsError if the file is at fault,
    ConfigError if what is given is.
    """
    state, metadata = read_state(path)
    stated = stated_sizes(metadata, path)
    held = {kind: own for kind in PREFIX if (own := own_tensors(kind, state)) is not None}
    if not held:
        raise WeightsError(
            f"{path} holds no network of ADDP, MAGE or the VQGAN; its first keys: {list(state)[:3]}"
        )
    if strange := set(stated) - set(held):
        raise WeightsError(f"{path} states sizes of a {strange.pop()} that it does not hold")
    unsaid = Unsaid(path, given, held)
    try:
        sizes = all_sizes(held, stated, unsaid)
    except ValidationError as error:
        raise WeightsError(
            f"{path} cannot have a {error.title} of these sizes: {first_problem(error)}"
        ) from error
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path}: the sizes of its networks cannot be told from its tensors ({error})"
        ) from error
    unsaid.settle()
    networks = {kind: from_official(kind, own, state, path) for kind, own in sizes.items()}
    return Imported(networks, unsaid.guesses)


def official_state(networks: Mapping[str, Network]) -> dict[str, Tensor]:
    """Return the tensors of networks, given by kind, under the names of one official ADDP file."""
    return {
        PREFIX[kind] + key: value.detach().cpu().contiguous()
        for kind, network in networks.items()
        for key, value in network.state_dict().items()
    }


def timm_state(encoder: Encoder, tokenizer_norm: Literal["drop", "keep"]) -> dict[str, Tensor]:
    """Return an encoder, or a classifier with its head, under the names of timm's
    `vit_base_patch16`.

    tokenizer_norm: "drop" leaves it out, as the reference fine-tunes; until then, the features are
    not the pre-trained ones. "keep" makes it `norm_pre` of a timm model with `pre_norm=True`. That
    model has no bias in its patch embedding, so the bias is added to the positions, and the
    features are the same.
    """
    state = {key: value.detach().cpu().clone() for key, value in encoder.state_dict().items()}
    wanted: tuple[str, ...] = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    if isinstance(encoder, Classifier):
        wanted = (*wanted, "fc_norm.", "head.")
    plain = {key: value for key, value in state.items() if key.startswith(wanted)}
    before = {key: value for key, value in state.items() if key.startswith("tokenizer_norm.")}
    if tokenizer_norm == "keep" and before:
        plain |= {
            key.replace("tokenizer_norm.", "norm_pre."): value for key, value in before.items()
        }
        plain["pos_embed"][:, 1:] += plain.pop("patch_embed.proj.bias")
    return plain


def official_metadata(networks: Mapping[str, Network]) -> dict[str, str]:
    """Return the sizes of networks, given by kind, which no tensor of the official layout tells, as
    metadata for `write_state`."""
    content = {
        kind: {
            "config": network.config.model_dump(mode="json"),
            "geometry": None
            if isinstance(network, VQTokenizer)
            else network.geometry.model_dump(mode="json"),
        }
        for kind, network in networks.items()
    }
    return {"format": OFFICIAL_FORMAT, "networks": json.dumps(content)}


def write_state(
    state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a `.safetensors`, or a `.pth` that wraps the tensors in `model`, as the official files
    do; whole or not at all.

    metadata: in a `.pth`, an entry beside `model`, which the official code ignores. Raises OSError.
    """
    if path.suffix == ".safetensors":
        write_safetensors(state, path, metadata)
        return
    with whole_file(path) as partial:
        torch.save({"model": state} | ({STATED: metadata} if metadata else {}), partial)
