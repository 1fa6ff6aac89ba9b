"""Operations and bytes of a step's stages, and the least time that they take on a machine.

A step is taken with tensors that have shapes and no values. Every operator of it counts: its
operations as PyTorch's own counter has them, and the bytes of its inputs and outputs, as if nothing
of them were in a cache. An operator takes at least as long as its products or its bytes do,
whichever is longer; a stage takes at least the sum over its operators (a roofline for each). Code
that is compiled moves fewer bytes than its operators one by one, so it may take less.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import model.encoder
import model.predictor
import model.transformer
from benchmarks.step.rates import Rates
from benchmarks.step.variants import Networks, ReferenceForward, follow_ours, networks
from model.denoising import FrozenNetworks
from model.masking import DenoisingMasks, masked_count
from trainer.config.schema import RunConfig
from trainer.engine.precision import MODES
from trainer.objectives.addp import denoising_inputs, frozen_dtype
from trainer.objectives.counting import mean_ratio, with_blocks

# AdamW reads weights, gradients and two moments in float32, and writes all but the gradients.
_OPTIMIZER_BYTES = 7 * 4
# Operators that make tensors without values, or another look at one.
_FREE = ("empty", "detach", "alias", "lift_fresh")


class Work(NamedTuple):
    """Of a stage: operations, bytes, and the seconds that they take at least: of operators that
    products bound, and of those that memory bounds."""

    operations: float = 0.0
    bytes: float = 0.0
    by_products: float = 0.0
    by_memory: float = 0.0

    def __add__(self, other: Any) -> Work:
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def least(self) -> float:
        """Seconds that the stage takes at least."""
        return self.by_products + self.by_memory

    def bound(self, seconds: float) -> str:
        """Say what bounds a stage that takes so many seconds: its products, memory, or, where it
        takes over twice as long as they do, what the operators do beside (`overhead`)."""
        if seconds > 2 * self.least:
            return "overhead"
        return "products" if self.by_products >= self.by_memory else "memory"


class Counter(TorchDispatchMode):
    """Counts the work of every operator to the stage in which it is called."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates, self.stage = rates, "rest"
        self.work: dict[str, Work] = defaultdict(Work)

    def follow(self, owner: Any, method: str, stage: str) -> None:
        """Count what is called in owner.method to that stage."""
        function = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.stage, before = stage, self.stage
            try:
                return function(*args, **kwargs)
            finally:
                self.stage = before

        patch.object(owner, method, counted).start()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        if func.namespace == "prim" or func.is_view or name.startswith(_FREE):
            return out
        operations = 0.0
        if func._overloadpacket in flop_registry:
            operations = float(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
            if "attention" in name and "backward" in name:
                operations *= 4 / 5  # without the scores, which it computes again
        moved = sum(_size(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        products = operations / self.rates.product
        memory = moved / self.rates.bandwidth
        bound = (products, 0.0) if products > memory else (0.0, memory)
        self.work[self.stage] += Work(operations, moved, *bound)
        return out


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded counts once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def stage_work(
    config: RunConfig, device: torch.device, rates: Rates, *, reference: bool
) -> dict[str, Work]:
    """Return the work of each stage of a step, at the mean mask ratio.

    The blocks of a transformer are alike. So networks of one block are counted, and what a second
    one adds is multiplied.
    """
    least, deeper, wider = (
        _counted(with_blocks(config, *blocks), device, rates, reference)
        for blocks in ((1, 1), (2, 1), (1, 2))
    )
    frozen, trained = config.predictor.sizes, config.addp.sizes
    work = {}
    for stage, one in least.items():
        sizes = frozen if stage == "predictor" else trained
        further = (sizes.depth - 1, sizes.decoder_depth - 1)
        work[stage] = Work(
            *(
                a + further[0] * (b - a) + further[1] * (c - a)
                for a, b, c in zip(one, deeper[stage], wider[stage], strict=True)
            )
        )
    return work


def _counted(
    config: RunConfig, device: torch.device, rates: Rates, reference: bool
) -> dict[str, Work]:
    """Count a step. The names that this process has for attention, SiLU and loss are the counted
    ones meanwhile."""
    with ExitStack() as stack:
        stack.callback(patch.stopall)
        stack.enter_context(FakeTensorMode())
        types = (torch.float32,) * 2 if reference else _types(config)
        made = networks(config, device, *types)
        counter = Counter(rates)
        loss = _reference_loss if reference else _our_loss
        with counter:
            total = loss(config, made, counter)
            counter.stage = "backward"
            total.backward()
        moved = _OPTIMIZER_BYTES * sum(p.numel() for p in made.network.parameters())
        counter.work["optimizer"] = Work(0.0, moved, 0.0, moved / rates.bandwidth)
    return dict(counter.work)


def _types(config: RunConfig) -> tuple[torch.dtype, torch.dtype]:
    return frozen_dtype(config), getattr(torch, MODES[config.precision].weights)


def _masks(config: RunConfig, device: torch.device) -> DenoisingMasks:
    tokens = config.geometry.tokens
    mask = torch.empty(config.batch.micro, tokens, dtype=torch.bool, device=device)
    return DenoisingMasks(mask, mask, masked_count(tokens, mean_ratio()))


def _our_loss(config: RunConfig, made: Networks, counter: Counter) -> Tensor:
    patch.object(model.transformer, "attention", _attention).start()
    for module in (model.encoder, model.predictor, model.transformer):
        patch.object(module, "dropout", F.dropout).start()  # ours takes its draws from NumPy
    device = made.network.cls_token.device
    frozen = FrozenNetworks(made.tokenizer, made.predictor)
    follow_ours(frozen, made.network, counter)
    ids = torch.empty(config.batch.micro, config.geometry.tokens, dtype=torch.int64, device=device)
    inputs = denoising_inputs(frozen, ids, _masks(config, device), config.label_smoothing)
    mode = MODES[config.precision]
    with torch.autocast(device.type, dtype=getattr(torch, mode.products), enabled=mode.mixed):
        result: Tensor = made.network(**inputs)
    return result


def _attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention as PyTorch's SDPA computes it: by one kernel, but on CPUs, where weights are
    dropped, by the formula. (To choose a backend would need values.)"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if q.device.type == "cpu" and dropout:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout)[0]
    return result.transpose(1, 2)


def _reference_loss(config: RunConfig, made: Networks, counter: Counter) -> Tensor:
    device = made.network.cls_token.device
    forward = ReferenceForward(config, made, counter)
    size = config.geometry.image_size
    images = torch.empty(config.batch.micro, 3, size, size, device=device)
    return forward(images, _masks(config, device))
