"""What a run trains. Everything that depends on the task stands in one class, an `Objective`:

- its data, and how a batch becomes the inputs of one forward pass;
- its network, what of it a checkpoint exports, and how the optimizer groups its parameters;
- what a checkpoint and the run that loads it must share;
- what it costs, what is checked before it starts, and what a user does next.

The trainer, the checkpoints and the commands know objectives by this class alone. A new one is a
file with a subclass of `Objective`, `TokenObjective`, `ImageObjective` or `DenseObjective`, and an
entry in `registry.py`.

The module that DeepSpeed optimises is `network`; called with the inputs, it returns the loss.
Frozen networks stay outside of it, of its optimizer and of its checkpoints, which name them by
their fingerprints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.streaming.epochs import EpochSchedule
from model.compiling import Compiler, compile_blocks
from model.config import TransformerConfig
from model.device import staged
from model.networks import Network
from model.resizing import Resized
from model.shapes import shapes_only
from trainer.config.schema import RunConfig
from trainer.engine.optimizers import parameter_groups
from trainer.objectives.counting import Operations, by_blocks, mean_ratio, training_flops
from trainer.objectives.footprint import Rehearsal
from trainer.objectives.initial_weights import InitialWeights
from trainer.objectives.registry import trained_sizes

Inputs = dict[str, Any]

_COUNTED = 2  # images whose operations are counted together: a BatchNorm does not train on one


class Objective(ABC):
    """One task on one configuration.

    A subclass sets `network`, `exported`, `epochs` and `data_fingerprint` in its constructor, and
    the other attributes where they differ from the defaults.

    network: what is optimised; `network(**inputs)` returns the loss, a scalar.
    exported: the part of `network` that a checkpoint exports, often `network` itself.
    epochs: how many samples and steps an epoch has.
    data_fingerprint: hash of the data, wherever they lie.
    order: the options on which the order of the samples depends.
    frozen: fingerprints of the frozen networks, by name.
    initial_weights: the weights that `exported` was given; None for random ones.
    opening: seconds that it took to open the data.
    """

    network: nn.Module
    exported: Network
    epochs: EpochSchedule
    data_fingerprint: str

    # The section whose `weights` a run begins with. None: it begins with random weights, or reads
    # what it needs at every start.
    initial_section: ClassVar[str | None] = None

    # Whether `inputs` runs frozen networks and draws nothing from PyTorch's generators, so that it
    # can be called ahead of its turn, and is worth it.
    inputs_ahead: ClassVar[bool] = False

    # Whether what convolutions are given has the same shape in every step.
    one_shape: ClassVar[bool] = True

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        """fresh: there is no checkpoint to go on from, so that `exported` takes the initial
        weights."""
        self.config = config
        self.order: dict[str, Any] = {}
        self.frozen: dict[str, str] = {}
        self.initial_weights: InitialWeights | None = None
        self.opening = 0.0

    # Before it trains, on all ranks together.

    @classmethod
    def listed(cls, config: RunConfig) -> Any:
        """What rank 0 alone lists for all ranks, where that takes long: the constructor's third
        argument on each of them. None: each rank reads by itself what the constructor needs.
        Raises ADDPError."""
        return None

    def unseen(self) -> str | None:
        """Why this rank cannot read what rank 0 has listed; None where it can."""
        return None

    # While it trains.

    @abstractmethod
    def batch(self, step: int, offset: int, count: int) -> Any:
        """The data of the samples offset .. offset+count-1 of the global batch of a data step, in
        host memory. Runs in a thread, ahead of the steps."""

    @abstractmethod
    def inputs(self, batch: Any, step: int, device: torch.device) -> Inputs:
        """What `network` is called with for that batch: tensors on `device`, and what the frozen
        networks make of the data. It waits for no work on the device. PyTorch's generators are
        seeded by the batch's index in the data, so that what is drawn here depends on nothing
        else."""

    def use_compiler(self, compiler: Compiler | None) -> bool:
        """Compile what is worth it of the networks, before the engine takes them; None: no longer.
        Returns whether there is anything."""
        return compile_blocks(self.network, compiler) > 0

    @abstractmethod
    def close(self) -> None:
        """End what reads ahead."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters that the optimizer treats alike: see `trainer.engine.optimizers`."""
        return parameter_groups(self.network.named_parameters(), self.config.optimizer.weight_decay)

    # What a checkpoint states.

    @property
    def export_prefix(self) -> str:
        """The prefix of the exported network's names among those of `network`: "" or "name."."""
        for name, module in self.network.named_modules():
            if module is self.exported:
                return f"{name}." if name else ""
        raise AssertionError("the exported network is no part of the trained one")

    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that loads it must share. Manifests hold it as `facts`; the
        keys are part of their format."""
        config = self.config
        return {
            "objective": config.objective,
            "network": self.exported.config.model_dump(mode="json"),
            "geometry": config.geometry.model_dump(mode="json"),
            "data": self.data_fingerprint,
            "order": self.order,
            "frozen": self.frozen_fingerprints(),
            "seed": config.seed,
            "global_batch": config.batch.global_batch,
            "optimizer": config.optimizer.name,
        }

    def frozen_fingerprints(self) -> dict[str, str]:
        """The fingerprints of the frozen networks, by name."""
        return self.frozen

    def read_fingerprints(self) -> dict[str, str]:
        """The fingerprints of all networks that this rank has read from files, by name. All ranks
        must have read the same."""
        given = self.initial_weights
        if given is None or given.fingerprint is None:
            return self.frozen_fingerprints()
        return {**self.frozen_fingerprints(), given.key: given.fingerprint}

    # Before a run: by the configuration, without the values of networks.

    @classmethod
    def check_weights(cls, config: RunConfig) -> dict[Path, Resized | None]:
        """The files of frozen and pretrained networks that a start would read, once their headers
        are found to be of the configured sizes, and what will be done to their weights for the size
        of the run's images. Called on the meta device. Raises ConfigError or WeightsError."""
        return {}

    @classmethod
    def outlined(cls, config: RunConfig) -> Objective:
        """The objective as it would start, for checks: networks have values only where `identity`
        needs them. Raises what the constructor raises."""
        return cls(config)

    @abstractmethod
    def look_at_data(self) -> str:
        """Read a little of all data, to see that they can be read, and say what they hold. Raises
        DataError or StorageError."""

    def data_bytes(self) -> int:
        """Bytes of all shards, which a cache may hold; 0 where nothing is cached."""
        return 0

    @classmethod
    @abstractmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        """(the trained network, the frozen ones), fresh. Called on the meta device, to count
        parameters."""

    @classmethod
    @abstractmethod
    def blank_batch(cls, config: RunConfig, count: int, masked: float) -> Any:
        """A batch of `count` samples as `batch` returns it, without any data. masked: the share of
        the tokens that is masked, where the task masks some.

        What is compiled is tried on it. With a `rehearsal`, operations and memory are counted."""

    @classmethod
    @abstractmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """A step without data, to count its operations and its memory. Called on the meta
        device."""

    @classmethod
    def frozen_flops(cls, config: RunConfig) -> float:
        """Operations of the frozen networks for one image."""
        return 0

    @classmethod
    def counted_flops(cls, config: RunConfig) -> Operations:
        """Operations of one image, counted over the whole network."""
        with shapes_only():
            rehearsal = cls.rehearsal(config)
            inputs = rehearsal.inputs(cls.blank_batch(config, _COUNTED, mean_ratio()))
        trained = training_flops(lambda: rehearsal.network(**inputs)) / _COUNTED
        return Operations(trained, cls.frozen_flops(config))

    @classmethod
    def flops(cls, config: RunConfig) -> Operations:
        """Operations of one image. Of a transformer one block more is counted, and multiplied."""
        sizes = trained_sizes(config)
        if isinstance(sizes, TransformerConfig):
            return by_blocks(cls.counted_flops, config, sizes)
        return cls.counted_flops(config)

    @classmethod
    def depends_on_micro(cls, config: RunConfig) -> bool:
        """Whether `batch.micro` changes more than rounding, since something is drawn for a whole
        micro batch (dropout, augmentation, a mask ratio) or averaged over one (the usage of codes,
        a BatchNorm, losses of which some rows do not count)."""
        return True

    # After a run.

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        """Commands for a user whose run has come to its end; network: the exported file."""
        return f"`addp export {run}`"


def on_device(device: torch.device, array: NDArray[Any]) -> Tensor:
    """An array as a tensor on the device. The copy waits for nothing that is computed there."""
    return staged(torch.from_numpy(array)).to(device, non_blocking=True)
