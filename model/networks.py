"""The kinds of networks, how one is built, and what its tensors must look like.

kind         network          sizes (config)      in which file
tokenizer    VQTokenizer      TokenizerConfig     the VQGAN's, and inside of MAGE's and ADDP's
predictor    TokenPredictor   TransformerConfig   MAGE's, and inside of ADDP's
addp         ADDP             TransformerConfig   ADDP's
classifier   Classifier       ClassifierConfig    ours only
segmenter    Segmenter        SegmenterConfig     ours only
detector     Detector         DetectorConfig      ours only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from model.addp import ADDP
from model.classifier import Classifier
from model.config import (
    ClassifierConfig,
    ConditionalConfig,
    Geometry,
    TokenizerConfig,
    TransformerConfig,
)
from model.dense.config import DetectorConfig, SegmenterConfig
from model.dense.detector import Detector
from model.dense.segmenter import Segmenter
from model.errors import WeightsError
from model.precision import dtype_name
from model.predictor import TokenPredictor
from model.shapes import shapes_only
from model.vq import VQTokenizer

Network = VQTokenizer | TokenPredictor | ADDP | Classifier | Segmenter | Detector
Config = TokenizerConfig | TransformerConfig | ClassifierConfig | SegmenterConfig | DetectorConfig
CONFIG: dict[str, type[Config]] = {
    "tokenizer": TokenizerConfig,
    "predictor": TransformerConfig,
    "addp": TransformerConfig,
    "classifier": ClassifierConfig,
    "segmenter": SegmenterConfig,
    "detector": DetectorConfig,
}


class Sizes(NamedTuple):
    """The sizes of one network. geometry: None for a tokenizer, whose config states its own."""

    config: Config
    geometry: Geometry | None


def stated_config(kind: str, values: Any) -> Config:
    """Return the sizes of a network as a file or a checkpoint states them. Raises pydantic's
    ValidationError."""
    conditional = (
        kind in ("predictor", "addp") and isinstance(values, Mapping) and "classes" in values
    )
    return (ConditionalConfig if conditional else CONFIG[kind]).model_validate(values)


def build(kind: str, config: Config, geometry: Geometry | None = None) -> Network:
    """Build a network of a kind with fresh weights. geometry: not needed for a tokenizer. Raises
    ConfigError if the package of a segmenter's or a detector's heads is missing."""
    if kind == "tokenizer":
        assert isinstance(config, TokenizerConfig)
        return VQTokenizer(config)
    assert geometry is not None
    if isinstance(config, ClassifierConfig):
        return Classifier(geometry, config)
    if isinstance(config, SegmenterConfig):
        return Segmenter(geometry, config)
    if isinstance(config, DetectorConfig):
        return Detector(geometry, config)
    assert isinstance(config, TransformerConfig)
    return TokenPredictor(geometry, config) if kind == "predictor" else ADDP(geometry, config)


def outline(kind: str, sizes: Sizes, tensors: int, path: Path | str) -> dict[str, Tensor]:
    """Return names, shapes and dtypes of a network's tensors, on the meta device: whatever sizes a
    file states, they cost no memory before the file is seen to hold them.

    tensors: how many tensors the file at `path` holds. Raises WeightsError for sizes that they
    cannot have.
    """
    config = sizes.config
    if isinstance(config, TokenizerConfig):
        blocks = config.residual_blocks * len(config.channel_multipliers)
    elif isinstance(config, TransformerConfig):
        blocks = config.depth + config.decoder_depth
    elif isinstance(config, ClassifierConfig):
        blocks = config.encoder.depth
    else:
        blocks = config.backbone.encoder.depth
    if blocks > tensors:
        raise WeightsError(
            f"{path} states {blocks} blocks of its {kind}, but holds {tensors} tensors"
        )
    try:
        with shapes_only():
            return build(kind, *sizes).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise WeightsError(
            f"{path} states sizes of its {kind} that no tensor can have: {sizes}"
        ) from error


def matching_outline(
    kind: str, sizes: Sizes, shapes: Mapping[str, Sequence[int]], path: Path | str
) -> dict[str, Tensor]:
    """Return the `outline` of a network whose tensors have these shapes, by name. Raises
    WeightsError if a network of these sizes has others."""
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
    """Check that weights are finite numbers of a type that loses nothing when it is copied.

    own: the weights. expected: an `outline` with the same names. Raises WeightsError that names the
    first tensor that is none.
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
