"""Where ZeRO keeps the float32 weights and the optimizer's state of each parameter, on this rank.

In every stage they are fragments: a run of consecutive elements of one parameter. A checkpoint, an
average of the weights or a layer-wise optimizer made of fragments depends neither on the stage nor
on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.engine.optimizers import Layer, Layerwise


class Fragment(NamedTuple):
    """Elements start .. start+length-1 of the flattened parameter `name`, which stand at `offset`
    of `flat`, the tensor that the optimizer steps. layer: index of the parameter among those of its
    flat tensor, the same on all ranks."""

    name: str
    start: int
    length: int
    flat: Tensor
    offset: int
    layer: int

    def weights(self) -> Tensor:
        """(length,) float32, a view."""
        return self.flat.detach().view(-1)[self.offset : self.offset + self.length]

    def state(self, optimizer: torch.optim.Optimizer, key: str) -> Tensor:
        """(length,) of the optimizer's state, a view."""
        found: Tensor = optimizer.state[self.flat][key]
        return found.view(-1)[self.offset : self.offset + self.length]

    def part(self, first: int, last: int) -> Fragment | None:
        """What of it lies in elements first .. last-1 of it, counted from 0."""
        first, last = max(first, 0), min(last, self.length)
        if first >= last:
            return None
        return self._replace(
            start=self.start + first, length=last - first, offset=self.offset + first
        )


class Partition:
    """Of one engine.

    held: all fragments on this rank. owned: a division of all elements among the ranks; without
    ZeRO every rank holds everything, and owns an equal share of it. shapes: of every trained
    parameter.
    """

    def __init__(
        self, network: nn.Module, zero: Any, stage: int, rank: int, world_size: int
    ) -> None:
        self._zero, self._stage = zero, stage
        names = {
            parameter: name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self.shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for p, name in names.items()}
        self._layers: dict[Tensor, int] = {}
        if stage == 0:
            self.held = [Fragment(name, 0, p.numel(), p, 0, 0) for p, name in names.items()]
            self.owned = _share(self.held, rank, world_size)
        else:
            pairs = list(zip(*_groups(zero, stage), strict=True))
            self.held = list(_stage3(pairs, names, rank) if stage == 3 else _stage12(pairs, names))
            self.owned = self.held
            self._layers = {flat: len(group) for group, flat in pairs}

    @property
    def stepped(self) -> list[Tensor]:
        """The tensors that the optimizer steps on this rank."""
        return list(self._layers) or [fragment.flat for fragment in self.held]

    def connect(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell a layer-wise optimizer where the layers lie."""
        if isinstance(optimizer, Layerwise):
            for flat, count in self._layers.items():
                layers = [Layer(f.layer, f.offset, f.length) for f in self.held if f.flat is flat]
                optimizer.layers[flat] = (layers, count)

    def make_state(self, optimizer: torch.optim.Optimizer, keys: Sequence[str], steps: int) -> None:
        """State as after `steps` updates, all zeros, to be filled by a restore."""
        for group in optimizer.param_groups:
            if "step" in group:
                group["step"] = steps  # apex counts here
        for flat in self.stepped:
            state = optimizer.state[flat]
            for key in keys:
                state[key] = torch.zeros_like(flat)
            fused = bool(optimizer.defaults.get("fused"))
            state["step"] = torch.tensor(float(steps), device=flat.device if fused else "cpu")

    def publish(self) -> None:
        """All ranks together: the network computes with what `weights()` views hold now."""
        if self._stage == 3:
            self._zero._partition_all_parameters()
            for index in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(index)
            self._zero._post_step(set())
        elif self._stage in (1, 2):
            self._zero.update_lp_params()


def _groups(zero: Any, stage: int) -> tuple[list[Any], list[Tensor]]:
    """(groups of parameters, the flat tensors that hold this rank's parts of them)."""
    if stage == 3:
        return zero.fp16_groups, zero.fp32_partitioned_groups_flat
    if hasattr(zero, "bf16_groups"):  # stage 1 in bf16 is an optimizer of its own
        return zero.bf16_groups, zero.fp32_groups_flat_partition
    return zero.bit16_groups, zero.single_partition_of_fp32_groups


def _stage12(pairs: list[tuple[Any, Tensor]], names: dict[nn.Parameter, str]) -> Iterable[Fragment]:
    for group, flat in pairs:
        for layer, parameter in enumerate(group):
            mapping = parameter._hp_mapping
            if mapping is not None:
                at, to = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(names[parameter], at.start, at.numel, flat, to.start, layer)


def _stage3(
    pairs: list[tuple[Any, Tensor]], names: dict[nn.Parameter, str], rank: int
) -> Iterable[Fragment]:
    for group, flat in pairs:
        offset = 0
        for layer, parameter in enumerate(group):
            size = parameter.partition_numel()
            start = rank * size
            length = min(size, parameter.ds_numel - start)  # the last ranks' parts may be padding
            if length > 0:
                yield Fragment(names[parameter], start, length, flat, offset, layer)
            offset += size


def _share(held: list[Fragment], rank: int, world_size: int) -> list[Fragment]:
    total = sum(fragment.length for fragment in held)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    owned, before = [], 0
    for fragment in held:
        part = fragment.part(first - before, last - before)
        before += fragment.length
        if part is not None:
            owned.append(part)
    return owned
