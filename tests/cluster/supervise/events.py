"""Events of histories, for tests."""

from __future__ import annotations

from cluster.supervise.history import End, Fault, NodeName, Start

NODES = (NodeName(node="a", host="a"), NodeName(node="b", host="b"))


def start(attempt: int, time: float, checkpoint: int | None = None) -> Start:
    return Start(time=time, attempt=attempt, nodes=NODES, ranks=2, checkpoint=checkpoint)


def end(
    attempt: int, time: float, code: int = 1, checkpoint: int | None = None, failed: bool = True
) -> End:
    return End(
        time=time,
        attempt=attempt,
        code=code,
        step=None,
        checkpoint=checkpoint,
        reason="it ended",
        failed=failed,
    )


def fault(attempt: int, time: float, node: str = "b") -> Fault:
    return Fault(
        time=time, attempt=attempt, kind="death", reason="killed", seconds=0.2, rank=1, node=node
    )
