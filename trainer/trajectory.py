"""Prove the training, not only its step: replay optimizer steps of the reference through the
trainer's own engine.

    deepspeed --num_gpus 2 --module trainer.trajectory FOLDER --device cuda --zero-stage 2

FOLDER is one as `trainer/trajectory_folder.py` describes it. Prints JSON with the largest relative
deviation of loss, gradient norm and each final weight, and then, on standard error, the verdict in
one line; exits 0 if all hold, 1 if not. `addp parity` starts it for folders of this form.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.addp import ADDP
from model.errors import ADDPError, ConfigError
from model.ledger import Ledger, verdict
from model.masking import DenoisingMasks
from model.precision import warn_of_bf16
from trainer.distributed.world import take_world
from trainer.engine.precision import MODES
from trainer.engine.state_keys import WEIGHTS
from trainer.resilience.leaving import leave
from trainer.trajectory_folder import TrajectoryFolder

if TYPE_CHECKING:
    from trainer.distributed.collectives import Collectives
    from trainer.engine.engine import Engine

# Largest allowed deviation: of a loss and a gradient norm, relative to the reference's; of a final
# tensor, the norm of the difference over the reference's norm. Half precisions round every product
# of every step, and Adam gives an element a step of about the learning rate however small its
# gradient is: they prove that a machine trains, not the method.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"count": 0, "loss": 1e-6, "grad_norm": 1e-4, "final": 1e-4},
    "float32, own sums": {"count": 0, "loss": 1e-6, "grad_norm": 1e-4, "final": 1e-2},
} | {
    name: {"count": 0, "loss": 1e-3, "grad_norm": 0.2, "final": 0.4}
    for name in ("bfloat16", "bfloat16-mixed", "float16")
}
_PRECISION = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "bfloat16-mixed": "bf16-mixed",
    "float16": "fp16",
}
_TRIES = 40  # of one step in float16, until its loss scale is found


class ReferenceSums(ADDP):
    """The same network and loss, with the reference's order of summation.

    The reference gives its logits to `cross_entropy` with the vocabulary as second dimension, which
    PyTorch on the CPU adds up one by one in float32: its softmax is off by some 1e-5, by the same
    share at all positions. Ours, over the last dimension, is more exact. But Adam's first steps
    have the gradient's sign and not its size, so that even an element whose first gradient is 1e-9
    comes out differently. With the reference's sums the replay is held to bounds that let nothing
    else through.
    """

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        target: Tensor,
        smoothing: float,
        *,
        visible_count: int | None = None,
        weights: Tensor | None = None,
        classes: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        assert weights is None and classes is None and dropped is None
        logits = self.logits(images, ids, mask, visible_count).transpose(1, 2)
        wanted = F.pad(target, (0, logits.shape[1] - target.shape[-1])).transpose(1, 2)
        loss = F.cross_entropy(logits, wanted, reduction="none", label_smoothing=smoothing)
        return (loss * mask).sum() / mask.sum()


def choose_device(name: str) -> None:
    """Hide all GPUs for "cpu"; it is called before anything looks for one. Raises ConfigError where
    this rank has none and is to use one."""
    if name == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    elif not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    elif take_world().local >= torch.cuda.device_count():
        raise ConfigError(
            f"there are {torch.cuda.device_count()} CUDA devices here, fewer than ranks"
        )


def replay(
    folder: TrajectoryFolder, device: str, dtype: str, stage: int, own_sums: bool
) -> dict[str, Any] | None:
    """All ranks together: take the reference's steps, and compare what comes of them. Returns the
    report on rank 0, None on the others. Raises ConfigError and WeightsError.

    stage: of ZeRO. own_sums: compute the loss as the trainer does, and not as the reference does.
    In half precisions and on GPUs sums differ from the reference's in any case, and the trainer's
    are taken.
    """
    config = folder.config(take_world().size, _PRECISION[dtype], stage)
    own_sums = own_sums or dtype != "float32" or device != "cpu"
    frozen, network = folder.networks(config, ADDP if own_sums else ReferenceSums)
    choose_device(device)
    # Only now: DeepSpeed looks for devices where it is imported.
    from trainer.distributed.collectives import Collectives
    from trainer.engine.engine import Engine, start_distributed
    from trainer.objectives.addp import denoising_inputs, frozen_dtype
    from trainer.objectives.base import Inputs
    from trainer.schedule import accumulation_steps
    from trainer.timing import Stopwatch

    rank, world_size, own_device = start_distributed(config.collective_timeout)
    if MODES[config.precision].products == "bfloat16":
        warn_of_bf16(own_device.type, "Prove it on a GPU (--device cuda), or another --dtype here")
    collectives = Collectives(config.collective_timeout)
    accumulation = accumulation_steps(config, world_size)
    frozen.to(own_device, frozen_dtype(config))
    engine = Engine(network, config, accumulation, world_size)
    steps, micro, clock = folder.steps, config.batch.micro, Stopwatch(False)
    own = range(rank * accumulation * micro, (rank + 1) * accumulation * micro, micro)

    def micro_batches(step: int) -> Iterator[Inputs]:
        for first in own:
            rows = slice(first, first + micro)
            ids, mask_t, mask_next = (t[step, rows].to(own_device) for t in steps[:3])
            masks = DenoisingMasks(mask_t, mask_next, int(mask_t[0].sum()))
            yield denoising_inputs(frozen, ids, masks, config.label_smoothing)

    ledger = Ledger(TOLERANCES[f"{dtype}, own sums" if own_sums and dtype == "float32" else dtype])
    for step in range(len(steps.loss)):
        for _ in range(_TRIES if dtype == "float16" else 1):
            result = engine.optimizer_step(
                micro_batches(step), float(steps.learning_rate[step]), clock
            )
            if result.applied:
                break
        ledger.add("skipped_steps", "count", float(step + 1 - engine.applied))
        for name, value in (
            ("loss", collectives.mean([float(result.loss)])[0]),
            ("grad_norm", float(result.norm)),
        ):
            expected = float(getattr(steps, name)[step])
            ledger.add(name, name, abs(value - expected) / max(abs(expected), 1e-12))
    ours = gather_weights(engine, collectives)
    engine.close()
    if rank:
        return None
    ledger.add("unmatched_names", "count", float(len(ours.keys() ^ steps.final.keys())))
    for name in sorted(ours.keys() & steps.final.keys()):
        reference = steps.final[name].double()
        distance = (ours[name].double() - reference).norm() / reference.norm().clamp_min(1e-12)
        ledger.add(f"final.{name}", "final", float(distance))
    return ledger.report(
        folder.path,
        own_device.type,
        dtype,
        processes=world_size,
        zero_stage=stage,
        steps=len(steps.loss),
        sums="own" if own_sums else "reference",
    )


def gather_weights(engine: Engine, collectives: Collectives) -> dict[str, Tensor]:
    """All ranks together: gather the trained tensors, float32 by name, on rank 0. Returns none on
    the others."""
    mine = [
        (fragment.name, fragment.start, values.detach().cpu())
        for state_key, fragment, values in engine.owned()
        if state_key == WEIGHTS
    ]
    shares = collectives.collect(mine)
    if collectives.rank:
        return {}
    whole = {name: torch.empty(shape) for name, shape in engine.partition.shapes.items()}
    for name, start, values in (piece for share in shares for piece in share):
        whole[name].view(-1)[start : start + len(values)] = values
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Replay a trajectory as the command line says. Returns the exit code of this rank."""
    parser = argparse.ArgumentParser(
        prog=os.environ.get("ADDP_PROGRAM", "python -m trainer.trajectory"),
        description=__doc__.split("\n\n")[0],
    )
    parser.add_argument(
        "folder", type=Path, help="with weights.safetensors, trajectory.safetensors and meta.json"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=list(_PRECISION), help="default float32"
    )
    parser.add_argument(
        "--zero-stage", type=int, default=1, choices=range(4), help="of DeepSpeed (default 1)"
    )
    parser.add_argument(
        "--own-sums",
        action="store_true",
        help="float32 on the CPU: the loss as the trainer adds it up, not as the reference does; "
        "wider bounds",
    )
    parser.add_argument(
        "--report", type=Path, help="file for the JSON, in place of standard output"
    )
    # The deepspeed launcher appends it.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rank = take_world().rank
    try:
        report = replay(
            TrajectoryFolder(options.folder),
            options.device,
            options.dtype,
            options.zero_stage,
            options.own_sums,
        )
    except ADDPError as error:
        if rank == 0:  # the folder is the same for all
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if report is None:
        return 0
    text = json.dumps(report, indent=1)
    if options.report is None:
        print(text, flush=True)
    else:
        options.report.write_text(text)
    print(verdict(report), file=sys.stderr)
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    leave(main)
