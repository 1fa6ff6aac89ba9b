"""AdamW, LAMB and LARS. The only file that touches NVIDIA apex.

ZeRO hands an optimizer flat pieces of many parameters, so that "the norm of a layer" is no longer
the norm of a tensor: LAMB and LARS as commonly written scale those pieces instead of layers,
without a word. Here they know where each layer lies in the pieces (`layers`), and add up its
squared norms over the ranks.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from model.errors import ConfigError
from trainer.config.schema import RunConfig

log = logging.getLogger(__name__)

STATE = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "lars": ("momentum",),
}
# Of a LAMB step's length to what Adam would do; as in the paper's released code.
_LARGEST_RATIO = 10.0

Parameters = Iterable[tuple[str, nn.Parameter]]  # names and parameters of a network


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: tensors of two or more dimensions that are no biases have weight decay, and the
    adaptation of LAMB and LARS (`adapt`); the others have neither. Frozen parameters are left out.

    The reference takes timm's rule, for which a bias is what is named so: that of the vocabulary
    has the shape (1, 1, V).
    """
    return _grouped(parameters, weight_decay, lambda name: 0, lambda layer: 1.0, spared=())


def layerwise_groups(
    parameters: Parameters, weight_decay: float, *, depth: int, layer_decay: float
) -> list[dict[str, Any]]:
    """The same rule with groups for each layer of a network of `depth` blocks. The learning rate of
    a layer is `layer_decay` times that of the next one (`scale`, 1 for the head), and positions and
    class token do not decay (BEiT, arXiv 2106.08254, and MAE, arXiv 2111.06377)."""
    return _grouped(
        parameters,
        weight_decay,
        lambda name: layer_of(name, depth),
        lambda layer: layer_decay ** (depth + 1 - layer),
        spared=("pos_embed", "cls_token"),
    )


def _grouped(
    parameters: Parameters,
    weight_decay: float,
    number_of: Callable[[str], int],
    scale_of: Callable[[int], float],
    spared: tuple[str, ...],
) -> list[dict[str, Any]]:
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith(".bias") or name in spared
            groups.setdefault((number_of(name), plain), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": 0.0 if plain else weight_decay,
            "adapt": not plain,
            "scale": scale_of(layer),
        }
        for (layer, plain), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter of an encoder: 0 for what stands before the blocks, 1 to depth for a
    block, depth + 1 for the head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    before = ("cls_token", "pos_embed", "patch_embed.", "tokenizer_norm.")
    return 0 if name.startswith(before) else depth + 1


class EagerOptimizer(Optimizer):
    """An optimizer that is never compiled. PyTorch's own methods load torch.compile's tracer, which
    takes a second of CPU time, to be left out by it; here they are as they were written."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class EagerAdamW(EagerOptimizer, AdamW):
    """PyTorch's AdamW, never compiled."""

    step = torch.no_grad()(inspect.unwrap(AdamW.step))


class Layer(NamedTuple):
    """A part of a parameter in a flat piece: `length` elements from `offset` on. number: that of
    the parameter, the same on all ranks."""

    number: int
    offset: int
    length: int


class Layerwise(EagerOptimizer):
    """The part that LAMB and LARS share: they scale each layer's step by a ratio of norms of the
    whole layer.

    layers: for each flat piece its layers, and their number on all ranks. A tensor without an entry
    is one layer of its own, whole on this rank. Parameter groups with `adapt: False` (biases,
    norms) take ratio 1.
    """

    layers: dict[Tensor, tuple[list[Layer], int]]

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        self.layers = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, self.state[parameter])

    def _update(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def scale_layers(
        self, weights: Tensor, step: Tensor, ratio: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """Multiply each layer's part of `step` by ratio(layer's weight norm, layer's step norm)."""
        known = self.layers.get(weights)
        if known is None:
            step.mul_(ratio(weights.norm(), step.norm()))
            return
        layers, count = known
        squares = torch.zeros(2, count, dtype=torch.float64, device=weights.device)
        parts = [step[layer.offset : layer.offset + layer.length] for layer in layers]
        if layers:
            index = torch.tensor([layer.number for layer in layers], device=weights.device)
            own = [weights[layer.offset : layer.offset + layer.length] for layer in layers]
            for row, tensors in enumerate((own, parts)):
                norms = torch.stack(torch._foreach_norm(tensors)).double()
                squares[row].index_add_(0, index, norms.square())
        weight_norms, step_norms = _sum_over_ranks(squares).sqrt()
        ratios = ratio(weight_norms, step_norms).to(step.dtype)
        if layers:
            torch._foreach_mul_(parts, list(ratios[index].unbind()))


def _sum_over_ranks(values: Tensor) -> Tensor:
    """The sum goes by way of the device that the communication backend has: pieces that are
    offloaded lie on the CPU."""
    on = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(on)
    return on.to(values.device)


class LAMB(Layerwise):
    """Layer-wise Adam for large batches (You et al., ICLR 2020, arXiv 1904.00962), with bias
    correction."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "adapt": True}
        )

    def _update(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        if not state:
            state.update(
                step=torch.tensor(0.0),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )
        state["step"] += 1
        first, second = group["betas"]
        count = float(state["step"])
        gradient = parameter.grad
        assert gradient is not None
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = state["exp_avg_sq"].div(1 - second**count).sqrt_().add_(group["eps"])
        step = (
            state["exp_avg"]
            .div(1 - first**count)
            .div_(root)
            .add_(parameter, alpha=group["weight_decay"])
        )
        if group["adapt"]:
            self.scale_layers(parameter, step, _lamb_ratio)
        parameter.add_(step, alpha=-group["lr"])


def _lamb_ratio(weights: Tensor, step: Tensor) -> Tensor:
    return torch.where((weights > 0) & (step > 0), weights / step, 1.0).clamp(max=_LARGEST_RATIO)


class LARS(Layerwise):
    """Layer-wise SGD with momentum for large batches (You et al. 2017, arXiv 1708.03888)."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, trust: float
    ) -> None:
        super().__init__(
            groups,
            {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True},
        )

    def _update(self, group: dict[str, Any], parameter: Tensor, state: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        step = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if group["adapt"]:
            trust = group["trust"]
            self.scale_layers(
                parameter, step, lambda w, s: torch.where((w > 0) & (s > 0), trust * w / s, 1.0)
            )
        state["momentum"].mul_(group["momentum"]).add_(step, alpha=group["lr"])
        parameter.sub_(state["momentum"])


def make_optimizer(config: RunConfig, groups: list[dict[str, Any]], on_cuda: bool) -> Optimizer:
    """The configured optimizer, with the fastest kernels that this machine has; one log line says
    which.

    Raises ConfigError where `optimizer.kernel: apex` cannot be had.
    """
    o, rate = config.optimizer, config.learning_rate
    apex = _apex(config, on_cuda)
    if o.name == "lars":
        optimizer: Optimizer = LARS(groups, rate, o.betas[0], o.trust)
        kernel = "own, layer-wise on ZeRO's pieces"
    elif o.name == "lamb":
        if apex and config.zero_stage == 0:
            optimizer = apex.FusedLAMB(groups, lr=rate, betas=o.betas, eps=o.eps, max_grad_norm=0.0)
            kernel = "apex FusedLAMB"
        else:
            optimizer = LAMB(groups, rate, o.betas, o.eps)
            kernel = "own, layer-wise on ZeRO's pieces"
    elif apex:
        optimizer = apex.FusedAdam(groups, lr=rate, betas=o.betas, eps=o.eps, adam_w_mode=True)
        kernel = "apex FusedAdam"
    else:
        optimizer = EagerAdamW(groups, lr=rate, betas=o.betas, eps=o.eps, fused=True)
        kernel = "torch, fused"
    log.info("optimizer %s: %s", o.name, kernel)
    return optimizer


def skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer changes nothing where its attribute `found_inf`, a scalar on
    the device, is 1. So do PyTorch's fused kernels, for its gradient scaler."""
    return isinstance(optimizer, AdamW)


def _apex(config: RunConfig, on_cuda: bool) -> Any:
    """apex.optimizers, or None. The package of that name on PyPI is another one and has no
    `optimizers`."""
    wanted = config.optimizer.kernel
    if wanted == "torch" or (wanted == "auto" and (not on_cuda or config.offload != "none")):
        return None
    installed = importlib.util.find_spec("apex") and importlib.util.find_spec("apex.optimizers")
    if not installed and wanted == "apex":
        raise ConfigError(
            "optimizer.kernel = apex, but NVIDIA apex is not installed (the `apex` of PyPI is "
            "another project); docs/architecture.md has its install line, or use "
            "optimizer.kernel = auto"
        )
    if not installed:
        return None
    import apex.optimizers

    return apex.optimizers
