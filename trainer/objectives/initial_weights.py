"""Networks that a configuration names the files of: frozen ones, and the weights that a run begins
with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from model.addp import ADDP
from model.errors import WeightsError
from model.networks import Network
from model.predictor import TokenPredictor
from model.resizing import Resized, for_image_size
from model.shapes import shapes_only
from model.vq import VQTokenizer
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


def given_network(config: RunConfig, kind: str, *, any_size: bool = False) -> Network:
    """The network in the file that `<kind>.weights` names. any_size: whether its images may be of
    another size. Raises WeightsError where it is no weights file, holds another kind of network, or
    one of other sizes than `<kind>.sizes`."""
    section = getattr(config, kind)
    geometry = None if kind == "tokenizer" else config.geometry
    network = load_network(
        section.weights, kind, config=section.sizes, geometry=geometry, any_size=any_size
    )
    stated, wanted = network.config.model_dump(), section.sizes.model_dump()
    free = (*_NO_SHAPE, "image_size") if any_size else _NO_SHAPE
    other = [name for name in wanted if name not in free and stated[name] != wanted[name]]
    if other:
        raise WeightsError(
            f"{section.weights} does not fit {kind}.sizes: "
            + ", ".join(f"its {name} is {stated[name]}, not {wanted[name]}" for name in other)
            + f"; set {kind}.sizes to the file's, or give another file"
        )
    return network


class InitialWeights(NamedTuple):
    """The file that a run begins with. key: of the configuration. fingerprint: of the file's
    weights; None where it is not read, since the run goes on from a checkpoint. resized: what was
    done to them for the size of the run's images, if anything."""

    key: str
    path: Path
    fingerprint: str | None = None
    resized: Resized | None = None

    def __str__(self) -> str:
        return f"{self.key} = {self.path}" + (f" ({self.resized})" if self.resized else "")


def initial_weights(config: RunConfig) -> InitialWeights | None:
    """What the configuration says. None for random weights, and for an objective that reads other
    networks at every start, as a classifier its encoder."""
    section = objective_class(config.objective).initial_section
    path: Path | None = getattr(config, section).weights if section else None
    return InitialWeights(f"{section}.weights", path) if path is not None else None


def check_initial_weights(config: RunConfig) -> Resized | None:
    """Compare the file with the configured sizes by its header alone. Returns what will be done to
    its weights for the size of the run's images. Raises WeightsError as `take_initial_weights`
    does."""
    section = objective_class(config.objective).initial_section
    if section is None or initial_weights(config) is None:
        return None
    with without_values():
        return _sized(config, given_network(config, section, any_size=True))[1]


def take_initial_weights(config: RunConfig, network: Network, fresh: bool) -> InitialWeights | None:
    """Fill the network that is trained with the weights that the configuration names, unless a
    checkpoint will. Raises WeightsError."""
    section, given = objective_class(config.objective).initial_section, initial_weights(config)
    if section is None or given is None or not fresh:
        return given
    found = given_network(config, section, any_size=True)
    fitting, resized = _sized(config, found)
    network.load_state_dict(fitting.state_dict())
    return given._replace(fingerprint=fingerprint(found), resized=resized)


def _sized(config: RunConfig, network: Network) -> tuple[Network, Resized | None]:
    """A network of a file, for the size of the run's images, and what was done to it."""
    assert isinstance(network, VQTokenizer | TokenPredictor | ADDP)
    return for_image_size(network, config.geometry.image_size)
