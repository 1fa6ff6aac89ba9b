"""Train a tokenizer, a token predictor or ADDP. Started by a launcher:

    deepspeed --num_gpus 8 --module trainer.pretrain --config base
    data.tokens=/data/imagenet

Run it again with the same run folder and it goes on from the newest valid checkpoint, on any number
of ranks that divides the global batch. Stop it with SIGTERM, SIGINT, SIGUSR1, a file RUN/STOP, or
an object STOP on the store of `checkpoint.upload`: it saves and exits with 75. Exit codes: 0 done,
75 stopped and saved, 76 hung, 77 diverged, 78 configuration, 79 no valid checkpoint, 74 storage;
any other is a crash.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing, suppress
from typing import NoReturn

from model.entry import EXIT_CRASH, leave_trace, unexpected
from model.errors import ADDPError, ConfigError
from model.precision import warn_of_bf16
from trainer import records
from trainer.config.arguments import parse_rank
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.world import take_world
from trainer.engine.precision import MODES
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.leaving import hurry, leave, plain
from trainer.resilience.stacks import answer_with_stacks
from trainer.resilience.stopping import Preempted, StopRequest
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import LOST_RANK, RunFolder
from trainer.start_times import StartTimes

# Launchers look at their ranks once a second, and pass on the code of one that ended. A rank that
# ends only since another did leaves later, so that the code they find, and the signal in it, are
# those of the other.
_LAUNCHER_LOOKS = 1.5


def check_ranks(expected: int | None, started: int) -> None:
    """Raises ConfigError where a launcher has started another number of ranks than `expect_ranks`
    says."""
    if expected is not None and started != expected:
        raise ConfigError(
            f"expect_ranks = {expected}, but the launcher starts {started}; look whether the "
            "hostfile is where it was said to be (without one, the deepspeed launcher uses this "
            "machine alone), or set expect_ranks"
        )


def train(
    config: RunConfig,
    folder: RunFolder,
    heartbeat: Heartbeat,
    stop: StopRequest,
    stack: ExitStack,
    times: StartTimes,
) -> None:
    """Train on this rank, to the end of the run. Raises Preempted, once it has saved, where it was
    asked to stop.

    stack: takes what is to be closed. times: of this start, none of whose parts has ended.
    """
    import torch

    from trainer.distributed.collectives import Collectives
    from trainer.engine.engine import load_deepspeed, start_distributed
    from trainer.objectives.registry import make_objective, objective_class
    from trainer.schedule import accumulation_steps
    from trainer.startup import prepare, set_up, takes_initial_weights

    # Before the ranks meet: where one mistake ends them all, none shall find the others gone.
    world = take_world()
    check_ranks(config.expect_ranks, world.size)
    accumulation = accumulation_steps(config, world.size)
    answer_with_stacks(folder, world.rank)
    load_deepspeed()
    objective_class(config.objective)
    times.done("imports")
    _, _, device = start_distributed(config.collective_timeout)
    if MODES[config.precision].products == "bfloat16":
        warn_of_bf16(device.type, "Set precision: fp32 on CPUs")
    threads = stack.enter_context(ThreadWatch(folder))
    stack.enter_context(heartbeat)
    collectives = Collectives(config.collective_timeout)
    attempt = prepare(folder, collectives)
    fresh = collectives.broadcast_from_rank0(lambda: takes_initial_weights(config, folder))
    times.done("meeting")
    kind = objective_class(config.objective)
    listed = collectives.broadcast_from_rank0(lambda: kind.listed(config))
    torch.manual_seed(config.seed)  # every rank starts from the same weights
    objective = stack.enter_context(closing(make_objective(config, fresh, listed)))
    times.done("networks")
    times.apart("data", within="networks", seconds=objective.opening)
    trainer = set_up(
        config,
        folder,
        objective,
        collectives,
        accumulation=accumulation,
        attempt=attempt,
        heartbeat=heartbeat,
        stop=stop,
        threads=threads,
        times=times,
        device=device,
        stack=stack,
    )
    trainer.train()


def main(arguments: list[str] | None = None) -> int:
    """Run one rank to its end. Returns its exit code."""
    times = StartTimes()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    rank = take_world().rank
    if rank == 0:
        for package in ("model", "trainer"):
            logging.getLogger(package).setLevel(logging.INFO)
    folder, heartbeat, stack = None, None, ExitStack()
    try:
        config = load_config(*parse_rank(__doc__ or "", arguments))
        folder = RunFolder(config.run)
        heartbeat = Heartbeat(folder, rank, config.health.hang)
        stop = StopRequest(folder)  # before torch is imported, so that no signal is missed
        train(config, folder, heartbeat, stop, stack, times)
        stack.close()
    except Exception as error:  # noqa: BLE001 - the last place that can say anything
        return _end(error, folder, heartbeat, stack, rank)
    if folder.is_locked:
        folder.write_exit(0, "done")
    heartbeat.leave(0, "done")
    records.finish()
    return 0


def _end(
    error: Exception,
    folder: RunFolder | None,
    heartbeat: Heartbeat | None,
    stack: ExitStack,
    rank: int,
) -> int:
    """Say why this rank ends, write it down, and close what is open, within seconds. Returns the
    exit code."""
    code = error.exit_code if isinstance(error, ADDPError) else EXIT_CRASH
    of_rank = "" if rank == 0 else f"rank {rank}: "
    unsaid = True
    with hurry(code, lambda: f"{of_rank}error: {plain(error)}" if unsaid else ""):
        if isinstance(error, ADDPError):
            reason = str(error)
            line = f"{'stopped' if isinstance(error, Preempted) else 'error'}: {reason}"
        else:
            reason = _crash(error, folder, heartbeat, rank)
            line = f"error: {reason}"
        records.say(of_rank + line)
        unsaid = False
        if folder is not None and folder.is_locked:
            stop = error.stop if isinstance(error, Preempted) else None
            folder.write_exit(code, reason, stop)
        if heartbeat is not None:
            heartbeat.leave(code, reason)
        with suppress(Exception):  # of an end that has its reason already
            stack.__exit__(type(error), error, error.__traceback__)
        records.finish()
    if reason.startswith(LOST_RANK):
        time.sleep(_LAUNCHER_LOOKS)
    return code


def _crash(
    error: Exception, folder: RunFolder | None, heartbeat: Heartbeat | None, rank: int
) -> str:
    """Write the traceback to a file, and an incident where the run had begun. Returns what to say
    of the error."""
    from trainer.distributed.collectives import is_late, is_lost_rank

    trace = leave_trace(
        error, folder.trace(rank) if folder and heartbeat and heartbeat.began else None
    )
    if folder is None or heartbeat is None or not heartbeat.began:
        return unexpected(error, trace)
    lost = is_lost_rank(error)
    where = f"at step {heartbeat.step} (in {heartbeat.section})"
    folder.incident(
        {
            "event": LOST_RANK if lost else "crash",
            "step": heartbeat.step,
            "section": heartbeat.section,
            "error": unexpected(error, None),
            "trace": str(trace or "on standard error"),
        }
    )
    if not lost:
        return f"{unexpected(error, trace)}; {where}"
    late = ": no answer within collective_timeout" if is_late(error) else ""
    return f"{LOST_RANK} {where}{late}, and this one cannot go on" + (
        f"; the trace is in {trace}" if trace else ""
    )


def run_and_leave(arguments: list[str] | None = None) -> NoReturn:
    """Run `main`, and end this process with its exit code."""
    leave(lambda: main(arguments))


if __name__ == "__main__":
    run_and_leave()
