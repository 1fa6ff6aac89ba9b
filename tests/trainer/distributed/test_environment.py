"""What did not come to other hosts is named, and nothing secret is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.trainer.worlds import Ranks
from trainer.distributed.environment import Settings, differences, settings
from trainer.distributed.meeting import join_ranks

HERE = {
    "AWS_PROFILE": "me",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "NCCL_PROTO": "LL",
    "PATH": "/bin",
    "GLOO_SOCKET_IFNAME": "eth0",
}


def test_names_and_hashes_only() -> None:
    here = settings("node1", HERE)
    assert set(here.names) == {
        "AWS_PROFILE",
        "AWS_SECRET_ACCESS_KEY",
        "NCCL_PROTO",
        "GLOO_SOCKET_IFNAME",
    }
    assert [name for name, value in here.names.items() if value] == ["NCCL_PROTO"]
    assert not any(value in str(here) for value in ("very-secret", "me'", "'LL'", "eth0"))


def test_who_lacks_what() -> None:
    there = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_PROTO": "Simple"}
    ranks = (
        [settings("node1", HERE)] * 2 + [settings("node2", there)] * 2 + [settings("node3", HERE)]
    )
    assert differences(ranks) == [
        "AWS_PROFILE, AWS_SECRET_ACCESS_KEY are set on other ranks, but not on ranks 2-3 (node2)",
        "NCCL_PROTO is set to another value on ranks 2-3 (node2)",
    ]
    only = [Settings("a", {}), Settings("b", {"GLOO_SOCKET_IFNAME": ""})]
    assert differences(only) == ["GLOO_SOCKET_IFNAME is set on other ranks, but not on rank 0 (a)"]
    assert differences(ranks[:2]) == []


def test_many_hosts_are_one_line() -> None:
    ranks = [Settings(f"n{i}", {"AWS_REGION": ""} if i == 0 else {}) for i in range(64)]
    (line,) = differences(ranks)
    assert line.endswith("but not on ranks 1-63 (n1, n2, n3, n4, n5, n6, n7, n8 and 55 more)")


def meet(arguments: list[str]) -> int:
    join_ranks(60)
    dist.barrier()  # they meet in the memory of rank 0, which ends after the others have met
    return 0


class Hosts(Ranks):
    """As pdsh leaves them: what the launcher's shell has is not on the other host."""

    def place(self, rank: int, processes: int, port: int) -> dict[str, str]:
        own = {"AWS_PROFILE": "", "AWS_SECRET_ACCESS_KEY": "very-secret", "NCCL_IB_DISABLE": "1"}
        return super().place(rank, processes, port) | (
            own if rank == 0 else {"NCCL_IB_DISABLE": "0"}
        )


def test_said_as_soon_as_the_ranks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    codes, output = Hosts(meet, [], 2, tmp_path / "log").wait()
    assert codes == [0, 0] and "very-secret" not in output
    assert (
        "environment: AWS_PROFILE, AWS_SECRET_ACCESS_KEY are set on other ranks, but not on rank 1 "
        "(" in output
    )
    assert "environment: NCCL_IB_DISABLE is set to another value on rank 1 (" in output, output
    assert output.count("environment: ") == 2 and "docs/operations.md" in output
