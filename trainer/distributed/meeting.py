"""Where the ranks of a world meet. Every program makes the process group of all its ranks here, and
nowhere else."""

from __future__ import annotations

import json
import os
import platform
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from model.errors import ADDPError
from trainer import records
from trainer.distributed.environment import Settings, differences, settings
from trainer.distributed.world import World, take_world

LONG = 7 * 24 * 3600.0  # where nothing is to be cut off
_MEETING = 600.0  # seconds for all ranks to start; file systems that are cold may take minutes


class NotMet(ADDPError):
    """A rank has waited for others in vain, or cannot reach them."""


def join_ranks(
    timeout: float = LONG,
    backend: str = "gloo",
    device: torch.device | None = None,
    store: Store | None = None,
) -> World:
    """Meet the other ranks that a launcher, Slurm or MPI has started; a lone process is a world of
    its own.

    timeout: seconds that an exchange may take, in every group that is made from now on. DeepSpeed
    names none for the groups that it makes, which would have PyTorch's half an hour. device: this
    rank's GPU. store: where they have met already, if they have.

    Raises ConfigError as `take_world` does, and NotMet.
    """
    world = take_world()
    if dist.is_initialized():
        return world
    limit = timedelta(seconds=timeout)
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, limit)
    try:
        store = _meet(world, min(timeout, _MEETING)) if store is None else store
        store.set_timeout(limit)
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=limit,
            device_id=device if world.size > 1 else None,
        )
    except (RuntimeError, ValueError) as error:
        where = ":".join(
            os.environ.get(name, f"(no {name})") for name in ("MASTER_ADDR", "MASTER_PORT")
        )
        raise NotMet(
            f"rank {world.rank} on {platform.node()} does not meet the other {world.size - 1} at "
            f"{where}: {' '.join(str(error).split())[:400]}. Look at the rank that failed first, "
            "the firewall, MASTER_ADDR (--master-addr), and GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME"
        ) from error
    return world


def leave_ranks() -> None:
    """End the world that `join_ranks` made, where there is one. A process that goes on to other
    things calls this before it ends: gloo's threads may abort it otherwise."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(world: World, timeout: float) -> Store:
    if world.size == 1:
        return HashStore()
    store, _, _ = next(
        rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout))
    )
    _compare(PrefixStore("environment", store), world)
    return store


def _compare(store: Store, world: World) -> None:
    """Before a network is chosen by what the environment says: rank 0 tells which of it did not
    come to other hosts."""
    store.set(str(world.rank), json.dumps(settings(platform.node())))
    if world.rank:
        return
    for line in differences(
        [Settings(*json.loads(store.get(str(rank)))) for rank in range(world.size)]
    ):
        records.say(f"environment: {line}. Launchers pass on little: see docs/operations.md")
