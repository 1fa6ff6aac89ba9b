"""How the nodes tell each other what they found, while it is still in doubt whether they can
compute together.

One process of each node connects to a store that node 0 holds (PyTorch's TCPStore). Nothing else is
needed, so that even nodes that cannot reach each other are reported. A node that dies or hangs is
left behind after a time.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from model.errors import ADDPError
from trainer.distributed.world import World

_LOOKS = 0.05  # seconds between two looks at what is there
_PATIENCE = 10.0  # seconds after which one is told what is waited for
_CONNECT_SECONDS = 5.0


class NodesNotMet(ADDPError):
    """This node does not reach node 0."""

    exit_code = 78


class Exchange:
    """What the nodes say, by the name of a question. All of them ask in the same order."""

    def __init__(self, store: Store, world: World, say: Callable[[str], None]) -> None:
        """say: told what this node waits for, where that takes long."""
        self.store, self.world = store, world
        self._say = say
        self.lost: set[int] = set()

    def gather(self, question: str, answer: Any, seconds: float = 120.0) -> list[Any]:
        """Return the answers of all nodes, by their number; None of one that gave none in time.

        answer: this node's own, as JSON has it. A node that did not answer is not waited for again.
        """
        store = PrefixStore(question, self.store)
        with _while_node_0_lives():
            store.set(str(self.world.rank), json.dumps(answer))
        answers: list[Any] = [None] * self.world.size
        missing = set(range(self.world.size)) - self.lost
        deadline, patience = time.monotonic() + seconds, time.monotonic() + _PATIENCE
        while missing:
            for node in sorted(missing):
                with _while_node_0_lives():
                    if store.check([str(node)]):
                        answers[node] = json.loads(store.get(str(node)))
                        missing.remove(node)
            if not missing or time.monotonic() > deadline:
                break
            if time.monotonic() > patience:
                self._say(f"waits for {_nodes(missing)} ({question})")
                patience = deadline
            time.sleep(_LOOKS)
        self.lost |= missing
        return answers

    def tell(self, question: str, work: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Do `work` on node 0 and return its result on all nodes; None where that took too long."""
        store = PrefixStore(question, self.store)
        if self.world.rank == 0:
            result = work()
            store.set("0", json.dumps(result))
            return result
        deadline = time.monotonic() + seconds
        with _while_node_0_lives():
            while not store.check(["0"]):
                if time.monotonic() > deadline:
                    self.lost.add(0)
                    return None
                time.sleep(_LOOKS)
            return json.loads(store.get("0"))

    def go_on_with(self, nodes: Collection[int] | None) -> None:
        """Wait for no other nodes from now on, so that all wait for the same ones."""
        self.lost = set(range(self.world.size)) - set(nodes or ())

    def end(self, seconds: float = 60.0) -> None:
        """Let the nodes end in the right order; node 0 calls this when it has said all.

        A launcher may end all of them as soon as one ends with an error, and node 0 holds what the
        others ask: it goes last.
        """
        self.tell("said", lambda: True, seconds)
        if self.world.rank == 0:
            self.gather("end", True, seconds)
        else:
            with _while_node_0_lives():
                PrefixStore("end", self.store).set(str(self.world.rank), "true")


@contextmanager
def _while_node_0_lives() -> Iterator[None]:
    """Raise NodesNotMet where the store cannot be asked, which node 0 holds."""
    try:
        yield
    except RuntimeError as error:
        raise NodesNotMet(
            f"node 0 went away before {platform.node()} had its answers; look there"
        ) from error


def _nodes(numbers: set[int]) -> str:
    return f"node{'s' if len(numbers) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"


def meet(world: World, seconds: float, say: Callable[[str], None]) -> Exchange:
    """Connect to node 0, at MASTER_ADDR and MASTER_PORT. Raises NodesNotMet."""
    if world.size == 1:
        return Exchange(HashStore(), world, say)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(os.environ.get("MASTER_PORT", "29500"))
    # torchrun has such a store already, at the same place.
    holds = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    deadline = time.monotonic() + seconds
    while True:
        reason = "" if holds else why_not(address, port)
        try:
            if not reason:
                return Exchange(_store(address, port, holds, world), world, say)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
        if holds:
            raise NodesNotMet(
                f"node 0 ({platform.node()}) cannot listen at {address}:{port}: {reason}. Look "
                "whether the port is taken, and whether that is an address of this host "
                "(--master-addr)"
            )
        if time.monotonic() > deadline:
            raise NodesNotMet(
                f"node {world.rank} ({platform.node()}) does not meet node 0 at {address}:{port}: "
                f"{reason}. Look whether node 0 started, at the firewall, and at MASTER_ADDR "
                "(--master-addr)"
            )
        time.sleep(1.0)


def _store(address: str, port: int, holds: bool, world: World) -> TCPStore:
    return TCPStore(
        address,
        port,
        None,
        holds,
        timedelta(seconds=_CONNECT_SECONDS * 4),
        wait_for_workers=False,
        multi_tenant=True,
    )


def why_not(address: str, port: int) -> str:
    """Return why nothing can be reached at an address; empty where something answers."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS):
            return ""
    except socket.gaierror as error:
        return f"{address} has no address here ({error.strerror})"
    except TimeoutError:
        return f"no answer within {_CONNECT_SECONDS:g} s (packets are lost or dropped)"
    except OSError as error:
        return error.strerror or str(error)
