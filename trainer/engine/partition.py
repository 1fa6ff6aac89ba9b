"""Where ZeRO keeps the float32 weights and the optimizer's state of each parameter, on this rank.

ZeRO puts parameters one after the other into flat tensors, divides each flat tensor among the
ranks, and lets the optimizer step the shares. In stages 1 and 2 the shares are cut from the whole
sequence, so that a parameter may lie on one rank or across several. In stage 3 every parameter is
divided by itself, and the end of it may be padding. With parameters A, B, C on two ranks:

    stage 0         rank 0   [A        ] [B    ] [C      ]      every rank holds all, as tensors
                    rank 1   [A        ] [B    ] [C      ]      of their own

    stages 1, 2     rank 0   [A         B  ]                    one flat tensor, cut in the middle:
                    rank 1   [  B   C      ]                    B lies on both ranks

    stage 3         rank 0   [A    B   C   ]                    the first half of each, and
                    rank 1   [A    B . C   ]                    the second; . is padding

All of these are described by fragments: a run of consecutive elements of one parameter, and where
it stands in the flat tensor that this rank steps. Checkpoints, the moving average of the weights
and layer-wise optimizers are made of fragments, so that they depend neither on the stage nor on the
number of ranks.

    Fragment("B", start=3, length=4, flat, offset=0)      in stage 1 on rank 1: elements 3 .. 6 of B
                                                          are the first four of `flat`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.engine import deepspeed_internals as internals
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
        """(length,) float32, a view of the master weights."""
        return self.flat.detach().view(-1)[self.offset : self.offset + self.length]

    def state(self, optimizer: torch.optim.Optimizer, key: str) -> Tensor:
        """(length,), a view of the optimizer's state of that name, as `exp_avg`."""
        values: Tensor = optimizer.state[self.flat][key]
        return values.view(-1)[self.offset : self.offset + self.length]

    def part(self, first: int, last: int) -> Fragment | None:
        """Its own elements first .. last-1, counted from 0, as a fragment; None if there are
        none."""
        first, last = max(first, 0), min(last, self.length)
        if first >= last:
            return None
        return self._replace(
            start=self.start + first, length=last - first, offset=self.offset + first
        )


class Partition:
    """The fragments of one engine.

    held: all fragments on this rank. owned: those that this rank saves; together the ranks own
    every element once. Without ZeRO every rank holds everything, and owns an equal share of it.
    shapes: the whole shape of every trained parameter, by name.
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
        self.shapes = {name: internals.shape_of(p) for p, name in names.items()}
        self._layers: dict[Tensor, int] = {}
        if stage == 0:
            self.held = [Fragment(name, 0, p.numel(), p, 0, 0) for p, name in names.items()]
            self.owned = _share(self.held, rank, world_size)
        else:
            pairs = internals.groups_and_flats(zero, stage)
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
        """Make the optimizer's state as it is after `steps` updates, filled with zeros; a restore
        fills it."""
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
        """All ranks together: make the network compute with what the views of `weights()` hold."""
        internals.take_over_weights(self._zero, self._stage)


Pairs = list[tuple[list[nn.Parameter], Tensor]]  # groups, and this rank's flat tensor of each


def _stage12(pairs: Pairs, names: dict[nn.Parameter, str]) -> Iterable[Fragment]:
    for group, flat in pairs:
        for layer, parameter in enumerate(group):
            at = internals.address(parameter)
            if at is not None:
                yield Fragment(names[parameter], at.start, at.length, flat, at.offset, layer)


def _stage3(pairs: Pairs, names: dict[nn.Parameter, str], rank: int) -> Iterable[Fragment]:
    for group, flat in pairs:
        offset = 0
        for layer, parameter in enumerate(group):
            size, whole = internals.share_of(parameter)
            start = rank * size
            length = min(size, whole - start)  # the last ranks' shares may be padding
            if length > 0:
                yield Fragment(names[parameter], start, length, flat, offset, layer)
            offset += size


def _share(held: list[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """An equal share of the elements, where every rank holds all of them."""
    total = sum(fragment.length for fragment in held)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    owned, before = [], 0
    for fragment in held:
        part = fragment.part(first - before, last - before)
        before += fragment.length
        if part is not None:
            owned.append(part)
    return owned
