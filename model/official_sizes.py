"""Sizes of the networks in an official file: what its tensors tell, what the file states or the
user gives, and what is guessed.

    by tensors          tokenizer: channels, multipliers, blocks, code_dim, codebook_size
                        predictor, addp: dim, depth, decoder_depth, and the grid of patches
    stated, given, or   tokenizer: norm_groups
    else as published   predictor, addp: heads, decoder_heads
                        image_size, if no tensor tells both a patch and the grid
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from model.config import UNUSED_CLASS_IDS, Geometry, TokenizerConfig, TransformerConfig
from model.errors import ConfigError, WeightsError
from model.networks import Sizes

PREFIX = {"addp": "", "predictor": "token_predictor.", "tokenizer": "vqgan."}
_HEAD_WIDTH = 64  # of the encoders, Base and Large
_PATCH = "patch_embed.proj.weight"
_DECODER_HEADS, _NORM_GROUPS, _IMAGE_SIZE = 16, 32, 256  # of all published networks


class Untold(NamedTuple):
    """Sizes that no tensor tells, as a user gives them.

    heads, decoder_heads: of the ADDP network; the predictor has its own. norm_groups: of the
    tokenizer. image_size: in pixels, needed if no tensor tells a patch's size or the grid.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    predictor_heads: int | None = None
    predictor_decoder_heads: int | None = None
    norm_groups: int | None = None
    image_size: int | None = None


class Unsaid:
    """Answers what no tensor tells: with what is given, or else with a guess that is written down
    in `guesses`."""

    def __init__(self, path: Path, given: Untold, held: Mapping[str, Any]) -> None:
        self.path, self._given, self._asked = path, given, dict[str, str]()
        self.guesses: list[str] = []
        for kind, options in (
            ("addp", given[:2]),
            ("predictor", given[2:4]),
            ("tokenizer", given[4:5]),
        ):
            for name, value in zip(_OPTIONS[kind], options, strict=True):
                if value is not None and kind not in held:
                    raise ConfigError(
                        f"{_option(name)} is of no use: {path} holds no {kind}, but "
                        f"{', '.join(held)}"
                    )

    def agree(self, option: str, stated: int, source: str) -> None:
        """Raise ConfigError if another value is given than the stated one, by `source`."""
        value = getattr(self._given, option)
        if value is not None and value != stated:
            raise ConfigError(
                f"{_option(option)} {value} contradicts {self.path}: {source} {stated}; leave the "
                "option out"
            )

    def answer(
        self,
        kind: str,
        option: str,
        *,
        guess: int,
        published: str,
        fits: bool,
        unfit: str,
        instead: int,
    ) -> int:
        """Return the given value of an option, or else the published one.

        guess: the published value here. published: the rule, for people. fits: whether the guess is
        possible for this network; if not, `settle` will ask for the option, naming `unfit`, and
        `instead` serves until then.
        """
        value: int | None = getattr(self._given, option)
        if value is not None:
            return value
        what = f"{option.removeprefix(f'{kind}_')} of the {kind}"
        if not fits:
            self._asked[option] = f"{what} (the published {published} does not fit {unfit})"
            return instead
        rule = "as published" if published == str(guess) else f"{published}, as published"
        self.guesses.append(
            f"{what} is not in {self.path.name}; assumed {guess} ({rule}); give {_option(option)} "
            "if that is wrong"
        )
        return guess

    def settle(self) -> None:
        """Raise ConfigError if something must be given."""
        if self._asked:
            raise ConfigError(
                f"{self.path} does not say {', nor '.join(self._asked.values())}: give "
                + ", ".join(f"{_option(name)} N" for name in self._asked)
            )


_OPTIONS = {
    "addp": ("heads", "decoder_heads"),
    "predictor": ("predictor_heads", "predictor_decoder_heads"),
    "tokenizer": ("norm_groups",),
}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def all_sizes(
    held: Mapping[str, dict[str, Tensor]], stated: Mapping[str, Sizes], unsaid: Unsaid
) -> dict[str, Sizes]:
    """Return the sizes of each network of a file, by kind.

    held: the networks' tensors without prefix, by kind. stated: what the file itself says. Raises
    ConfigError or WeightsError; also pydantic's ValidationError, KeyError, ValueError, IndexError
    or ZeroDivisionError for tensors that belong to no such network.
    """
    told = {kind: _told(kind, own) for kind, own in held.items()}
    image_size = _image_size(held, told, stated, unsaid)
    sizes: dict[str, Sizes] = {}
    for kind, own in held.items():
        if kind in stated:
            config = stated[kind].config
            for name, value in told[kind].items():
                if (claimed := getattr(config, name)) != value:
                    raise WeightsError(
                        f"{unsaid.path} states {name} = {claimed} of its {kind}, but its tensors "
                        f"have {value}"
                    )
            for option in _OPTIONS[kind]:
                name = option.removeprefix("predictor_")
                unsaid.agree(option, getattr(config, name), f"it states {name} =")
            sizes[kind] = stated[kind]
        elif kind == "tokenizer":
            sizes[kind] = Sizes(_tokenizer(told[kind], image_size, unsaid), None)
        else:
            sizes[kind] = Sizes(_transformer(kind, told[kind], unsaid), _geometry(own, image_size))
    geometries = {
        kind: geometry or Geometry.of(config)  # type: ignore[arg-type]
        for kind, (config, geometry) in sizes.items()
    }
    if len(set(geometries.values())) > 1:
        raise WeightsError(
            f"the networks of {unsaid.path} do not belong together: "
            + ", ".join(f"{kind} ({geometry})" for kind, geometry in geometries.items())
        )
    return sizes


def own_tensors(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a network's tensors without prefix; None if the file does not hold it."""
    marker = {
        "addp": "decoder_pos_mask_embed",
        "predictor": "token_emb.word_embeddings.weight",
        "tokenizer": "quantize.embedding.weight",
    }[kind]
    for prefix in (PREFIX[kind], ""):
        if prefix + marker in state:
            return {
                key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)
            }
    return None


def geometry_of_grid(kind: str, state: dict[str, Tensor], geometry: Geometry) -> Geometry:
    """Return a geometry with the image size that the positions of a network in an official file
    tell. state: all tensors of the file. What tells nothing leaves the geometry as it is."""
    try:
        size = _grid(own_tensors(kind, state) or {}) * geometry.patch_size
        return Geometry.model_validate({**geometry.model_dump(), "image_size": size})
    except (KeyError, IndexError, ValueError, TypeError):
        return geometry


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """Count the modules that a pattern numbers from 0."""
    numbers = {int(m[1]) for key in state if (m := re.match(pattern, key))}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{pattern} is not numbered without gaps: {sorted(numbers)[:5]}")
    return len(numbers)


def _told(kind: str, own: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the tensors of a network tell of its configuration. Raises KeyError, ValueError,
    IndexError or ZeroDivisionError for tensors that are none of it."""
    if kind != "tokenizer":
        depths = (_count(own, r"blocks\.(\d+)\."), _count(own, r"decoder_blocks\.(\d+)\."))
        return {"dim": own["norm.weight"].shape[0], "depth": depths[0], "decoder_depth": depths[1]}
    levels = _count(own, r"encoder\.down\.(\d+)\.")
    channels = own["encoder.conv_in.weight"].shape[0]
    widths = [own[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    codes, width = own["quantize.embedding.weight"].shape
    return {
        "channels": channels,
        "channel_multipliers": tuple(w // channels for w in widths),
        "residual_blocks": _count(own, r"encoder\.down\.0\.block\.(\d+)\."),
        "code_dim": width,
        "codebook_size": codes,
    }


def _transformer(kind: str, told: dict[str, Any], unsaid: Unsaid) -> TransformerConfig:
    dim, (heads, decoder_heads) = told["dim"], _OPTIONS[kind]
    unfit = f"the width {dim}"
    return TransformerConfig(
        **told,
        heads=unsaid.answer(
            kind,
            heads,
            guess=dim // _HEAD_WIDTH,
            published=f"width / {_HEAD_WIDTH}",
            fits=not dim % _HEAD_WIDTH,
            unfit=unfit,
            instead=1,
        ),
        decoder_heads=unsaid.answer(
            kind,
            decoder_heads,
            guess=_DECODER_HEADS,
            published=str(_DECODER_HEADS),
            fits=not dim % _DECODER_HEADS,
            unfit=unfit,
            instead=1,
        ),
    )


def _tokenizer(told: dict[str, Any], image_size: int, unsaid: Unsaid) -> TokenizerConfig:
    channels = told["channels"]
    groups = unsaid.answer(
        "tokenizer",
        "norm_groups",
        guess=_NORM_GROUPS,
        published=str(_NORM_GROUPS),
        fits=not channels % _NORM_GROUPS,
        unfit=f"its {channels} channels",
        instead=1,
    )
    return TokenizerConfig(**told, image_size=image_size, norm_groups=groups)


def _grid(own: dict[str, Tensor]) -> int:
    return round((own["decoder_pos_embed_learned"].shape[1] - 1) ** 0.5)


def _image_size(
    held: Mapping[str, dict[str, Tensor]],
    told: Mapping[str, dict[str, Any]],
    stated: Mapping[str, Sizes],
    unsaid: Unsaid,
) -> int:
    """Return the image size of all networks of a file, in pixels: the stated one; the grid times
    the patch, if tensors tell both; or an answer."""
    for config, geometry in stated.values():
        size = geometry.image_size if geometry is not None else config.image_size  # type: ignore[union-attr]
        unsaid.agree("image_size", size, "it states image_size =")
        return size
    transformers = [held[kind] for kind in held if kind != "tokenizer"]
    stride = 1 << len(told["tokenizer"]["channel_multipliers"]) - 1 if "tokenizer" in held else None
    if not transformers:
        assert stride is not None
        unit, unfit = stride, f"the stride {stride}"
    else:
        unit = _grid(transformers[0])
        # MAGE's, unused, tells it as well.
        patches = [own[_PATCH].shape[-1] for own in transformers if _PATCH in own]
        patch = patches[0] if patches else stride
        if patch is not None:
            unsaid.agree("image_size", unit * patch, "by its tensors, image_size =")
            return unit * patch
        unfit = f"the grid of {unit} x {unit}"
    kind = next(iter(held))
    size = unsaid.answer(
        kind,
        "image_size",
        guess=_IMAGE_SIZE,
        published=str(_IMAGE_SIZE),
        fits=not _IMAGE_SIZE % unit,
        unfit=unfit,
        instead=unit,
    )
    if size % unit:
        raise ConfigError(
            f"--image-size {size} does not fit {unfit} of {unsaid.path}; give a multiple of {unit}"
        )
    return size


def _geometry(own: dict[str, Tensor], image_size: int) -> Geometry:
    words = own[
        "token_emb.weight" if "token_emb.weight" in own else "token_emb.word_embeddings.weight"
    ]
    return Geometry(
        image_size=image_size,
        patch_size=image_size // _grid(own),
        codebook_size=words.shape[0] - UNUSED_CLASS_IDS - 1,
    )
