"""Sizes of the networks, as published and small, and the geometry that they share: a patch of the
transformers is a token of the tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from model.documents import Settings, show

# The vocabulary of the official networks, V = K + 1001 ids:
#
#     0 .. K-1          codes
#     K .. K+999        classes: not used by the official networks, but for K + 76 (1100 for
#                       K = 1024), which the predictor reads in the class slot
#     K+1000            the mask
UNUSED_CLASS_IDS = 1000
CLASS_SLOT_OFFSET = 76

# Far beyond any network that can be trained. They bound arithmetic, and networks that are made
# without values.
LARGEST_IMAGE = 8192  # pixels of a side
_MOST_TOKENS = 65_536  # of an image
_MOST_CODES = 1 << 16
_MOST_BLOCKS = 256
MOST_HEADS = 1024
WIDEST = 32_768


def _named_by_ids(codes: Any) -> Any:
    """Say why there is a bound; the field's `le` would not."""
    if isinstance(codes, int) and codes > _MOST_CODES:
        raise ValueError(
            f"{codes} codes are more than the {_MOST_CODES} that token shards can name, whose ids "
            "have 16 bits"
        )
    return codes


_Codes = Annotated[int, BeforeValidator(_named_by_ids)]


class _Sizes(Settings):
    """Frozen sizes. A `size` key takes the values of a named size; other keys override them."""

    @model_validator(mode="before")
    @classmethod
    def _apply_named_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "size" not in values:
            return values
        values = dict(values)
        name = values.pop("size")
        if not isinstance(name, str) or name not in SIZES[cls.__name__]:
            raise ValueError(f"no size {show(name)}; there are {', '.join(SIZES[cls.__name__])}")
        return {**SIZES[cls.__name__][name], **values}


class TokenizerConfig(_Sizes):
    """The VQ tokenizer (ADDP section 3.1; the MaskGIT VQGAN)."""

    image_size: int = Field(
        256, gt=0, le=LARGEST_IMAGE, description="side of the square images, pixels"
    )
    channels: int = Field(
        128,
        gt=0,
        le=WIDEST,
        description="width of the highest resolution; a multiple of `norm_groups`",
    )
    channel_multipliers: tuple[Annotated[int, Field(gt=0, le=256)], ...] = Field(
        (1, 1, 2, 2, 4),
        min_length=1,
        max_length=10,
        description="width of each level over `channels`",
    )
    residual_blocks: int = Field(2, gt=0, le=_MOST_BLOCKS, description="residual blocks a level")
    code_dim: int = Field(256, gt=0, le=WIDEST, description="Dz, width of a code")
    codebook_size: _Codes = Field(1024, gt=0, le=_MOST_CODES, description="K, number of codes")
    norm_groups: int = Field(
        32,
        gt=0,
        le=WIDEST,
        description="groups of each GroupNorm; few keep a narrow net from normalising every "
        "channel alone",
    )

    @model_validator(mode="after")
    def _divisible(self) -> TokenizerConfig:
        if self.channels % self.norm_groups:
            raise ValueError(
                f"channels = {self.channels} must be a multiple of norm_groups = {self.norm_groups}"
            )
        if self.image_size % self.stride:
            raise ValueError(
                f"image_size = {self.image_size} is no multiple of the stride {self.stride}"
            )
        _check_tokens(self.tokens)
        return self

    @property
    def stride(self) -> int:
        """Return the pixels of a token's side: 2 ** (levels - 1)."""
        return 1 << (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Return h = w, the side of the square token grid."""
        return self.image_size // self.stride

    @property
    def tokens(self) -> int:
        """Return L, the tokens of one image."""
        return self.grid**2


class TransformerConfig(_Sizes):
    """The ADDP network and the token predictor: a ViT encoder and a ViT decoder."""

    dim: int = Field(768, gt=0, le=WIDEST, description="D, network width")
    depth: int = Field(12, gt=0, le=_MOST_BLOCKS, description="encoder blocks")
    heads: int = Field(12, gt=0, le=MOST_HEADS, description="encoder heads")
    decoder_depth: int = Field(8, gt=0, le=_MOST_BLOCKS, description="decoder blocks")
    decoder_heads: int = Field(16, gt=0, le=MOST_HEADS, description="decoder heads")
    positions: Literal["normal", "sincos"] = Field(
        "normal",
        description="start of the learned positions: N(0, 0.02) as published, or sines (short runs "
        "learn faster)",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of attention, projections and embeddings"
    )

    @model_validator(mode="after")
    def _divisible(self) -> TransformerConfig:
        for name, heads in (("heads", self.heads), ("decoder_heads", self.decoder_heads)):
            if self.dim % heads:
                raise ValueError(f"dim = {self.dim} is no multiple of {name} = {heads}")
        return self


class ConditionalConfig(TransformerConfig):
    """An ADDP network, or a predictor, that learned classes: class i has the id K + i of the
    vocabulary."""

    classes: tuple[str, ...] = Field(
        min_length=1, max_length=UNUSED_CLASS_IDS, description="names, in the order of the labels"
    )


class ClassifierConfig(Settings):
    """An encoder with a head for classes (ADDP section 4.2)."""

    encoder: TransformerConfig = TransformerConfig()
    classes: tuple[str, ...] = Field(min_length=1, description="names, in the order of the logits")
    method: Literal["finetune", "linear"] = Field(
        "finetune", description="all is trained, or a linear head only"
    )
    tokenizer_norm: bool = Field(
        False, description="keep the norm before the blocks, which the reference leaves out"
    )


class TokenizerLossConfig(Settings):
    """The terms of tokenizer training (model/tokenizer_training.py)."""

    reconstruction: Literal["l1", "l2"] = Field(
        "l2", description="distance of the reconstruction to the image"
    )
    codebook: Literal["ema", "gradient"] = Field(
        "ema", description="moving averages, or the codebook loss's gradient"
    )
    ema_decay: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="decay of code usage and (ema) of code vectors, per micro batch",
    )
    commitment: float = Field(
        0.25, ge=0, le=1e6, description="weight of the encoder's distance to its code"
    )
    revive_every: int = Field(
        20, gt=0, le=10**9, description="micro batches between revivals of dead codes"
    )
    revive_below: float = Field(
        0.05, ge=0, le=1, description="a code is dead below this share of the mean usage"
    )
    perceptual: float = Field(
        0.0, ge=0, le=1e6, description="weight of the feature distance (EfficientNet-Lite0)"
    )
    adversarial: float = Field(
        0.0, ge=0, le=1e6, description="weight of the patch discriminator's verdict"
    )
    adversarial_start: int = Field(
        0, ge=0, le=10**12, description="micro batches before the adversarial term counts"
    )


class MaskedPixelsConfig(Settings):
    """The masking and the loss of masked pixels (model/masked_pixels.py)."""

    masked: float = Field(
        0.75, gt=0, lt=1, description="share of the patches that the encoder does not see"
    )
    normalised: bool = Field(
        True, description="whether the pixels of each patch are normalised before they are compared"
    )


class Geometry(Settings):
    """What the networks share: image, grid and vocabulary."""

    image_size: int = Field(256, gt=0, le=LARGEST_IMAGE)
    patch_size: int = Field(16, gt=0, le=LARGEST_IMAGE)
    codebook_size: _Codes = Field(1024, gt=0, le=_MOST_CODES)

    @model_validator(mode="after")
    def _divisible(self) -> Geometry:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size = {self.image_size} is no multiple of patch_size = {self.patch_size}"
            )
        _check_tokens(self.tokens)
        return self

    @classmethod
    def of(cls, tokenizer: TokenizerConfig) -> Geometry:
        """Return the geometry of networks that work with this tokenizer."""
        return cls(
            image_size=tokenizer.image_size,
            patch_size=tokenizer.stride,
            codebook_size=tokenizer.codebook_size,
        )

    @property
    def grid(self) -> int:
        """Return h = w, the side of the grid of patches."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Return L = h * w, the patches, and so the tokens, of an image."""
        return self.grid**2

    @property
    def vocabulary(self) -> int:
        """Return V = K + 1000 + 1."""
        return self.codebook_size + UNUSED_CLASS_IDS + 1

    @property
    def mask_id(self) -> int:
        """Return the id that stands for a masked token."""
        return self.vocabulary - 1

    @property
    def class_slot_id(self) -> int:
        """Return the id that the predictor reads in the class slot."""
        return self.codebook_size + CLASS_SLOT_OFFSET


def _check_tokens(tokens: int) -> None:
    if tokens > _MOST_TOKENS:
        raise ValueError(
            f"{tokens} tokens an image are more than the {_MOST_TOKENS} that there may be; take a "
            "smaller image_size, or larger patches (a tokenizer with more levels)"
        )


_BASE = {"dim": 768, "depth": 12, "heads": 12, "decoder_depth": 8, "decoder_heads": 16}
_LARGE = {"dim": 1024, "depth": 24, "heads": 16, "decoder_depth": 8, "decoder_heads": 16}
_DEMO = {
    "dim": 128,
    "depth": 3,
    "heads": 4,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "dropout": 0.0,
    "positions": "sincos",
}
_TINY = {"dim": 32, "depth": 2, "heads": 2, "decoder_depth": 1, "decoder_heads": 2}

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "TokenizerConfig": {
        "published": {},
        "demo": {
            "image_size": 32,
            "channels": 32,
            "channel_multipliers": (1, 2, 2),
            "residual_blocks": 1,
            "code_dim": 32,
            "codebook_size": 128,
            "norm_groups": 4,
        },
        "tiny": {
            "image_size": 16,
            "channels": 32,
            "channel_multipliers": (1, 1, 1),
            "residual_blocks": 1,
            "code_dim": 8,
            "codebook_size": 16,
        },
    },
    "TransformerConfig": {"base": _BASE, "large": _LARGE, "demo": _DEMO, "tiny": _TINY},
}
