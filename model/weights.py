"""Files of weights: reading any of them, and writing our own.

Ours is a safetensors file that describes itself: kind, sizes and geometry of its network are in its
metadata. An official VQGAN, MAGE or ADDP file states no sizes; our exports in the official layout
state them beside the tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import Geometry, TokenizerConfig
from model.documents import first_problem, parse_json
from model.errors import WeightsError
from model.files import whole_file
from model.networks import (
    Config,
    Network,
    Sizes,
    build,
    check_values,
    matching_outline,
    stated_config,
)
from model.official_keys import from_official
from model.official_sizes import geometry_of_grid
from model.vq import VQTokenizer

# Our exports in the official layout state their sizes beside the tensors: in the metadata of a
# .safetensors, in the entry STATED of a .pth.
OFFICIAL_FORMAT, STATED = "addp-official-1", "addp"


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # Official files hold their training arguments in a Namespace, a plain record without code.
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
    """Read the tensors and the metadata of a `.safetensors` file or a pickle.

    A pickle runs no code (`weights_only`), and the wrapper `model` or `state_dict` is taken off.
    Its metadata is what our own exports state; for others it is empty. Raises WeightsError if the
    file is missing or unreadable.
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
    """Return the kind of the network in one of our files. Raises WeightsError for others."""
    _, metadata = read_state(path)
    if "kind" not in metadata:
        raise WeightsError(
            f"{path} is no file of ours: it does not say its kind; see `addp import`"
        )
    return metadata["kind"]


def stated_sizes(metadata: Mapping[str, str], path: Path | str) -> dict[str, Sizes]:
    """Return the sizes that a file of ours states, by kind of network; none for a file of others.
    metadata: as from `read_state`. Raises WeightsError."""
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
                stated_config(kind, sizes["config"]),
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


def fingerprint(network: nn.Module) -> str:
    """Return the sha256 of names, shapes and float32 values. It is the same for the same weights in
    any file format and on any device."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_network(network: Network, path: Path | str) -> None:
    """Write a file that describes itself, whole or not at all. Raises OSError."""
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
    """Write a safetensors file whole or not at all: the same bytes for the same tensors and
    metadata. Raises OSError."""
    with whole_file(path) as partial:
        save_file(
            {key: value.cpu().contiguous() for key, value in state.items()}, partial, metadata
        )
        if metadata:
            _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order. The library writes them in the order of a
    hash table, another in each process."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def load_network(
    path: Path | str,
    kind: str,
    *,
    config: Config | None = None,
    geometry: Geometry | None = None,
    any_size: bool = False,
) -> Network:
    """Load a network from a file of ours, which states its sizes, or from an official one, whose
    sizes are given.

    kind: "tokenizer", "predictor", "addp" or "classifier". config: needed for an official file.
    geometry: that the network must have; needed for an official file, except for a tokenizer.
    any_size: accept another image size than the geometry's; the network has the file's
    (`model.resizing` changes it). Raises WeightsError if the file is unreadable, holds another kind
    or geometry, or does not fit.
    """
    state, metadata = read_state(path)
    stated = stated_sizes(metadata, path)
    if not stated:
        if config is None:
            raise WeightsError(
                f"{path} does not say its sizes (an official file?): state them in the "
                "configuration"
            )
        if any_size and geometry is not None:
            geometry = geometry_of_grid(kind, state, geometry)
        return from_official(kind, Sizes(config, geometry), state, path)
    if kind not in stated:
        raise WeightsError(f"{path} holds a {', a '.join(stated)}, but a {kind} is needed here")
    config, own_geometry = stated[kind]
    if geometry is not None and own_geometry is not None and geometry != own_geometry:
        size = own_geometry.image_size
        only_size = geometry.model_copy(update={"image_size": size}) == own_geometry
        if not (only_size and any_size):
            way_out = f"; `addp import {path} OUT --resize {geometry.image_size}` resizes it"
            raise WeightsError(
                f"{path} was made for {own_geometry!r}, but {geometry!r} is needed here"
                + (way_out if only_size else "")
            )
    if "kind" not in metadata:
        return from_official(kind, stated[kind], state, path)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    expected = matching_outline(kind, stated[kind], shapes, path)
    check_values(state, expected, path)
    network = build(kind, config, own_geometry)
    network.load_state_dict(state)
    return network


def load_tokenizer(path: Path | str) -> VQTokenizer:
    """Load a tokenizer, in eval mode, from a file of ours or from the official one
    (`vqgan_jax_strongaug.ckpt`), which has the published sizes. Raises WeightsError for anything
    else."""
    network = load_network(path, "tokenizer", config=TokenizerConfig())
    assert isinstance(network, VQTokenizer)
    return network.eval()
