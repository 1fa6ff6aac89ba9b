"""What a run costs: operations of one image, parameters, memory in each ZeRO stage, bytes of a
checkpoint.

What depends on the task is asked of the objective's class; see `trainer/objectives/counting.py`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from model.documents import MIB, Record, Settings, parse_record, read_file
from model.errors import DataError
from model.shapes import shapes_only
from model.transformer import recompute_blocks
from trainer import records
from trainer.config.schema import RunConfig
from trainer.engine.optimizers import STATE
from trainer.engine.precision import MODES
from trainer.engine.zero import bucket_bytes
from trainer.objectives.counting import Operations
from trainer.objectives.footprint import Footprint, footprint
from trainer.objectives.initial_weights import without_values
from trainer.objectives.registry import OBJECTIVES, objective_class
from trainer.peaks import PEAKS
from trainer.run_folder import OPERATIONS, RunFolder

# What the operations of every objective's networks depend on; of its own sections, all keys may.
_SIZES: dict[str, Any] = {
    "objective": True,
    "tokenizer": {"sizes"},
    "predictor": {"sizes"},
    "addp": {"sizes"},
}


class _Counted(Record):
    """RUN/operations.json: the operations of an image, and what they were counted of."""

    torch: str
    sizes: str
    trained: float
    frozen: float


class Memory(NamedTuple):
    """The bytes that a run takes on one rank when it takes most.

    buffers: in which ZeRO sends gradients. activations: what the step holds then beside the other
    uses. Where gradients only come as activations go, they are among the activations that they
    replace.
    """

    weights: float
    gradients: float
    optimizer: float
    ema: float
    frozen: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def device_peak() -> float | None:
    """Return the bf16 operations that this process's GPU makes in a second, at most.

    None without a GPU, and for one that is not in the table.
    """
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def parameters(config: RunConfig) -> tuple[int, int]:
    """Return how many parameters are trained, and how many are frozen."""
    return _parameters(config.model_dump_json())


@lru_cache(maxsize=8)
def _parameters(config_as_json: str) -> tuple[int, int]:
    config = RunConfig.model_validate_json(config_as_json)
    with shapes_only():
        trained, frozen = objective_class(config.objective).networks(config)
    still = sum(p.numel() for p in trained.parameters() if not p.requires_grad)
    return _size(trained), still + sum(_size(network) for network in frozen)


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def image_operations(config: RunConfig) -> Operations:
    """Return the operations of one image, forward and backward, at the mean mask ratio.

    For a tokenizer, its encoder and decoder are counted, but not the networks of its losses.
    """
    return _operations(_counted_sizes(config))


def operations_of_run(config: RunConfig, folder: RunFolder) -> Operations:
    """Return `image_operations`, which the run's first start writes into its folder. Counting takes
    two seconds of a start, most of them for the import of PyTorch's compiler, which its meta device
    and its counter load."""
    sizes, path = _counted_sizes(config), folder.path / OPERATIONS
    try:
        before = parse_record(_Counted, read_file(path, MIB, DataError), str(path), DataError)
    except (FileNotFoundError, DataError):
        before = None
    if before and (before.torch, before.sizes) == (torch.__version__, sizes):
        return Operations(before.trained, before.frozen)
    counted = _operations(sizes)
    document = {"torch": torch.__version__, "sizes": sizes, **counted._asdict()}
    records.replace(path, (json.dumps(document, indent=1) + "\n").encode())
    return counted


def _counted_sizes(config: RunConfig) -> str:
    """Return the sections on which the operations depend, as JSON."""
    used = [key for key in OBJECTIVES[config.objective].keys if key in RunConfig.model_fields]
    own: dict[str, Any] = {key: True for key in used if isinstance(getattr(config, key), Settings)}
    return config.model_dump_json(include={**own, **_SIZES})


@lru_cache(maxsize=8)
def _operations(sizes: str) -> Operations:
    """Count them. sizes: the sections on which they depend, as JSON, so that runs share a count."""
    config = RunConfig.model_validate_json(sizes)
    return objective_class(config.objective).flops(config)


def rank_memory(config: RunConfig, stage: int, world_size: int) -> Memory:
    """Count what the tensors of the training take on each of `world_size` ranks.

    stage: of ZeRO. The workspaces of cuDNN, cuBLAS and NCCL and the allocator's waste are not
    counted, and offloading to host memory is not taken into account.
    """
    trained, frozen = parameters(config)
    mode = MODES[config.precision]
    divided = world_size if stage >= 1 else 1
    step = step_footprint(config)
    gradients = 4 * trained / (world_size if stage >= 2 else 1)
    # Stages 2 and 3 let go of a gradient once its bucket is sent. Stages 0 and 1 keep all of them,
    # from the first micro batch of a step on.
    least = gradients if stage < 2 and _accumulates(config, world_size) else 0
    trains = step.trained if stage >= 2 or least else step.with_gradients
    # Beside the backward pass, the next inputs are made when the training holds most.
    beside = config.frozen_ahead and objective_class(config.objective).inputs_ahead
    most = step.inputs + trains if beside else max(step.inputs, trains)
    # Float32 weights are the optimizer's own where ZeRO does not copy its share of them.
    master = 0 if mode.width == 4 and stage in (0, 3) else 4
    states = len(STATE[config.optimizer.name])
    return Memory(
        # Stage 3 keeps what it has gathered from the forward to the backward pass.
        weights=mode.width * trained * (1 + 1 / world_size if stage == 3 else 1),
        gradients=gradients,
        optimizer=(master + 4 * states) * trained / divided,
        ema=4 * trained / world_size if config.ema_decay is not None else 0,
        frozen=(4 if mode.frozen == "float32" else 2) * frozen,
        buffers=bucket_bytes(stage, world_size, trained, mode),
        activations=most if stage >= 2 or least else max(0, most - gradients),
    )


def _accumulates(config: RunConfig, world_size: int) -> bool:
    """Whether gradients are there while a micro batch is computed: those of the one before, or the
    float32 ones that ZeRO-1 makes for bf16 at the start."""
    several = config.batch.global_batch > config.batch.micro * world_size
    return several or config.precision == "bf16"


def step_footprint(config: RunConfig) -> Footprint:
    """Return what a micro batch takes at once beside the weights."""
    return _footprint(config.model_dump_json())


@lru_cache(maxsize=8)
def _footprint(config_as_json: str) -> Footprint:
    config = RunConfig.model_validate_json(config_as_json)
    kind = objective_class(config.objective)
    with without_values():
        rehearsal = kind.rehearsal(config)
        recompute_blocks(rehearsal.network, config.recompute_every)
    return footprint(
        rehearsal,
        lambda: kind.blank_batch(config, config.batch.micro, rehearsal.most_masked),
        MODES[config.precision],
    )


def checkpoint_bytes(config: RunConfig) -> float:
    """Return the bytes of one checkpoint, all ranks' files together."""
    trained, _ = parameters(config)
    # The weights, each state of the optimizer, and the moving average, all of them in float32.
    copies = 1 + len(STATE[config.optimizer.name]) + (config.ema_decay is not None)
    return 4.0 * copies * trained
