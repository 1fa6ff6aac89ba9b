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
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NoReturn

from model.entry import EXIT_CRASH, leave_trace, run_entry, unexpected
from model.errors import ADDPError, ConfigError
from model.precision import warn_of_bf16
from trainer import records
from trainer.config import RunConfig, load_config
from trainer.heartbeat import Heartbeat
from trainer.run_folder import LOST_RANK, RunFolder
from trainer.stopping import Preempted, StopRequest

# Launchers look at their ranks once a second, and pass on the code of one that ended. A rank that ends only since
# another did leaves later, so that the code they find, and the signal in it, are those of the other.
_LAUNCHER_LOOKS = 1.5


def check_ranks(expected: int | None, started: int) -> None:
    """Raises ConfigError where a launcher starts another number of ranks than the run is meant for."""
    if expected is not None and started != expected:
        raise ConfigError(
            f"expect_ranks = {expected}, but the launcher starts {started}; look whether the hostfile is where it was "
            "said to be (without one, the deepspeed launcher uses this machine alone), or set expect_ranks"
        )


def train(config: RunConfig, folder: RunFolder, heartbeat: Heartbeat, stop: StopRequest) -> None:
    """The whole run on this rank. Raises Preempted, once saved, where it was asked to stop."""
    import torch

    from trainer.control import Control
    from trainer.engine import start_distributed
    from trainer.objectives import make_objective
    from trainer.run import Run
    from trainer.schedule import accumulation_steps
    from trainer.start import prepare

    # Before the ranks meet: where one mistake ends them all, none shall find the others gone.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_ranks(config.expect_ranks, world)
    accumulation = accumulation_steps(config, world)
    _, world_size, device = start_distributed()
    if config.precision not in ("fp32", "fp16"):
        warn_of_bf16(device.type, "Set precision: fp32 on CPUs")
    assert world_size == int(os.environ["WORLD_SIZE"]), world_size
    with ExitStack() as stack:
        stack.enter_context(heartbeat)
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
    folder, heartbeat = None, None
    try:
        config = load_config(options.config, options.overrides)
        folder = RunFolder(config.run)
        heartbeat = Heartbeat(folder, rank, config.health.hang)
        train(config, folder, heartbeat, StopRequest(folder))  # before torch is imported: a signal then already counts
        code, reason, line = 0, "done", ""
    except ADDPError as error:
        code, reason = error.exit_code, str(error)
        line = f"{'stopped' if isinstance(error, Preempted) else 'error'}: {reason}"
    except Exception as error:  # noqa: BLE001 - a crash
        code, reason = EXIT_CRASH, _crash(error, folder, heartbeat, rank)
        line = f"error: {reason}"
    if line:
        records.say(line if rank == 0 else f"rank {rank}: {line}")
    if folder is not None and folder.is_locked:
        folder.write_exit(code, reason)
    if heartbeat is not None:
        heartbeat.leave(code, reason)
    records.finish()
    if reason.startswith(LOST_RANK):
        time.sleep(_LAUNCHER_LOOKS)
    return code


def _crash(error: Exception, folder: RunFolder | None, heartbeat: Heartbeat | None, rank: int) -> str:
    """What to say of it, once its trace lies in a file; an incident where the run had begun."""
    from trainer.control import is_lost_rank

    trace = leave_trace(error, folder.trace(rank) if folder and heartbeat and heartbeat.began else None)
    if folder is None or heartbeat is None or not heartbeat.began:
        return unexpected(error, trace)
    lost = is_lost_rank(error)
    where = f"at step {heartbeat.step} (in {heartbeat.section})"
    folder.incident({
        "event": LOST_RANK if lost else "crash", "step": heartbeat.step, "section": heartbeat.section,
        "error": unexpected(error, None), "trace": str(trace or "on standard error"),
    })  # fmt: skip
    if not lost:
        return f"{unexpected(error, trace)}; {where}"
    return f"{LOST_RANK} {where}, and this one cannot go on" + (f"; the trace is in {trace}" if trace else "")


def run_and_leave(arguments: list[str] | None = None) -> NoReturn:
    """`main`, and the end of this process: threads that wait for a store that does not answer would hold it up for
    minutes."""
    code: Any = EXIT_CRASH
    try:
        run_entry(lambda: main(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a console that is gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run_and_leave()
