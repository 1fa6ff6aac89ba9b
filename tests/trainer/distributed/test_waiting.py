"""How long ranks wait for each other: as long as is configured, in every group, and not a moment of
silence longer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest
from torch.distributed import distributed_c10d

from model.errors import ConfigError
from tests.patience import PATIENCE, until
from tests.trainer.comparing import cut_back, incidents
from tests.trainer.launching import MAGE
from tests.trainer.worlds import Ranks, World, run_world
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.distributed.meeting import join_ranks
from trainer.engine.engine import Engine, start_distributed
from trainer.objectives.registry import make_objective
from trainer.resilience.leaving import leave
from trainer.run_folder import RunFolder


def test_a_rank_that_does_not_answer_is_given_up(tokens: Path, tmp_path: Path) -> None:
    """Rank 1 is stopped, and nothing watches for hangs."""
    run = tmp_path / "run"
    options = (
        *MAGE,
        "schedule.total=4000",
        "checkpoint.every=100000",
        "health.hang=0",
        "collective_timeout=5",
    )
    world = World(run, [*options, f"data.tokens={tokens}"], 2, None)
    until(RunFolder(run).read_metrics, alive=world.alive)
    pid = world.ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    world.ranks[0].join(PATIENCE)
    code = world.ranks[0].exitcode
    world.kill()
    output = world.log.read_text()
    assert code == 1 and "Traceback" not in output, output
    assert (
        "error: another rank went away at step " in output
        and ": no answer within collective_timeout, " in output
    )
    assert incidents(run, "another rank went away")
    assert RunFolder(run).read_exit()["code"] == 1  # type: ignore[index]


def groups(arguments: list[str]) -> int:
    """Prints the time-outs of all groups that a run has, DeepSpeed's own included."""
    config = load_config(None, arguments)
    _, world_size, _ = start_distributed(config.collective_timeout)
    Collectives(config.collective_timeout)
    Engine(make_objective(config).network, config, 2, world_size)
    backends = [
        group._get_backend(device)
        for group in distributed_c10d._world.pg_map
        for device in group._device_types
    ]
    print(
        f"{len(backends)} groups, seconds:",
        {int(backend.options._timeout.total_seconds()) for backend in backends},
    )
    return 0


def test_deepspeed_makes_its_groups_with_our_time_out(tokens: Path, tmp_path: Path) -> None:
    """It takes a time-out for the group of all ranks only; its other groups would keep PyTorch's
    half an hour."""
    arguments = [
        *MAGE,
        f"data.tokens={tokens}",
        "batch.global_batch=8",
        "batch.micro=2",
        "zero_stage=1",
    ]
    codes, output = Ranks(
        groups, [*arguments, "collective_timeout=4321"], 2, tmp_path / "log"
    ).wait()
    assert codes == [0, 0] and output.count("seconds: {4321}") == 2, output
    assert int(output.partition(" groups")[0].split()[-1]) >= 3  # all ranks', DeepSpeed's, ours


def alone(arguments: list[str]) -> int:
    if os.environ["RANK"] == "1":
        return 0
    join_ranks(1.0)
    return 3


def meet(arguments: list[str]) -> NoReturn:
    leave(lambda: alone(arguments))


def test_ranks_that_do_not_meet_say_where(tmp_path: Path) -> None:
    codes, output = Ranks(meet, [], 2, tmp_path / "log").wait()
    assert (
        codes == [1, 0]
        and "error: rank 0 on " in output
        and "does not meet the other 1 at 127.0.0.1:" in output
    )
    assert "GLOO_SOCKET_IFNAME" in output and "Traceback" not in output


def test_a_time_out_is_above_what_counts_as_a_hang() -> None:
    with pytest.raises(ConfigError, match="collective_timeout = 60 is not above"):
        load_config(None, ["collective_timeout=60"])
    assert load_config(None, ["collective_timeout=60", "health.hang=0"]).collective_timeout == 60
    assert RunConfig().collective_timeout > RunConfig().health.hang


def test_ranks_that_wait_for_uploads_are_no_hang(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """Rank 0 waits longer for a store than a rank may be silent, and than an exchange may take."""
    blocked = tmp_path / "file"
    blocked.write_text("")  # no folder can be made below it
    run = cut_back(undisturbed, tmp_path / "run", 8)
    waiting = (
        f"checkpoint.upload={blocked}/x",
        "checkpoint.retry_seconds=8",
        "health.hang=5",
        "collective_timeout=6",
    )
    codes, output = run_world(run, *MAGE, f"data.tokens={tokens}", "ema_decay=0.9", *waiting)
    assert codes == [0, 0] and "waits for uploads to" in output and not incidents(run, "hang"), (
        output
    )
    assert "the checkpoint of step 12 is not on" in output and RunFolder(run).is_done
