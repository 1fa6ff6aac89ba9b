"""The only file that touches DeepSpeed: start, one optimizer step, and the engine's part of a checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import RunConfig
from trainer.objectives import Inputs
from trainer.schedule import parameter_groups

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise every import probes for accelerators, and warns

_TAG = "engine"


def start_distributed() -> tuple[int, int, torch.device]:
    """(rank, world size, device) of this process, from the launcher's environment; a lone process is its own world."""
    import deepspeed

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    for name, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, alone)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
        # DeepSpeed would compile a shared-memory communication kernel for a minute; training does not need it.
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    return dist.get_rank(), dist.get_world_size(), device


def deepspeed_config(config: RunConfig, accumulation: int, world_size: int) -> dict[str, Any]:
    """Generated from the run's configuration, never written by hand."""
    result: dict[str, Any] = {
        "train_batch_size": config.batch.micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": config.batch.micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if config.precision == "bf16":
        result["bf16"] = {"enabled": True}
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


class Engine:
    """A DeepSpeed engine over one module whose call returns the loss."""

    def __init__(self, network: nn.Module, config: RunConfig, accumulation: int, world_size: int) -> None:
        import deepspeed

        groups = parameter_groups(network.named_parameters(), config.optimizer.weight_decay)
        optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.optimizer.betas, fused=torch.cuda.is_available()
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=deepspeed_config(config, accumulation, world_size),
            dist_init_required=False,
        )  # fmt: skip
        self.device: torch.device = self._engine.device
        self._engine.train()

    def optimizer_step(
        self, micro_batches: Iterable[Inputs], learning_rate: float
    ) -> tuple[torch.Tensor, torch.Tensor | float | None]:
        """One optimizer step over all micro batches. Returns (this rank's mean loss, gradient norm before clipping)."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        losses = []
        for inputs in micro_batches:
            loss = self._engine(**inputs)
            self._engine.backward(loss)
            self._engine.step()
            losses.append(loss.detach().float())
        return torch.stack(losses).mean(), self._engine.get_global_grad_norm()

    def save(self, folder: Path) -> None:
        """All ranks together. Files below folder/engine; what makes them a checkpoint is the manifest beside it."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """All ranks together, from a folder whose manifest was verified: DeepSpeed's files are pickles."""
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        assert loaded is not None, f"DeepSpeed found no checkpoint in {folder}"

    def close(self) -> None:
        """Free the engine before the process group: otherwise gloo aborts in some runs after all is done."""
        del self._engine, self._optimizer
        gc.collect()
        dist.destroy_process_group()
