"""The collectives that real steps call, counted where PyTorch is asked for them, in processes of
this machine.

    python -m benchmarks.scaling.counting '{"stage": 1, ...}'    # one rank; `count` starts them
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

_ROOT = Path(__file__).parents[2]
# Collectives, and the argument whose bytes they deal with: of a gathering the result, of a
# scattering what is scattered.
_COLLECTIVES = {
    "all_reduce": (0, "all_reduce"),
    "reduce": (0, "reduce"),
    "broadcast": (0, "broadcast"),
    "all_gather": (0, "gather"),
    "all_gather_into_tensor": (0, "gather"),
    "reduce_scatter": (1, "scatter"),
    "reduce_scatter_tensor": (1, "scatter"),
    "all_to_all_single": (0, "scatter"),
}
_LARGE = 2**28  # bytes of the exchange that measures a link's bandwidth
# Steps that are not counted: in these, ZeRO-3 learns in which order parameters are used, and
# ranks compare their orders.
_WARM_UP = 2


class Call(NamedTuple):
    """One collective: its kind (all_reduce, reduce, broadcast, gather, scatter), and the bytes that
    it deals with."""

    kind: str
    bytes: int


class Traffic(NamedTuple):
    """Collectives of one kind: their number, and the bytes of all of them together. repeated:
    whether they happen in each micro batch, else once in a step."""

    kind: str
    repeated: bool
    calls: int
    bytes: float


class Link(NamedTuple):
    """What lies between processes. bandwidth: bytes a second that one sends. latency: seconds of a
    message."""

    bandwidth: float
    latency: float


class Counted(NamedTuple):
    """A real step. seconds: of the whole step, the median; optimizer: its part. calls: of one step
    on rank 0. parameters: that are trained. links: between the processes, as each kind of
    collective finds them; none of one process."""

    seconds: float
    optimizer: float
    calls: list[Call]
    parameters: int
    links: dict[str, Link]


class Recorder:
    """Notes the collectives that this process asks PyTorch for."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        for name, (position, kind) in _COLLECTIVES.items():
            patch.object(dist, name, self._noted(getattr(dist, name), position, kind)).start()

    def _noted(self, function: Callable[..., Any], position: int, kind: str) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            given = args[position] if len(args) > position else list(kwargs.values())[position]
            size = sum(t.nbytes for t in tree_leaves(given) if isinstance(t, Tensor))
            self.calls.append(Call(kind, size))
            return function(*args, **kwargs)

        return noted


def count(
    processes: int, *, stage: int, accumulation: int, micro: int, size: str, steps: int
) -> Counted:
    """Take real steps on the CPU, in so many processes of one core each. size: of the trained
    network; the frozen ones and the images are tiny, which changes nothing that is sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = json.dumps(
        {"stage": stage, "accumulation": accumulation, "micro": micro, "size": size, "steps": steps}
    )
    ranks = []
    cores = sorted(os.sched_getaffinity(0))
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        own = {name: str(value) for name, value in names.items()}
        environment = os.environ | own | {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "benchmarks.scaling.counting", asked]
        core = {cores[rank % len(cores)]}
        ranks.append(
            subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
            )
        )
    said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("a rank has failed; see above")
    answer = json.loads(said[0].splitlines()[-1])
    links = {kind: Link(*link) for kind, link in answer["links"].items()}
    calls = [Call(*call) for call in answer["calls"]]
    return Counted(answer["seconds"], answer["optimizer"], calls, answer["parameters"], links)


def _rank(stage: int, accumulation: int, micro: int, size: str, steps: int) -> dict[str, Any]:
    """Take steps as one of the ranks, and say what they took."""
    recorder = Recorder()  # before DeepSpeed takes the functions
    from benchmarks.step.stages import Stages
    from benchmarks.step.variants import OurStep, drawn_masks
    from benchmarks.step.worker import Variant

    overrides = ("precision=fp32", f"zero_stage={stage}", f"addp.sizes.size={size}")
    config = Variant("ours", False, "tiny", micro, overrides).config()
    stages = Stages(torch.device("cpu"))
    step = OurStep(config, stages, accumulation)
    masks = drawn_masks(config, 0, step.device)
    taken = []
    for _ in range(_WARM_UP + steps):
        dist.barrier()
        recorder.calls.clear()
        first = stages.mark()
        step(masks)
        taken.append(stages.take(first, stages.mark()))
    del taken[:_WARM_UP]
    calls = list(recorder.calls)
    parameters = sum(math.prod(shape) for shape in step.engine.partition.shapes.values())
    links = _links() if dist.get_world_size() > 1 else {}
    step.engine.close()
    return {
        "seconds": statistics.median(times["step"] for times in taken),
        "optimizer": statistics.median(times["optimizer"] for times in taken),
        "calls": calls,
        "parameters": parameters,
        "links": links,
    }


def _links() -> dict[str, Link]:
    """Time a small and a large collective of each kind, and say which link would make them as
    slow: a library's gathering can be slower than its all-reduce over the same wire."""
    size = dist.get_world_size()
    share, whole = torch.zeros(_LARGE // 4 // size), torch.zeros(_LARGE // 4)
    collectives: dict[str, tuple[int, Callable[[Tensor, Tensor], Any]]] = {
        "all_reduce": (2, lambda _, whole: dist.all_reduce(whole)),
        "gather": (1, lambda share, whole: dist.all_gather_into_tensor(whole, share)),
        "scatter": (1, lambda share, whole: dist.reduce_scatter_tensor(share, whole)),
    }
    found = {}
    for kind, (rounds, collective) in collectives.items():
        small = _usual(lambda do=collective: do(share[:1], whole[:size]))
        large = _usual(lambda do=collective: do(share, whole))
        sent, messages = rounds * (size - 1) / size * _LARGE, rounds * (size - 1)
        found[kind] = Link(sent / (large - small), small / messages)
    return found


def _usual(collective: Callable[[], Any]) -> float:
    taken = []
    for _ in range(10):
        dist.barrier()
        started = time.perf_counter()
        collective()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def traffic(once: Counted, twice: Counted) -> list[Traffic]:
    """Return what is sent once in a step and what is sent in every micro batch, from the calls of a
    step of one micro batch and of one of two. Raises ValueError if these do not explain both."""
    found = []
    for kind in sorted({call.kind for call in (*once.calls, *twice.calls)}):
        first, second = ([c.bytes for c in of.calls if c.kind == kind] for of in (once, twice))
        more, larger = len(second) - len(first), sum(second) - sum(first)
        if not (0 <= more <= len(first) and 0 <= larger <= sum(first)):
            raise ValueError(f"{kind}: {len(first)} calls in a step, {len(second)} in a longer one")
        found.append(Traffic(kind, True, more, larger))
        found.append(Traffic(kind, False, len(first) - more, sum(first) - larger))
    return [of for of in found if of.bytes]


if __name__ == "__main__":
    print(json.dumps(_rank(**json.loads(sys.argv[1]))))
