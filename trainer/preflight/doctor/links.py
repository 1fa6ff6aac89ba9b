"""How fast the nodes exchange tensors: by gloo between each two of them, and by NCCL all together
where there are GPUs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from trainer.distributed.collectives import own_device
from trainer.distributed.meeting import NotMet, join_ranks
from trainer.preflight.doctor.exchange import Exchange
from trainer.preflight.finding import Finding

EVERY_PAIR = 8  # nodes up to which each pair is measured; of more, each with its neighbours
_SMALL, _LARGE = 8, 32 * 2**20  # bytes that are sent to find the latency, and the bandwidth
_TRIPS, _SENDS = 10, 4
_NCCL_BYTES, _NCCL_REPEATS = 256 * 2**20, 5
_SECONDS = 60.0
_SLOW = 0.5  # of the usual rate


class Link(NamedTuple):
    """What a link between two nodes does. seconds: one way. rate: bytes a second. error: why it
    does nothing; empty where it works."""

    one: int
    other: int
    seconds: float = 0.0
    rate: float = 0.0
    error: str = ""


def rounds(nodes: int) -> Iterator[list[tuple[int, int]]]:
    """Yield rounds of pairs, in each of which no node has two partners.

    Few nodes: a tournament in which each meets each. Many: neighbours in a ring.
    """
    if nodes > EVERY_PAIR:
        ring = [(node, (node + 1) % nodes) for node in range(nodes)]
        yield ring[0 : nodes - 1 : 2]
        yield ring[1 : nodes - 1 : 2]
        yield ring[nodes - 1 :]
        return
    seats = list(range(nodes + nodes % 2))  # an odd node out meets a partner that is not there
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if max(pair) < nodes]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def measure_links(rank: int, nodes: int) -> list[Link]:
    """Return what this node measured: of each pair the first one does.

    After an error nothing more is tried, since gloo does not recover.
    """
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_SECONDS))
    found: list[Link] = []
    for pairs in rounds(nodes):
        for one, other in pairs:
            if rank not in (one, other):
                continue
            try:
                link = _measure(rank, one, other, group)
            except RuntimeError as error:
                return [*found, Link(one, other, error=" ".join(str(error).split())[:300])]
            if rank == one:
                found.append(link)
        dist.barrier(group)
    return found


def _measure(rank: int, one: int, other: int, group: dist.ProcessGroup | None) -> Link:
    """Send a small and a large tensor to and fro between two nodes."""

    def exchange(tensor: torch.Tensor, times: int) -> float:
        partner = other if rank == one else one
        began = time.perf_counter()
        for _ in range(times):
            if rank == one:
                dist.send(tensor, partner, group)
                dist.recv(tensor, partner, group)
            else:
                dist.recv(tensor, partner, group)
                dist.send(tensor, partner, group)
        return (time.perf_counter() - began) / times / 2

    small, large = (torch.zeros(size, dtype=torch.uint8) for size in (_SMALL, _LARGE))
    exchange(small, 1)  # the first one connects
    seconds = exchange(small, _TRIPS)
    exchange(large[: _LARGE // 8], 1)
    return Link(one, other, seconds, _LARGE / exchange(large, _SENDS))


class Together(NamedTuple):
    """What all nodes do together. backend: gloo or nccl. rate: bytes a second that each of them
    sends and receives in a sum over all; 0 where it was not measured."""

    backend: str
    rate: float = 0.0
    error: str = ""


def sum_over_all(nodes: int) -> Together:
    """Sum a number over all nodes by the library that training would use, and on GPUs measure it
    with many."""
    device = own_device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=_SECONDS))
        value = torch.ones(1, device=device)
        dist.all_reduce(value, group=group)
        if value.item() != nodes:
            return Together(backend, error=f"a sum of {nodes} ones is {value.item():g}")
        rate = _nccl_rate(nodes, device, group) if backend == "nccl" and nodes > 1 else 0.0
    except RuntimeError as error:
        return Together(backend, error=str(error).splitlines()[0][:300])
    return Together(backend, rate)


def _nccl_rate(nodes: int, device: torch.device, group: dist.ProcessGroup | None) -> float:
    tensor = torch.ones(_NCCL_BYTES, dtype=torch.uint8, device=device).view(torch.float32)
    dist.all_reduce(tensor, group=group)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_NCCL_REPEATS):
        dist.all_reduce(tensor, group=group)
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - began) / _NCCL_REPEATS
    return _NCCL_BYTES * 2 * (nodes - 1) / nodes / seconds


def exchange_tensors(exchange: Exchange, names: Sequence[str]) -> tuple[list[Finding], list[Link]]:
    """Have all nodes exchange tensors. Returns findings and the links that were measured. names: of
    the nodes."""
    world = exchange.world
    try:
        join_ranks(_SECONDS, store=PrefixStore("gloo", exchange.store))
        measured = measure_links(world.rank, world.size)
        together = sum_over_all(world.size)
        own: dict[str, Any] = {"links": measured, "together": together}
    except (NotMet, RuntimeError) as error:
        own = {"error": " ".join(str(error).split())[:400]}
    answers = [answer for answer in exchange.gather("links", own, 300) if answer is not None]
    found = [Link(*link) for answer in answers for link in answer.get("links", ())]
    findings = [
        Finding("links", "FAILED", f"gloo: {error}", "look at GLOO_SOCKET_IFNAME and the firewall")
        for error in dict.fromkeys(answer["error"] for answer in answers if "error" in answer)
    ]
    for link in found:
        if link.error:
            words = f"{_pair(link, names)} by gloo: {link.error}"
            findings.append(Finding("links", "FAILED", words, "look at the network between them"))
    findings += judge_links([link for link in found if not link.error], names)
    sums = [Together(*answer["together"]) for answer in answers if "together" in answer]
    findings += judge_sums(sums)
    return findings, found


def judge_links(measured: Sequence[Link], names: Sequence[str]) -> list[Finding]:
    """Return which links are much slower than the others, and how fast they are."""
    if not measured:
        return []
    usual = statistics.median(link.rate for link in measured)
    slowest = min(measured, key=lambda link: link.rate)
    farthest = max(measured, key=lambda link: link.seconds)
    found = (
        f"{len(measured)} by gloo: the slowest {slowest.rate / 1e9:.2f} GB/s "
        f"({_pair(slowest, names)}), the farthest {farthest.seconds * 1e6:.0f} µs "
        f"({_pair(farthest, names)})"
    )
    slow = [
        Finding(
            "links",
            "warning",
            f"{_pair(link, names)}: {link.rate / 1e9:.2f} GB/s, where {usual / 1e9:.2f} are usual",
            "look at the interface, its speed and its MTU on both",
        )
        for link in measured
        if link.rate < usual * _SLOW
    ]
    return slow or [Finding("links", "ok", found)]


def _pair(link: Link, names: Sequence[str]) -> str:
    return f"{names[link.one]} - {names[link.other]}"


def judge_sums(sums: Sequence[Together]) -> list[Finding]:
    findings = [
        Finding(
            "collectives",
            "FAILED",
            f"{one.backend}: {one.error}",
            "NCCL_DEBUG=INFO shows more" if one.backend == "nccl" else "",
        )
        for one in {(one.backend, one.error): one for one in sums if one.error}.values()
    ]
    if sums and not findings:
        rate = min(one.rate for one in sums)
        speed = f", all-reduce at {rate / 1e9:.1f} GB/s" if rate else ""
        findings.append(Finding("collectives", "ok", f"{sums[0].backend} adds over all{speed}"))
    return findings
