"""Networks that a configuration names the files of: frozen ones, and the weights that a run begins
with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from model.errors import WeightsError
from model.networks import Network
from model.shapes import shapes_only
from model.weights import fingerprint, load_network
from trainer.config.schema import RunConfig
from trainer.objectives.registry import objective_class

# Sizes in which a network may differ from its file, since they shape no tensor.
_NO_SHAPE = ("dropout", "positions")


@contextmanager
def without_values() -> Iterator[None]:
    """Networks that are made or loaded within have shapes and no values: nothing is allocated, and
    of a safetensors file only the header is read."""
    with shapes_only(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        yield


def given_network(config: RunConfig, kind: str) -> Network:
    """The network in the file that `<kind>.weights` names. Raises WeightsError where it is no
    weights file, holds another kind of network, or one of other sizes than `<kind>.sizes`."""
    section = getattr(config, kind)
    geometry = None if kind == "tokenizer" else config.geometry
    network = load_network(section.weights, kind, config=section.sizes, geometry=geometry)
    stated, wanted = network.config.model_dump(), section.sizes.model_dump()
    other = [name for name in wanted if name not in _NO_SHAPE and stated[name] != wanted[name]]
    if other:
        raise WeightsError(
            f"{section.weights} does not fit {kind}.sizes: "
            + ", ".join(f"its {name} is {stated[name]}, not {wanted[name]}" for name in other)
            + f"; set {kind}.sizes to the file's, or give another file"
        )
    return network


class InitialWeights(NamedTuple):
    """The file that a run begins with. key: of the configuration. fingerprint: of the weights; None
    where the file is not read, since the run goes on from a checkpoint."""

    key: str
    path: Path
    fingerprint: str | None = None

    def __str__(self) -> str:
        return f"{self.key} = {self.path}"


def initial_weights(config: RunConfig) -> InitialWeights | None:
    """What the configuration says. None for random weights, and for an objective that reads other
    networks at every start, as a classifier its encoder."""
    section = objective_class(config.objective).initial_section
    path: Path | None = getattr(config, section).weights if section else None
    return InitialWeights(f"{section}.weights", path) if path is not None else None


def check_initial_weights(config: RunConfig) -> None:
    """Compare the file with the configured sizes by its header alone. Raises WeightsError as
    `take_initial_weights` does."""
    section = objective_class(config.objective).initial_section
    if section is not None and initial_weights(config) is not None:
        with without_values():
            given_network(config, section)


def take_initial_weights(config: RunConfig, network: Network, fresh: bool) -> InitialWeights | None:
    """Fill the network that is trained with the weights that the configuration names, unless a
    checkpoint will. Raises WeightsError."""
    section, given = objective_class(config.objective).initial_section, initial_weights(config)
    if section is None or given is None or not fresh:
        return given
    network.load_state_dict(given_network(config, section).state_dict())
    return given._replace(fingerprint=fingerprint(network))
