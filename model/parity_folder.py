"""A parity folder: the reference's weights, inputs, outputs and sizes.

weights.safetensors   all three networks under official names
io.safetensors        inputs and outputs of each stage
meta.json             sizes, loss, norms of gradients, and how the reference generated
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.documents import MIB, Count, Record, first_problem, parse_record, read_file
from model.errors import WeightsError
from model.networks import Sizes
from model.official_keys import from_official
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import read_state


class ReferenceSizes(Record):
    """`config` of `meta.json`, in the reference's short names: p... of the predictor, d... of a
    decoder."""

    model_config = ConfigDict(extra="ignore")

    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    ddepth: PositiveInt
    dheads: PositiveInt
    pdim: PositiveInt
    pdepth: PositiveInt
    pheads: PositiveInt
    pddepth: PositiveInt
    pdheads: PositiveInt | None = None
    ch: PositiveInt
    mult: tuple[PositiveInt, ...]
    res_blocks: PositiveInt = 2
    zc: PositiveInt
    smooth: float = Field(0.1, ge=0, lt=1)


class ReferenceGeneration(Record):
    """`generation` of `meta.json`, in the reference's names."""

    num_iter: int = Field(gt=0, le=1000)
    schedule: str
    choice_temperature: float = Field(ge=0, le=1000)  # as `SamplingOptions` bounds it
    temperature: str | float
    mask_lengths: list[Count]


class Meta(Record):
    """`meta.json`: the sizes of the reference, and the numbers that it computed."""

    model_config = ConfigDict(extra="ignore")

    image_size: int = Field(gt=0, le=4096)
    loss: float
    grad_norms: dict[str, float]
    config: ReferenceSizes
    generation: ReferenceGeneration | None = None


class Tensors(dict[str, Tensor]):
    """The tensors of `io.safetensors`; a missing one raises WeightsError."""

    def __missing__(self, key: str) -> Tensor:
        raise WeightsError(f"io.safetensors of the parity folder has no {key}")


def read_folder(folder: Path) -> tuple[Meta, Tensors]:
    """Read `meta.json` and `io.safetensors`. Raises WeightsError for a folder that is none."""
    try:
        content = read_file(folder / "meta.json", MIB, WeightsError)
        meta = parse_record(Meta, content, f"{folder / 'meta.json'}", WeightsError)
        return meta, Tensors(load_file(folder / "io.safetensors"))
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{folder} is no parity folder (meta.json, io.safetensors, weights.safetensors): "
            f"{error}"
        ) from error


def build_networks(folder: Path, meta: Meta) -> tuple[FrozenNetworks, ADDP]:
    """Load the three networks from a folder, in the sizes of `meta.json`; the codebook's size is
    that of the weights. Raises WeightsError."""
    try:
        return _networks(folder / "weights.safetensors", meta)
    except ValidationError as error:
        raise WeightsError(
            f"{folder / 'meta.json'} states sizes that cannot be: {first_problem(error)}"
        ) from error


def _networks(weights: Path, meta: Meta) -> tuple[FrozenNetworks, ADDP]:
    """Load them as `build_networks` does. Raises pydantic's ValidationError, too."""
    c = meta.config
    state, _ = read_state(weights)
    codebook = state.get("vqgan.quantize.embedding.weight")
    if codebook is None or codebook.ndim != 2:
        raise WeightsError(f"{weights} has no codebook (vqgan.quantize.embedding.weight)")
    vq = TokenizerConfig(
        image_size=meta.image_size,
        channels=c.ch,
        channel_multipliers=c.mult,
        residual_blocks=c.res_blocks,
        code_dim=c.zc,
        codebook_size=codebook.shape[0],
    )
    geometry = Geometry.of(vq)
    predictor_sizes = TransformerConfig(
        dim=c.pdim,
        depth=c.pdepth,
        heads=c.pheads,
        decoder_depth=c.pddepth,
        decoder_heads=c.pdheads or c.pheads,
    )
    addp_sizes = TransformerConfig(
        dim=c.dim, depth=c.depth, heads=c.heads, decoder_depth=c.ddepth, decoder_heads=c.dheads
    )
    tokenizer = from_official("tokenizer", Sizes(vq, None), state, weights)
    predictor = from_official("predictor", Sizes(predictor_sizes, geometry), state, weights)
    addp = from_official("addp", Sizes(addp_sizes, geometry), state, weights)
    assert (
        isinstance(tokenizer, VQTokenizer)
        and isinstance(predictor, TokenPredictor)
        and isinstance(addp, ADDP)
    )
    return FrozenNetworks(tokenizer, predictor), addp.eval()
