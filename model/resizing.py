"""A trained network for images of another size.

Of a transformer, the tables of positions alone depend on the size; they are interpolated. The
tokenizer has no positions: its weights hold for any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.documents import first_problem
from model.errors import ConfigError
from model.networks import Network, build
from model.positions import TABLES, on_grid
from model.predictor import TokenPredictor
from model.vq import VQTokenizer

N = TypeVar("N", bound=VQTokenizer | TokenPredictor | ADDP)


class Resized(NamedTuple):
    """What was done to a network. before, after: its geometry. tables: the names of the tensors
    that were interpolated."""

    before: Geometry
    after: Geometry
    tables: tuple[str, ...]

    def __str__(self) -> str:
        pixels = f"resized from {self.before.image_size} to {self.after.image_size} pixels: "
        if not self.tables:
            return pixels + "it has no positions"
        a, b = self.before.grid, self.after.grid
        return pixels + f"{', '.join(self.tables)} interpolated from {a} x {a} to {b} x {b}"


def for_image_size(network: N, image_size: int) -> tuple[N, Resized | None]:
    """Return a network for square images of another size, and what was done to it; for its own
    size, the network itself and None. Patch, codebook and all other sizes stay.

    Raises pydantic's ValidationError for a size that is no multiple of the patch, or too large.
    """
    config: TokenizerConfig | TransformerConfig
    if isinstance(network, VQTokenizer):
        before = Geometry.of(network.config)
        config = TokenizerConfig.model_validate(
            {**network.config.model_dump(), "image_size": image_size}
        )
        after = Geometry.of(config)
    else:
        before, config = network.geometry, network.config
        after = Geometry.model_validate({**before.model_dump(), "image_size": image_size})
    if after == before:
        return network, None
    state = network.state_dict()
    tables = tuple(name for name in TABLES if name in state)
    for name in tables:
        table = on_grid(state[name].view(1, before.tokens + 1, -1), after.grid, after.grid)
        state[name] = table if state[name].dim() == 3 else table[0]
    other = build(network.kind, config, after)
    other.load_state_dict(state)
    assert isinstance(other, type(network))
    return other.train(network.training), Resized(before, after, tables)


def resized_networks(
    networks: Mapping[str, Network], image_size: int
) -> tuple[dict[str, Network], list[str]]:
    """Return networks, given by kind, for images of another size, and a sentence for each one that
    was changed. Raises ConfigError for a size that they cannot have."""
    found: dict[str, Network] = {}
    changes = []
    for kind, network in networks.items():
        assert isinstance(network, VQTokenizer | TokenPredictor | ADDP)
        try:
            found[kind], resized = for_image_size(network, image_size)
        except ValidationError as error:
            raise ConfigError(
                f"the {kind} cannot be resized to {image_size} pixels: {first_problem(error)}"
            ) from error
        if resized:
            changes.append(f"{kind} {resized}")
    return found, changes
