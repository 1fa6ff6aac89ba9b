"""Networks without values: what they are made of is known, and nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors and networks that are made within are on the meta device, unfilled."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves what is drawn from a normal distribution as it is. On the meta device there is nothing
    to fill, and arithmetic there, which `normal_` uses, imports PyTorch's whole compiler: a second
    or more."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"]
        if func is Tensor.normal_:  # of other functions that fill
            return args[0]
        return func(*args, **kwargs)
