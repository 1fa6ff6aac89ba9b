"""What a step holds in memory, found by doing one without computing anything.

The real networks do a forward and a backward pass on the meta device, where tensors have shapes and
no values. A storage counts from the operator that makes it until nothing refers to it any more, as
with CUDA's allocator. So what is kept for the backward pass, what is there for a moment only, and
what recomputed blocks save all follow from the code that trains.

What no operator shows is not counted: the workspaces of cuDNN and cuBLAS, and what the allocator
keeps in reserve.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.engine.precision import Mode

META = torch.device("meta")
_ROUNDED = 512  # bytes: CUDA's allocator hands out multiples of this
# What autocast computes in half precision on CUDA, and in float32, of what our networks call.
_IN_HALF = {"linear", "conv2d", "matmul", "__matmul__", "scaled_dot_product_attention"}
_IN_FLOAT32 = {"layer_norm", "group_norm", "log_softmax", "cross_entropy"}


class Rehearsal(NamedTuple):
    """A step on the meta device. network: the trained one, as it trains. inputs: makes what it is
    called with from a batch; frozen networks do their part. most_masked: the mask ratio at which
    the step takes most memory, where the task masks tokens."""

    network: nn.Module
    inputs: Callable[[Any], dict[str, Any]]
    most_masked: float = 0.0


class Footprint(NamedTuple):
    """The most bytes that a micro batch takes at once, beside the weights.

    inputs: while its inputs are made, most of which is what frozen networks compute. trained: from
    the forward pass to the end of the backward pass, without the gradients of the weights, where
    these leave as soon as they are there. with_gradients: the same, where they stay.
    """

    inputs: int
    trained: int
    with_gradients: int


def footprint(rehearsal: Rehearsal, batch: Callable[[], Any], mode: Mode) -> Footprint:
    """Return what a step takes in a precision. batch: makes its data. The rehearsal's network is
    used up."""
    network, live = rehearsal.network, _Live()
    kernels = _CudaKernels(getattr(torch, mode.products) if mode.mixed else None)
    if mode.width == 2:
        network.to(getattr(torch, mode.weights))
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(live.take_gradient)  # type: ignore[no-untyped-call]
    with torch.device("meta"), live, kernels:
        inputs = rehearsal.inputs(batch())
        before, live.peak = live.peak, live.now
        with kernels.autocast():
            loss = network(**inputs)
        torch.autograd.backward(loss)
    return Footprint(before, live.peak, live.peak_with_gradients)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.peak_with_gradients = 0
        self._gradients = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in known:  # else it is a view, or an operator in place
                known.add(id(storage))
                size = -(-storage.nbytes() // _ROUNDED) * _ROUNDED
                self._change(size)
                weakref.finalize(storage, self._change, -size)
        return result

    def take_gradient(self, parameter: Tensor) -> None:
        """Let a weight's gradient go, and count it for a run in which it stays."""
        assert parameter.grad is not None
        self._gradients += parameter.grad.nbytes
        parameter.grad = None

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peak_with_gradients = max(self.peak_with_gradients, self.now + self._gradients)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class _CudaKernels(TorchFunctionMode):
    """Has meta tensors go through what PyTorch calls on CUDA, where that keeps other tensors:
    dropout in one kernel, flash attention, and autocast, which the meta device lacks.

    half: the type of the products under autocast; None where it is not used.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self._half = half
        self._active = False
        self._weights: dict[int, Tensor] | None = None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Cast inputs of products as autocast does. Like it, keep what is cast of the weights until
        the end."""
        self._active, self._weights = self._half is not None, {}
        yield
        # The backward pass computes some blocks again, under an autocast for each.
        self._weights = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._active and name in _IN_HALF:
            args = [self._cast(value) for value in args]
        elif self._active and name in _IN_FLOAT32:
            args = [value.float() if _is_half(value) else value for value in args]
        if name == "dropout":
            used = kwargs["training"] and kwargs["p"] > 0
            return torch.native_dropout(args[0], kwargs["p"], True)[0] if used else args[0]
        if name == "scaled_dot_product_attention":
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(*args, kwargs["dropout_p"])[0]
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not value.is_leaf or not value.requires_grad or self._weights is None:
            return value.to(self._half)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(self._half)
        return self._weights[id(value)]


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
