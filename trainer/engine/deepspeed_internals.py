"""The parts of DeepSpeed that are no promise of its API, all of them, and why each is needed.

DeepSpeed has no public way to say where ZeRO keeps a parameter's float32 weights and optimizer
state, nor to make the network compute with weights that were changed there. Checkpoints that depend
neither on ZeRO's stage nor on the number of ranks need both. Nothing else in the program touches
what stands here. `pyproject.toml` bounds DeepSpeed's version, and a test looks each of these names
up in the version that is installed.

zero: the optimizer that `deepspeed.initialize` returns. Which class it is depends on the stage and
the precision: `DeepSpeedZeroOptimizer` (stages 1 and 2), `BF16_Optimizer` (stage 1 in bf16) or
`DeepSpeedZeroOptimizer_Stage3`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer


class Address(NamedTuple):
    """Elements start .. start+length-1 of a flattened parameter stand at `offset` of this rank's
    flat tensor."""

    start: int
    length: int
    offset: int


def groups_and_flats(zero: Any, stage: int) -> list[tuple[list[nn.Parameter], Tensor]]:
    """The groups of parameters, each with the flat float32 tensor that holds this rank's share.

    These lists are where ZeRO keeps its shares. Their names differ between its three optimizers.
    """
    if stage == 3:
        groups, flats = zero.fp16_groups, zero.fp32_partitioned_groups_flat
    elif hasattr(zero, "bf16_groups"):  # stage 1 in bf16 is an optimizer of its own
        groups, flats = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, flats = zero.bit16_groups, zero.single_partition_of_fp32_groups
    return list(zip(groups, flats, strict=True))


def address(parameter: nn.Parameter) -> Address | None:
    """Where this rank's share of a parameter stands in stages 1 and 2; None where it has none.

    `_hp_mapping` is made for DeepSpeed's own universal checkpoints, and is the only place where the
    bounds are kept.
    """
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    network, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Address(network.start, network.numel, flat.start)


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole shape of a parameter, in every stage. ZeRO-3 leaves an empty tensor in its place,
    and remembers the shape as `ds_shape`."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def share_of(parameter: nn.Parameter) -> tuple[int, int]:
    """The size of a parameter in stage 3: (elements of one rank's share, elements of the whole).
    The last ranks' shares may be padding."""
    whole: Any = parameter
    return whole.partition_numel(), whole.ds_numel


def take_over_weights(zero: Any, stage: int) -> None:
    """All ranks together: make the network compute with what the flat float32 tensors hold now.

    ZeRO does so at the end of a step of its own only. A restored checkpoint changes the weights
    without a step, and ZeRO-3 skips a step that is not finite without gathering again what it keeps
    whole.
    """
    if stage == 3:
        zero._partition_all_parameters()
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        zero._post_step(set())
    elif stage in (1, 2):
        zero.update_lp_params()


def send_in_buckets(engine: Any, world_size: int, elements: int) -> None:
    """Without ZeRO, have gradients sent in buckets of so many elements. DeepSpeed copies up to
    5e8 of them together, which is the whole of our networks once more, and does so on a single
    rank, too, where there is nothing to send."""
    engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=elements)
    engine.enable_backward_allreduce = world_size > 1


def save_passes(zero: Any) -> None:
    """Leave out what costs a step of stages 1 and 2 a few kernels for each parameter, and changes
    nothing:

    - Norms. DeepSpeed casts each gradient to float64 and takes its norm. One call takes them all,
      in float64 as before.
    - The search of each gradient for values that are not finite. Their norm says the same, and
      DeepSpeed skips a step by it in every precision.
    - Pointing each parameter at its place in the flat weights after a step. It points there since
      the start, and the step writes into these weights.
    """
    if not hasattr(zero, "bit16_groups") or zero.cpu_offload:
        return

    def norm(gradients: Iterable[Tensor], parameters: object, norm_type: float = 2) -> Tensor:
        norms = torch._foreach_norm(list(gradients), norm_type, dtype=torch.float64)
        total = torch.stack(norms).square().sum().float()
        torch.distributed.all_reduce(total, group=zero.dp_process_group)
        return torch.where(total.isfinite(), total.sqrt(), -1.0)  # -1: as DeepSpeed marks it

    zero.get_grad_norm_direct = norm
    zero.check_overflow = lambda partition_gradients=True: None
    zero._update_model_bit16_weights = lambda group: None


def loss_scaler(optimizer: Any) -> Any:
    """The loss scale of fp16; None in other precisions.

    At the smallest scale it would raise an error of its own. The configuration says how many steps
    may be skipped, so that the switch is turned off.
    """
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False
    return scaler


def scaler_state(scaler: Any) -> dict[str, Any]:
    """The numbers of a loss scale, without its switches: it has no `state_dict`."""
    values = vars(scaler) if scaler is not None else {}
    return {key: value for key, value in values.items() if type(value) in (int, float)}


def set_scaler_state(scaler: Any, state: dict[str, Any]) -> None:
    """Set the numbers of a loss scale, as `scaler_state` gave them. Those that this version of
    DeepSpeed does not know are left out."""
    if scaler is not None:
        known = scaler_state(scaler).keys() & state.keys()
        vars(scaler).update({key: state[key] for key in known})


def load_muon_uncompiled() -> None:
    """Load DeepSpeed's Muon with its kernels as they are written.

    ZeRO loads it at each start, only to see that the optimizer is another one, and Muon compiles
    its kernels as it is loaded. For that PyTorch loads its whole compiler, which takes 2 s of CPU
    time.
    """
    from deepspeed.runtime import compiler

    compiling, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compiling


def declare_tested(optimizer: Optimizer) -> None:
    """Have ZeRO take an optimizer without a warning. It knows the classes of its list, and none
    that is derived from them."""
    from deepspeed.runtime.zero import utils

    if type(optimizer) not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(type(optimizer))


def without_shared_memory_kernel() -> None:
    """Leave a kernel out that DeepSpeed would compile on CPUs for a minute, to communicate in
    shared memory. Training does not need it, and there is no option for it."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
