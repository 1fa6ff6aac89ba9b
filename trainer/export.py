"""A run's network, or a network's file, in the formats that others read."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from model.addp import ADDP
from model.classifier import Classifier
from model.dense.detector import Detector
from model.dense.segmenter import Segmenter
from model.documents import printable
from model.encoder import Encoder
from model.errors import ConfigError
from model.networks import Network
from model.official import official_metadata, official_state, timm_state, write_state
from model.weights import load_network, read_kind, save_network
from trainer.checkpointing.catalog import open_catalog
from trainer.config.schema import RunConfig
from trainer.evaluation.trained import frozen_predictor, frozen_tokenizer, run_config
from trainer.formats import Dtype, Format, Weights
from trainer.run_folder import write_json


class Source(NamedTuple):
    """A network to export. step, config: the checkpoint's and the run's; None where the network
    comes from a file."""

    network: Network
    name: str
    step: int | None
    config: RunConfig | None


def open_network(source: str, step: int | None, weights: Weights) -> Source:
    """The network of a run, or of a file of ours.

    source: a run folder, the store that a run uploads to, or a file. step: of the checkpoint; None
    for the newest valid one. Raises ADDPError.
    """
    path = Path(source)
    if path.is_file():
        return Source(load_network(path, read_kind(path)), path.name, None, None)
    catalog = open_catalog(source)
    number = catalog.newest_valid() if step is None else catalog.known(step)
    network, _ = catalog.trained(number, weights)
    return Source(network, catalog.name, number, run_config(source))


def export(
    source: Source,
    form: Format,
    out: Path,
    tokenizer_norm: Literal["drop", "keep"],
    tokenizer: Path | None,
    dtype: Dtype = "float32",
) -> Path:
    """Write a network as a new file or folder, whole or not at all, and return its path.

    tokenizer_norm: whether the "timm" format keeps the normalisation for tokens. tokenizer: a copy
    of the frozen tokenizer, where it does not lie where the run's configuration says. dtype: of the
    values, and of those of the frozen networks. Raises ConfigError where `out` exists, or the
    format does not fit the network, or `dtype` its values.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give a name that is free")
    network = _stored(source.network, dtype)
    if form == "timm":
        if not isinstance(network, Encoder):
            raise ConfigError(
                f"{source.name} is a {network.kind}; "
                "only an ADDP network or a classifier is a plain ViT"
            )
        write_state(timm_state(network, tokenizer_norm), out)
        return out
    if form == "addp":
        networks = {
            kind: _stored(own, dtype) for kind, own in _with_frozen(source, tokenizer).items()
        }
        write_state(official_state(networks), out, official_metadata(networks))
        return out
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    if form == "native":
        save_network(network, partial / "network.safetensors")
        write_json(partial / "config.json", _description(source))
    else:
        save_network(network, partial / "model.safetensors")
        if isinstance(network, ADDP) and source.config is not None:
            lack = "the folder has no predictor, which helps to complete images"
            for kind, frozen in _frozen(source.config, tokenizer, lack).items():
                save_network(_stored(frozen, dtype), partial / f"{kind}.safetensors")
        write_json(partial / "config.json", {"model_type": network.kind, **_description(source)})
        (partial / "README.md").write_text(model_card(source))
    partial.rename(out)
    return out


def _stored(network: Network, dtype: Dtype) -> Network:
    """Return a network with its values in the type that a file holds them in. Raises ConfigError
    where one is too large for it."""
    if dtype == "float32":
        return network
    stored = copy.deepcopy(network).to(getattr(torch, dtype))
    for name, value in stored.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ConfigError(
                f"{dtype} cannot hold {name} of the {network.kind}, whose values are too large; "
                "export it in float32"
            )
    return stored


def _frozen(config: RunConfig, tokenizer: Path | None, lack: str) -> dict[str, Network]:
    """Return the frozen networks of an ADDP run by kind; none of a run that has none, as one on
    masked pixels.

    lack: what is said on standard error where the predictor is not on this machine. It is then left
    out.
    """
    if config.tokenizer.weights is None and tokenizer is None:
        return {}
    networks: dict[str, Network] = {"tokenizer": frozen_tokenizer(config, tokenizer, None)}
    predictor = frozen_predictor(config)
    if predictor is not None:
        networks["predictor"] = predictor
    else:
        print(f"{config.predictor.weights} is not on this machine: {lack}", file=sys.stderr)
    return networks


def _with_frozen(source: Source, tokenizer: Path | None) -> dict[str, Network]:
    """The networks of a file in the official layout, by kind: an ADDP network lies together with
    its frozen ones."""
    networks: dict[str, Network] = {source.network.kind: source.network}
    if isinstance(source.network, Classifier | Segmenter | Detector):
        raise ConfigError(
            f"{source.name} is a {source.network.kind}, for which there is no official layout; "
            f"use --format {'timm' if isinstance(source.network, Classifier) else 'native'}"
        )
    config = source.config
    if isinstance(source.network, ADDP) and config is not None:
        lack = (
            "the file has no token_predictor.*, which the official code needs to go on pre-training"
        )
        networks |= _frozen(config, tokenizer, lack)
    return networks


def _description(source: Source) -> dict[str, Any]:
    network = source.network
    geometry = getattr(network, "geometry", None)
    return {
        "kind": network.kind,
        "config": network.config.model_dump(mode="json"),
        "geometry": geometry.model_dump(mode="json") if geometry is not None else None,
        "step": source.step,
        "run": source.name,
    }


def model_card(source: Source) -> str:
    """The README.md of a Hugging Face folder. The code in it loads the folder's files."""
    network = source.network
    size = network.geometry.image_size if isinstance(network, Encoder) else None
    lines = [
        "---",
        "library_name: addp",
        "tags: [image-feature-extraction, unconditional-image-generation]",
        "---",
        "",
        f"# {network.kind} of {source.name}"
        + (f", step {source.step}" if source.step is not None else ""),
        "",
        "A network of ADDP (*Learning General Representations for Image Recognition and Generation "
        "with Alternating Denoising Diffusion Process*, ICLR 2024, arXiv 2306.05423).",
        "",
        f"- parameters: {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
    ]
    if size is not None:
        lines.append(
            f"- input: RGB in [0, 1], {size} x {size} pixels; the network normalises by itself"
        )
    if isinstance(network, ADDP) and network.classes:
        names = ", ".join(map(printable, network.classes))
        lines.append(f"- classes that it can be asked for: {names}")
    lines += [
        "- `model.safetensors` describes itself (kind, sizes and geometry in its metadata); "
        "`config.json` repeats it",
        "",
        "## Use",
        "",
        "```python",
        *(_use_of_addp(network, source) if isinstance(network, ADDP) else _use_of(network)),
    ]
    return "\n".join([*lines, "```", ""])


def _use_of_addp(network: ADDP, source: Source) -> list[str]:
    size = network.geometry.image_size
    lines = [
        "import numpy as np",
        "from model import load",
        "",
        'model = load(".")  # this folder',
        f"pictures = np.random.rand(2, {size}, {size}, 3)  # or files, Pillow images, tensors",
        "features = model.embed(pictures)",
        'print("features", features.shape)',
    ]
    if source.config is not None and source.config.tokenizer.weights is not None:
        lines.append("samples = model.generate(4)")
        lines.append('print("samples", len(samples), samples[0].size)')
    return lines


def _use_of(network: Network) -> list[str]:
    lines = [
        "import torch",
        "from model.weights import load_network",
        "",
        f'network = load_network("model.safetensors", "{network.kind}").eval()',
    ]
    if isinstance(network, Classifier):
        size = network.geometry.image_size
        lines += [
            f"images = torch.rand(2, 3, {size}, {size})",
            "logits = network.logits(images)",
            'print("logits", tuple(logits.shape))',
        ]
    return lines
