"""Train a tokenizer, a token predictor or ADDP. Started by a launcher:

    deepspeed --num_gpus 8 --module trainer.pretrain --config configs/base.yaml data.tokens=/data/imagenet

Run it again with the same run folder and it goes on from the newest valid checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from model.errors import ADDPError
from model.randomness import raw_bits
from trainer import checkpoint
from trainer.config import RunConfig, load_config
from trainer.engine import Engine, start_distributed
from trainer.metrics import Metrics
from trainer.objectives import Inputs, Objective, make_objective
from trainer.run_folder import RunFolder, replace_text, write_json
from trainer.schedule import accumulation_steps, learning_rate, total_steps


def train(config: RunConfig, rank: int, world_size: int) -> None:
    """The whole run on this rank."""
    accumulation = accumulation_steps(config, world_size)
    torch.manual_seed(config.seed)  # every rank starts from the same weights
    with closing(make_objective(config)) as objective:
        run_steps(config, objective, accumulation, rank, world_size)


def run_steps(config: RunConfig, objective: Objective, accumulation: int, rank: int, world_size: int) -> None:
    """From the newest valid checkpoint, or the start, to the end."""
    folder = RunFolder(config.run)
    total = total_steps(config.schedule, objective.epochs)
    facts = run_facts(config, objective)
    engine = Engine(objective.network, config, accumulation, world_size)
    torch.manual_seed(int(raw_bits(config.seed, "dropout", rank, 1, 1)[0, 0] >> 1))  # and drops other units
    step, refused = checkpoint.restore(folder, engine, facts)
    if rank == 0:
        describe_run(folder, config)
    metrics = Metrics(folder, config.run.name, step, total, config.batch.global_batch) if rank == 0 else None
    with metrics or nullcontext():
        if metrics:
            for reason in refused:
                metrics.say(f"refused a checkpoint: {reason}")
            metrics.say(f"{'resumed at' if step else 'starts at'} step {step} of {total} on {world_size} ranks")
        window: list[torch.Tensor] = []  # losses since the last metric line
        while step < total:
            rate = learning_rate(config.learning_rate, config.schedule, objective.epochs, step)
            batches = micro_batches(objective, step, rank, accumulation, config.batch.micro, engine.device, metrics)
            loss, gradient_norm = engine.optimizer_step(batches, rate)
            window.append(loss)
            if (step + 1) % config.log_every == 0 or step + 1 == total:
                loss = torch.stack(window).mean()
                window.clear()
                dist.all_reduce(loss)
                if metrics:
                    metrics.record(step, float(loss) / world_size, rate, float(gradient_norm or 0.0))
            step += 1
            if step % config.checkpoint.every == 0 or step == total:
                checkpoint.save(folder, engine, objective.result, step, facts, config.checkpoint.keep)
    finish(folder, rank, step)
    engine.close()


def micro_batches(
    objective: Objective, step: int, rank: int, accumulation: int, micro: int, device: torch.device,
    metrics: Metrics | None,
) -> Iterator[Inputs]:  # fmt: skip
    """This rank's slice of the global batch, in `accumulation` parts."""
    for part in range(accumulation):
        started = time.perf_counter()
        batch = objective.batch(step, (rank * accumulation + part) * micro, micro)
        if metrics:
            metrics.waited(time.perf_counter() - started)
        yield objective.inputs(batch, step, device)


def run_facts(config: RunConfig, objective: Objective) -> dict[str, Any]:
    """What a checkpoint and the run that loads it must share."""
    return {
        "objective": config.objective,
        "network": objective.result.config.model_dump(mode="json"),
        "geometry": config.geometry.model_dump(mode="json"),
        "data": objective.data_fingerprint,
        "order": objective.order,
        "frozen": objective.frozen,
        "seed": config.seed,
        "global_batch": config.batch.global_batch,
    }


def describe_run(folder: RunFolder, config: RunConfig) -> None:
    replace_text(folder.path / "config.resolved.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    versions = {}
    for name in ("torch", "deepspeed", "numpy", "xformers"):
        module = sys.modules.get(name)
        versions[name] = getattr(module, "__version__", None)
    write_json(
        folder.path / "environment.json",
        {
            "command": sys.argv, "host": platform.node(), "python": platform.python_version(), "versions": versions,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "world_size": dist.get_world_size(), "threads": torch.get_num_threads(),
        },
    )  # fmt: skip


def finish(folder: RunFolder, rank: int, step: int) -> None:
    """Publish the trained network and, last of all, the completion marker."""
    if rank == 0:
        found = checkpoint.newest_valid(folder)
        assert found is not None
        partial = folder.network.with_suffix(".tmp")
        shutil.copyfile(found[0] / "network.safetensors", partial)
        partial.replace(folder.network)
        folder.mark_done({"step": step, "checkpoint": found[0].name})
    dist.barrier()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="run file (YAML)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher appends it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in batch.micro=32; see `addp config`")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        logging.getLogger("model").setLevel(logging.INFO)
    try:
        config = load_config(options.config, options.overrides)
        rank, world_size, _ = start_distributed()
        train(config, rank, world_size)
    except ADDPError as error:
        print(f"error: {error}" if rank == 0 else f"rank {rank}: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
