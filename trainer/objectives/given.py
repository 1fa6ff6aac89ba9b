"""Networks that a configuration names the files of: frozen ones, and the weights that a run begins
with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from model.errors import WeightsError
from model.networks import Network
from model.weights import fingerprint, load_network
from trainer.config.schema import RunConfig

_OF = {
    "tokenizer": "tokenizer",
    "mage": "predictor",
    "addp": "addp",
}  # what an objective trains: section, and kind
_NO_SHAPE = (
    "dropout",
    "positions",
)  # of sizes: they may differ from those that the file was trained with


@contextmanager
def without_values() -> Iterator[None]:
    """Networks that are made here, or loaded, have shapes only; of a safetensors file the header is
    read."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        yield


def given_network(config: RunConfig, kind: str) -> Network:
    """The network of `<kind>.weights`. Raises WeightsError for a file that is none, holds another
    kind, or one of other sizes than `<kind>.sizes`."""
    section = getattr(config, kind)
    geometry = None if kind == "tokenizer" else config.geometry
    network = load_network(section.weights, kind, config=section.sizes, geometry=geometry)
    found, wanted = network.config.model_dump(), section.sizes.model_dump()
    other = [name for name in wanted if name not in _NO_SHAPE and found[name] != wanted[name]]
    if other:
        raise WeightsError(
            f"{section.weights} does not fit {kind}.sizes: "
            + ", ".join(f"its {name} is {found[name]}, not {wanted[name]}" for name in other)
            + f"; set {kind}.sizes to the file's, or give another file"
        )
    return network


class Beginning(NamedTuple):
    """What a run begins with. fingerprint: of its weights; None where they are not read, as the run
    goes on from a checkpoint."""

    key: str
    path: Path
    fingerprint: str | None = None

    def __str__(self) -> str:
        return f"{self.key} = {self.path}"


def beginning(config: RunConfig) -> Beginning | None:
    """As it is configured; None for random weights, and for a classifier, which reads its encoder
    at every start."""
    kind = _OF.get(config.objective)
    path: Path | None = getattr(config, kind).weights if kind else None
    return Beginning(f"{kind}.weights", path) if path is not None else None


def check_beginning(config: RunConfig) -> None:
    """By shapes alone: nothing is allocated for a network. Raises WeightsError as `begin` does."""
    if beginning(config) is not None:
        with without_values():
            given_network(config, _OF[config.objective])


def begin(config: RunConfig, network: Network, fresh: bool) -> Beginning | None:
    """Fill the network that is trained, unless a checkpoint will. Raises WeightsError."""
    found = beginning(config)
    if found is None or not fresh:
        return found
    given = given_network(config, _OF[config.objective])
    network.load_state_dict(given.state_dict())
    return found._replace(fingerprint=fingerprint(network))
