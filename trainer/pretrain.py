"""Train a tokenizer, a token predictor or ADDP. Started by a launcher:

    deepspeed --num_gpus 8 --module trainer.pretrain --config configs/base.yaml data.tokens=/data/imagenet

Run it again with the same run folder and it goes on from the newest valid checkpoint, on any number of ranks that
divides the global batch. Stop it with SIGTERM, SIGINT, SIGUSR1 or a file RUN/STOP: it saves and exits with 75. Exit
codes: 0 done, 75 stopped and saved, 76 hung, 77 diverged, 78 configuration, 79 no valid checkpoint, 74 storage; any
other is a crash.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NoReturn

from model.errors import ADDPError
from trainer.config import RunConfig, load_config
from trainer.run_folder import RunFolder
from trainer.stopping import Preempted, StopRequest


def train(config: RunConfig, folder: RunFolder, stop: StopRequest) -> None:
    """The whole run on this rank. Raises Preempted, once saved, where it was asked to stop."""
    import torch

    from trainer.control import Control
    from trainer.engine import start_distributed
    from trainer.heartbeat import Heartbeat
    from trainer.objectives import make_objective
    from trainer.run import Run
    from trainer.schedule import accumulation_steps
    from trainer.start import prepare

    # Before the ranks meet: where one mistake ends them all, none shall find the others gone.
    accumulation = accumulation_steps(config, int(os.environ.get("WORLD_SIZE", "1")))
    rank, world_size, device = start_distributed()
    assert world_size == int(os.environ["WORLD_SIZE"]), world_size
    with ExitStack() as stack:
        heartbeat = stack.enter_context(Heartbeat(folder, rank, config.health.hang))
        control = Control(config.health.hang)
        session = prepare(folder, control)
        torch.manual_seed(config.seed)  # every rank starts from the same weights
        objective = stack.enter_context(closing(make_objective(config)))
        run = stack.enter_context(Run(config, objective, control, accumulation, heartbeat, stop, session, device))
        run.go()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="run file (YAML)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher appends it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in batch.micro=32; see `addp config`")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        for package in ("model", "trainer"):
            logging.getLogger(package).setLevel(logging.INFO)
    folder = None
    try:
        config = load_config(options.config, options.overrides)
        folder = RunFolder(config.run)
        train(config, folder, StopRequest(folder))  # before torch is imported: a signal then already counts
    except ADDPError as error:
        label = "stopped" if isinstance(error, Preempted) else "error"
        print(f"{label}: {error}" if rank == 0 else f"rank {rank}: {label}: {error}", file=sys.stderr)
        if folder is not None and folder.is_locked:
            folder.write_exit(error.exit_code, str(error))
        return error.exit_code
    if folder.is_locked:
        folder.write_exit(0, "done")
    return 0


def run_and_leave(arguments: list[str] | None = None) -> NoReturn:
    """`main`, and the end of this process: threads that wait for a store that does not answer would hold it up for
    minutes."""
    try:
        code = main(arguments)
    except Exception:  # noqa: BLE001 - a crash; nothing is caught but the wait for threads
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_and_leave()
