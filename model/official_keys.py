"""The names of tensors in official files: which belong to which network, and which are not used.

An official ADDP file holds all three networks, told apart by prefixes:

    (none)             the ADDP network
    token_predictor.   MAGE, the predictor
    vqgan.             the tokenizer

MAGE's file holds the predictor without a prefix, and its own copy of the tokenizer under `vqgan.`;
the VQGAN's file holds the tokenizer without a prefix. The files also hold leftovers of MAE, which
no network here has: they are known by name, and everything else unknown is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.errors import WeightsError
from model.networks import Network, Sizes, build, check_values, outline
from model.positions import TABLES

# The prefixes of a network's names, most specific first.
_PREFIXES = {"tokenizer": ("vqgan.", ""), "predictor": ("token_predictor.", ""), "addp": ("",)}
_MAE_LEFTOVERS = r"(decoder_pos_embed|decoder_pred\.(weight|bias))"
_UNUSED = {
    "tokenizer": r"(quantize\.(?!embedding\.weight).*)",
    "predictor": rf"({_MAE_LEFTOVERS}|cls_token|pos_embed|mask_token"
    r"|patch_embed\.proj\.(weight|bias)"
    r"|token_emb\.position_ids|vqgan\..*)",
    "addp": rf"({_MAE_LEFTOVERS}|pos_token_embed|pos_mask_embed|vqgan\..*|token_predictor\..*)",
}
_POSITIONS = "token_emb.position_embeddings.weight"


def from_official(kind: str, sizes: Sizes, state: dict[str, Tensor], path: Path | str) -> Network:
    """Build a network of these sizes from the tensors of an official file. state: all of the file's
    tensors. path: for messages. Raises WeightsError."""
    own = match_official(kind, outline(kind, sizes, len(state), path), state, path)
    network = build(kind, *sizes)
    network.load_state_dict(own)
    return network


def match_official(
    kind: str, wanted: Mapping[str, Tensor], state: dict[str, Tensor], path: Path | str
) -> dict[str, Tensor]:
    """Return the tensors of a network from an official file's, under our names.

    wanted: an `outline` of the network. state: all of the file's tensors. Raises WeightsError that
    names the first missing, unexpected and misshapen tensors, and those that are no finite numbers.
    """
    prefixes = _PREFIXES[kind]
    prefix = next(p for p in prefixes if not p or any(key.startswith(p) for key in state))
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    expected = {key: value.shape for key, value in wanted.items()}
    if (positions := own.get(_POSITIONS)) is not None and _POSITIONS in expected:
        # MAGE's table always has 257 rows; the rest is not used.
        own[_POSITIONS] = positions[: expected[_POSITIONS][0]]
    unused_pattern = re.compile(_UNUSED[kind])
    missing = [key for key in expected if key not in own]
    unexpected = [key for key in own if key not in expected and not unused_pattern.fullmatch(key)]
    misshapen = [key for key, shape in expected.items() if key in own and own[key].shape != shape]
    if missing or unexpected or misshapen:
        shapes = [
            f"{key} (file {tuple(own[key].shape)}, network {tuple(expected[key])})"
            for key in misshapen
        ]
        problems = [
            ("missing", missing),
            ("not of this network", unexpected),
            ("of another shape", shapes),
        ]
        named = "; ".join(
            f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for what, keys in problems if keys
        )
        if not missing and not unexpected and set(misshapen) <= set(TABLES):
            named += f"; these are positions: `addp import {path} OUT --resize PIXELS` resizes them"
        raise WeightsError(f"{path} does not fit the {kind} of the configured size: {named}")
    own = {key: own[key] for key in expected}
    check_values(own, wanted, path)
    return own
