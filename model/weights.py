"""Weights in and out: our self-describing safetensors files, and the official VQGAN, MAGE and ADDP
files."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TokenizerConfig, TransformerConfig
from model.documents import first_problem, parse_json
from model.errors import WeightsError
from model.files import whole_file
from model.precision import dtype_name
from model.predictor import TokenPredictor
from model.vq import VQTokenizer

Network = VQTokenizer | TokenPredictor | ADDP | Classifier
Config = TokenizerConfig | TransformerConfig | ClassifierConfig
CONFIG: dict[str, type[Config]] = {
    "tokenizer": TokenizerConfig,
    "predictor": TransformerConfig,
    "addp": TransformerConfig,
    "classifier": ClassifierConfig,
}

# Where a network's keys lie in an official file, most specific first, and what else such a file may
# hold.
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

# What our exports in the official layout state beside the tensors: metadata of a .safetensors, an
# entry of a .pth.
OFFICIAL_FORMAT, STATED = "addp-official-1", "addp"


class Sizes(NamedTuple):
    """Of one network. geometry: None for a tokenizer, which has its own."""

    config: Config
    geometry: Geometry | None


class LoadReport(NamedTuple):
    """What became of the keys of an official file."""

    loaded: list[str]
    unused: list[str]


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # Official files carry their training arguments; Namespace is a plain record and runs no
        # code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is no readable weights file ({type(error).__name__} {error})".splitlines()[0]
        ) from error
    stated = content.get(STATED) if isinstance(content, dict) else None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not isinstance(stated, dict) or stated.get("format") != OFFICIAL_FORMAT:
        return state, {}
    return state, {str(key): str(value) for key, value in stated.items()}


def read_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file or a pickle (`weights_only`, wrapper
    `model`/`state_dict` removed).

    The metadata of a pickle is what our own exports state beside the tensors; of others it is
    empty.

    Raises WeightsError where the file is missing or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}; check the path in the configuration or on the "
            "command line"
        )
    if path.suffix != ".safetensors":
        return _read_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}") from error


def read_kind(path: Path | str) -> str:
    """Kind of the network in one of our files. Raises WeightsError for others."""
    _, metadata = read_state(path)
    if "kind" not in metadata:
        raise WeightsError(
            f"{path} is no file of ours: it does not say its kind; see `addp import`"
        )
    return metadata["kind"]


def stated_sizes(metadata: Mapping[str, str], path: Path | str) -> dict[str, Sizes]:
    """The sizes that a file of ours states, by kind of network; none for a file of others. Raises
    WeightsError."""
    try:
        if "kind" in metadata:
            of = {
                "config": _described(metadata, "config", path),
                "geometry": _described(metadata, "geometry", path)
                if "geometry" in metadata
                else None,
            }
            content = {metadata["kind"]: of}
        elif metadata.get("format") == OFFICIAL_FORMAT:
            content = _described(metadata, "networks", path)
        else:
            return {}
        return {
            kind: Sizes(
                CONFIG[kind].model_validate(sizes["config"]),
                Geometry.model_validate(sizes["geometry"]) if kind != "tokenizer" else None,
            )
            for kind, sizes in content.items()
        }
    except ValidationError as error:
        raise WeightsError(f"{path} states sizes that cannot be: {first_problem(error)}") from error
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} has a description that cannot be read ({type(error).__name__} {error})"
        ) from error


def _described(metadata: Mapping[str, str], key: str, path: Path | str) -> dict[str, Any]:
    return parse_json(metadata[key], f"{path}: its description ({key})", WeightsError)


def outline(kind: str, sizes: Sizes, tensors: int, path: Path | str) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a network's tensors, on the meta device: what a description asks
    for costs no memory before a file is seen to hold it. tensors: how many it holds. Raises
    WeightsError for sizes that they cannot have.
    """
    config = sizes.config
    config = config.encoder if isinstance(config, ClassifierConfig) else config
    blocks = (
        config.residual_blocks * len(config.channel_multipliers)
        if isinstance(config, TokenizerConfig)
        else config.depth + config.decoder_depth * (kind != "classifier")
    )
    if blocks > tensors:
        raise WeightsError(
            f"{path} states {blocks} blocks of its {kind}, but holds {tensors} tensors"
        )
    try:
        with torch.device("meta"):
            return build(kind, *sizes).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise WeightsError(
            f"{path} states sizes of its {kind} that no tensor can have: {sizes}"
        ) from error


def matching_outline(
    kind: str, sizes: Sizes, shapes: Mapping[str, Sequence[int]], path: Path | str
) -> dict[str, Tensor]:
    """As `outline`, for a network whose tensors have these shapes by name. Raises WeightsError
    where they are not those of a network of these sizes."""
    expected = outline(kind, sizes, len(shapes), path)
    different = [
        name
        for name in {*expected, *shapes}
        if name not in expected
        or name not in shapes
        or tuple(shapes[name]) != tuple(expected[name].shape)
    ]
    if different:
        raise WeightsError(
            f"{path} contradicts its own description: {len(different)} tensors are missing, too "
            f"many or of another shape, first: {min(different)}"
        )
    return expected


def check_values(
    own: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path | str
) -> None:
    """That weights are finite numbers, of which none loses a part where it is copied. expected: of
    `outline`.

    Raises WeightsError that names the first tensor that is no such one.
    """
    for key, value in own.items():
        wanted = expected[key]
        if (
            value.is_floating_point() != wanted.is_floating_point()
            or value.is_complex()
            or value.is_quantized
        ):
            raise WeightsError(
                f"{path}: {key} is of the type {dtype_name(value.dtype)}, but "
                f"{dtype_name(wanted.dtype)} is needed; these are no weights of such a network"
            )
        if value.is_meta:  # only shapes are looked at
            continue
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise WeightsError(
                f"{path}: {key} holds NaN or infinite values; the training that wrote it had "
                "diverged"
            )


def load_official(network: Network, path: Path | str) -> LoadReport:
    """Fill `network` from an official file (or one of the same keys); strict, apart from keys known
    to be unused.

    Raises WeightsError that names the first missing, unexpected and misshapen keys.
    """
    own, report = match_official(network.kind, network.state_dict(), read_state(path)[0], path)
    network.load_state_dict(own)
    return report


def from_official(kind: str, sizes: Sizes, state: dict[str, Tensor], path: Path | str) -> Network:
    """A network of these sizes from the tensors that were read from an official file. Raises
    WeightsError."""
    own, _ = match_official(kind, outline(kind, sizes, len(state), path), state, path)
    network = build(kind, *sizes)
    network.load_state_dict(own)
    return network


def match_official(
    kind: str, wanted: Mapping[str, Tensor], state: dict[str, Tensor], path: Path | str
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors of a network from an official file's. wanted: as of `outline`. Raises
    WeightsError."""
    prefixes = _PREFIXES[kind]
    prefix = next(p for p in prefixes if not p or any(key.startswith(p) for key in state))
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    outside = [
        key for key in state if not key.startswith(prefix)
    ]  # other networks of the same file
    expected = {key: value.shape for key, value in wanted.items()}
    if (positions := own.get(_POSITIONS)) is not None and _POSITIONS in expected:
        own[_POSITIONS] = positions[
            : expected[_POSITIONS][0]
        ]  # MAGE's table always has 257 rows; the rest is not used
    unused_pattern = re.compile(_UNUSED[kind])
    missing = [key for key in expected if key not in own]
    unused = [key for key in own if key not in expected]
    unexpected = [key for key in unused if not unused_pattern.fullmatch(key)]
    misshapen = [
        f"{key} (file {tuple(own[key].shape)}, network {tuple(shape)})"
        for key, shape in expected.items()
        if key in own and own[key].shape != shape
    ]
    if missing or unexpected or misshapen:
        problems = [
            ("missing", missing),
            ("not of this network", unexpected),
            ("of another shape", misshapen),
        ]
        named = "; ".join(
            f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for what, keys in problems if keys
        )
        raise WeightsError(f"{path} does not fit the {kind} of the configured size: {named}")
    own = {key: own[key] for key in expected}
    check_values(own, wanted, path)
    return own, LoadReport(list(expected), [*(prefix + key for key in unused), *outside])


def fingerprint(network: nn.Module) -> str:
    """sha256 over names, shapes and float32 values: equal for the same weights in any file format
    or on any device."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_network(network: Network, path: Path | str) -> None:
    """Write one self-describing safetensors file (kind, sizes and geometry in its metadata),
    atomically."""
    path = Path(path)
    metadata = {
        "format": "addp-network-1",
        "kind": network.kind,
        "config": network.config.model_dump_json(),
    }
    if not isinstance(network, VQTokenizer):
        metadata["geometry"] = network.geometry.model_dump_json()
    write_safetensors(
        {key: value.detach() for key, value in network.state_dict().items()}, path, metadata
    )


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Whole or not at all. Raises OSError."""
    with whole_file(path) as partial:
        save_file(
            {key: value.cpu().contiguous() for key, value in state.items()}, partial, metadata
        )


def load_network(
    path: Path | str, kind: str, *, config: Config | None = None, geometry: Geometry | None = None
) -> Network:
    """A network from a file of ours, which states its sizes, or from an official one of the given
    sizes.

    kind: "tokenizer", "predictor", "addp" or "classifier". Raises WeightsError where the file holds
    another kind, or another image geometry than `geometry`.
    """
    state, metadata = read_state(path)
    stated = stated_sizes(metadata, path)
    if not stated:
        if config is None:
            raise WeightsError(
                f"{path} does not say its sizes (an official file?): state them in the "
                "configuration"
            )
        return from_official(kind, Sizes(config, geometry), state, path)
    if kind not in stated:
        raise WeightsError(f"{path} holds a {', a '.join(stated)}, but a {kind} is needed here")
    config, own_geometry = stated[kind]
    if geometry is not None and own_geometry is not None and geometry != own_geometry:
        raise WeightsError(f"{path} was made for {own_geometry!r}, but {geometry!r} is needed here")
    if "kind" not in metadata:
        return from_official(kind, stated[kind], state, path)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    expected = matching_outline(kind, stated[kind], shapes, path)
    check_values(state, expected, path)
    network = build(kind, config, own_geometry)
    network.load_state_dict(state)
    return network


def load_tokenizer(path: Path | str) -> VQTokenizer:
    """From our own file, or the official one (`vqgan_jax_strongaug.ckpt`), whose sizes are the
    published ones; in eval mode. Raises WeightsError for anything else."""
    network = load_network(path, "tokenizer", config=TokenizerConfig())
    assert isinstance(network, VQTokenizer)
    return network.eval()


def build(kind: str, config: Config, geometry: Geometry | None = None) -> Network:
    """A network with fresh weights."""
    if kind == "tokenizer":
        assert isinstance(config, TokenizerConfig)
        return VQTokenizer(config)
    assert geometry is not None
    if isinstance(config, ClassifierConfig):
        return Classifier(geometry, config)
    assert isinstance(config, TransformerConfig)
    return TokenPredictor(geometry, config) if kind == "predictor" else ADDP(geometry, config)
