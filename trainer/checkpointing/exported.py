"""The network that a checkpoint exports: the part of what was trained that others load."""

from __future__ import annotations

import math

from pydantic import ValidationError

from model.config import Geometry
from model.documents import first_problem, show
from model.errors import ADDPError, WeightsError
from model.networks import Network, Sizes, build, matching_outline, stated_config
from trainer.checkpointing.format import MANIFEST, Damaged, Manifest
from trainer.checkpointing.saved_state import SavedState
from trainer.objectives.registry import OBJECTIVES
from trainer.run_folder import step_folder


def exported_network(state: SavedState, state_key: str) -> Network:
    """The network with the trained weights ("weights") or their moving average ("ema"). Raises
    ADDPError where the checkpoint does not have them, and Damaged where they are not those of the
    network that its manifest states."""
    manifest, prefix = state.manifest, state.manifest.export_prefix
    checkpoint = step_folder(manifest.step)
    if state_key not in manifest.state_keys:
        there = ", ".join(manifest.state_keys)
        raise ADDPError(f"{checkpoint} has no {state_key}; it has {there}")
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in manifest.parameters.items()
        if name.startswith(prefix)
    }
    tensors = {
        name.removeprefix(prefix): value
        for name, value in state.buffers().items()
        if name.startswith(prefix)
    }
    network_kind, sizes = _stated_network(manifest)
    held = shapes | {name: list(value.shape) for name, value in tensors.items()}
    try:  # before anything is allocated: a manifest may ask for more memory than there is
        matching_outline(network_kind, sizes, held, checkpoint)
    except WeightsError as error:
        raise Damaged(str(error)) from error
    for name, shape in shapes.items():
        tensors[name] = state.read(state_key, prefix + name, 0, math.prod(shape)).view(shape)
    network = build(network_kind, *sizes)
    network.load_state_dict(tensors)
    return network


def _stated_network(manifest: Manifest) -> tuple[str, Sizes]:
    """The kind and the sizes of the network that a checkpoint exports. Raises Damaged."""
    run_identity = manifest.run_identity
    objective = run_identity.get("objective")
    entry = OBJECTIVES.get(objective) if isinstance(objective, str) else None
    if entry is None:
        raise Damaged(
            f"{step_folder(manifest.step)}: {MANIFEST} states no objective that there is: "
            f"{show(objective)}"
        )
    try:
        config = stated_config(entry.network_kind, run_identity.get("network"))
        geometry = Geometry.model_validate(run_identity.get("geometry"))
        return entry.network_kind, Sizes(config, geometry)
    except ValidationError as error:
        raise Damaged(
            f"{step_folder(manifest.step)}: {MANIFEST} states sizes that cannot be: "
            f"{first_problem(error)}"
        ) from error
