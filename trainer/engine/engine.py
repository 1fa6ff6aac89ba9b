"""A DeepSpeed engine: its start, one optimizer step, and its state as named tensors.

This file calls DeepSpeed's public functions; `deepspeed_internals.py` holds what it keeps to
itself. No other file touches it.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.compiling import is_compiled
from model.errors import ConfigError
from model.precision import keep_float32
from model.transformer import Block
from trainer.config.schema import RunConfig
from trainer.distributed.meeting import LONG, join_ranks
from trainer.distributed.world import own_cores, take_world
from trainer.engine import deepspeed_internals as internals
from trainer.engine.ema import WeightEMA
from trainer.engine.optimizers import STATE, make_optimizer, parameter_groups, skips_by_itself
from trainer.engine.partition import Fragment, Partition
from trainer.engine.precision import MODES, Precision
from trainer.engine.state_keys import EMA, WEIGHTS, Range
from trainer.engine.zero import BUCKET, zero_settings
from trainer.host_memory import keep_freed_memory
from trainer.timing import Stopwatch

if not torch.cuda.is_available():
    # Otherwise every import of DeepSpeed probes for accelerators, and warns.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def load_deepspeed() -> None:
    """Import DeepSpeed, which takes seconds. Whoever needs it later would do so then."""
    import deepspeed  # noqa: F401


def start_distributed(timeout: float = LONG) -> tuple[int, int, torch.device]:
    """Meet the other ranks, as `join_ranks` does. Returns (rank, world size, device) of this
    process."""
    import deepspeed

    keep_float32()
    world = take_world()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", world.local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        keep_freed_memory()
        torch.set_num_threads(own_cores())
        internals.without_shared_memory_kernel()
    # DeepSpeed calls collectives by names that PyTorch is about to change; that is no news for the
    # user of a run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    backend = "nccl" if on_gpu else "gloo"
    join_ranks(timeout, backend, device if on_gpu else None)
    deepspeed.init_distributed(backend, verbose=False)  # it takes up the world that there is
    return world.rank, world.size, device


def deepspeed_config(
    config: RunConfig, accumulation: int, world_size: int, parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, made from the run's and never written by hand. parameters: how
    many the network has."""
    zero = zero_settings(config.zero_stage, world_size, parameters)
    on_cuda = torch.cuda.is_available()
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_cuda}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_cuda}
    result: dict[str, Any] = {
        "train_batch_size": config.batch.micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": config.batch.micro,
        "gradient_accumulation_steps": accumulation,
        # Without ZeRO, `optimizer_step` clips.
        "gradient_clipping": config.optimizer.clip if config.zero_stage else 0.0,
        "zero_optimization": zero,
        # Else gradients are summed over ranks in the precision of the network.
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # It waits for the device twice in each micro batch.
        "timers": {"throughput": {"enabled": False}},
    }
    if config.precision == "bf16":
        result["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif config.precision == "fp16":
        result["fp16"] = {"enabled": True}
    mode = MODES[config.precision]
    if mode.mixed:
        # The modules that DeepSpeed calls safe are those whose gradients, and in ZeRO-3 weights, it
        # would send in half precision, whatever communication_data_type says; what is computed in
        # which precision is PyTorch's choice.
        safe: list[str] = []
        result["torch_autocast"] = {
            "enabled": True,
            "dtype": mode.products,
            "lower_precision_safe_modules": safe,
        }
    elif mode.width < 4:
        # Else micro batches are added up in half precision.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def check_device(precision: Precision) -> None:
    """Raises ConfigError where this machine cannot compute in the precision."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision = fp16 needs a GPU; use bf16 or fp32 here")


class StepResult(NamedTuple):
    """What came of an optimizer step: scalars, which may still be computed. To read one waits for
    the device.

    loss: float32, this rank's mean over its micro batches. norm: of the gradient before it was
    clipped, the same on all ranks; not finite where nothing was applied. applied: bool, whether the
    weights were changed.
    """

    loss: Tensor
    norm: Tensor
    applied: Tensor


class Engine:
    """A DeepSpeed engine over one module whose call returns the loss."""

    def __init__(
        self,
        network: nn.Module,
        config: RunConfig,
        accumulation: int,
        world_size: int,
        *,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        """groups: the optimizer's parameter groups; None for the plain rule of `parameter_groups`.
        Raises ConfigError where this machine cannot compute in the configured precision."""
        import deepspeed

        check_device(config.precision)
        self._stage, self._accumulation = config.zero_stage, accumulation
        self._clip = config.optimizer.clip
        self._state_keys = STATE[config.optimizer.name]
        self._network = network
        # Before the engine takes them: half precision would round the first weights, and ZeRO-3
        # divides them.
        first = {
            name: p.detach().float().clone()
            for name, p in network.named_parameters()
            if p.requires_grad
        }
        if groups is None:
            decay = config.optimizer.weight_decay
            groups = parameter_groups(network.named_parameters(), decay)
        self._base = make_optimizer(config, groups, torch.cuda.is_available())
        if self._stage == 3 and is_compiled(network):
            # Hooks on the layers of a block would cut its graph to pieces.
            deepspeed.utils.set_z3_leaf_modules(network, [Block])
        internals.load_muon_uncompiled()
        internals.declare_tested(self._base)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=network,
            optimizer=self._base,
            dist_init_required=False,
            config=deepspeed_config(
                config, accumulation, world_size, sum(t.numel() for t in first.values())
            ),
        )
        if self._stage == 0:
            internals.send_in_buckets(self._engine, world_size, BUCKET)
        internals.save_passes(self._optimizer)
        self._scaler: Any = internals.loss_scaler(self._optimizer)
        self.device: torch.device = self._engine.device
        self.partition = Partition(
            network, self._optimizer, self._stage, dist.get_rank(), world_size
        )
        self.partition.connect(self._base)
        for fragment in self.partition.held:
            fragment.weights().copy_(
                first[fragment.name].view(-1)[fragment.start : fragment.start + fragment.length]
            )
        self.partition.publish()
        self.ema = (
            WeightEMA(self.partition, config.ema_decay) if config.ema_decay is not None else None
        )
        self._skips_by_itself = skips_by_itself(self._base)
        # Updates so far, beside the weights: on the CPU where the optimizer is offloaded.
        offloaded = config.offload != "none"
        self._applied = torch.zeros(
            (), dtype=torch.int64, device="cpu" if offloaded else self.device
        )
        self._engine.train()

    @property
    def applied(self) -> int:
        """The number of updates so far. To read it waits for the device."""
        return int(self._applied)

    def optimizer_step(
        self,
        micro_batches: Iterable[dict[str, Any]],
        learning_rate: float,
        own: Stopwatch,
        before_backward: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Take one optimizer step over all micro batches. A gradient that is not finite changes
        nothing, on any rank.

        Nothing here waits for the device. ZeRO itself does, once it has the norm, to learn whether
        it skips the step (docs/performance.md).

        own: a clock that runs while this rank works alone, from making inputs to the end of the
        forward pass. before_backward: called when the forward pass of a micro batch is under way.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("scale", 1.0)
        losses = []
        batches = iter(micro_batches)
        for index in range(self._accumulation):
            own.start()
            loss = self._engine(**next(batches))
            own.stop()
            before_backward()
            self._engine.backward(loss)
            if self._stage == 0 and index + 1 == self._accumulation:
                norm, applied = self._clip_whole_gradients()
            self._engine.step()
            losses.append(loss.detach().float())
        if self._stage:
            norm, applied = self._outcome_of_zero()
        self._applied += applied
        if self.ema:
            self.ema.update(self._applied, applied)
        return StepResult(torch.stack(losses).mean(), norm, applied)

    def _clip_whole_gradients(self) -> tuple[Tensor, Tensor]:
        """Do what ZeRO does by itself in stages 1 to 3: clip the gradients, and have the optimizer
        skip the step where they are not finite. Returns their norm, and whether they are finite."""
        trained = [p for p in self._network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        finite = norm.isfinite()
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(trained, self._clip, norm)
        if self._skips_by_itself:
            self._base.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
        elif not finite:  # this waits for the device
            for parameter in trained:
                parameter.grad = None
        return norm, finite

    def _outcome_of_zero(self) -> tuple[Tensor, Tensor]:
        """The norm of the gradient, and whether the step was applied. ZeRO knows on the host which
        steps it skips, and states no norm of theirs but infinity."""

        def scalar(value: float) -> Tensor:
            return torch.full((), value, device=self._applied.device)

        norm, applied = self._engine.get_global_grad_norm(), self._engine.was_step_applied()
        if not applied:
            # ZeRO-3 skips a step without gathering again the parameters that it keeps whole.
            self.partition.publish()
        return norm if isinstance(norm, Tensor) else scalar(norm), scalar(applied)

    @property
    def state_keys(self) -> tuple[str, ...]:
        """The names of the tensors that are kept for each parameter, as checkpoints have them."""
        return (WEIGHTS, *self._state_keys, *((EMA,) if self.ema else ()))

    def owned(self) -> Iterator[tuple[str, Fragment, Tensor]]:
        """This rank's share of the state: (the tensor's name as in `state_keys`, fragment, its
        values, a (length,) float32 view)."""
        if self.applied == 0:
            self.partition.make_state(self._base, self._state_keys, 0)
        for index, fragment in enumerate(self.partition.owned):
            yield WEIGHTS, fragment, fragment.weights()
            for key in self._state_keys:
                yield key, fragment, fragment.state(self._base, key)
            if self.ema:
                yield EMA, fragment, self.ema.values[index]

    def buffers(self) -> dict[str, Tensor]:
        """What the network keeps beside its trained parameters, the same on all ranks."""
        return {
            k: v for k, v in self._network.state_dict().items() if k not in self.partition.shapes
        }

    def scaler(self) -> dict[str, Any]:
        """The numbers of fp16's loss scale; {} in other precisions."""
        return internals.scaler_state(self._scaler)

    def wanted(self, with_ema: bool) -> Iterator[Range]:
        """What `fill` reads on this rank, without the buffers."""
        for fragment in self.partition.held:
            for state_key in (WEIGHTS, *self._state_keys):
                yield Range(state_key, fragment.name, fragment.start, fragment.length)
        for fragment in self.partition.owned if self.ema and with_ema else ():
            yield Range(EMA, fragment.name, fragment.start, fragment.length)

    def fill(
        self,
        read: Callable[[str, str, int, int], Tensor],
        buffers: dict[str, Tensor],
        scaler: dict[str, Any],
        applied: int,
        with_ema: bool,
    ) -> None:
        """All ranks together: take over a saved state, of any stage and number of ranks.

        read(state_key, parameter, start, length) -> (length,) float32. buffers, scaler, applied: as
        `buffers()`, `scaler()` and `applied` were. with_ema: whether the state has a moving average
        of the weights; where one is wanted and missing, it starts from the weights.
        """
        self._applied.fill_(applied)
        self.partition.make_state(self._base, self._state_keys, applied)
        for fragment in self.partition.held:
            at = (fragment.name, fragment.start, fragment.length)
            fragment.weights().copy_(read(WEIGHTS, *at))
            for key in self._state_keys:
                fragment.state(self._base, key).copy_(read(key, *at))
        if self.ema and with_ema:
            for fragment, value in zip(self.partition.owned, self.ema.values, strict=True):
                value.copy_(read(EMA, fragment.name, fragment.start, fragment.length))
        elif self.ema:
            self.ema.reset()
        state = self._network.state_dict()
        for name, value in buffers.items():
            state[name].copy_(value)
        internals.set_scaler_state(self._scaler, scaler)
        self.partition.publish()

    def close(self) -> None:
        """Free the engine before the process group: otherwise gloo aborts in some runs after all is
        done."""
        del (
            self._engine,
            self._optimizer,
            self._scaler,
            self._base,
            self.partition,
            self.ema,
            self._network,
        )
        gc.collect()
        import deepspeed

        deepspeed.comm.destroy_process_group()  # and what DeepSpeed itself remembers of it
