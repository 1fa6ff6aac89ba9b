"""The words that start a supervisor, the same on each node.

python -m cluster.supervise --run RUN --nodes N --ranks K ... -- TRAINER'S WORDS
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.supervise.limits import Limits
from cluster.supervise.policy import Rules

MODULE = "cluster.supervise"
# Below the ports that systems give out by themselves, and above those that programs have by custom.
_PORTS = range(20_000, 30_000, 2)


@dataclass(frozen=True)
class Supervision:
    """How a run is supervised.

    run: its folder, which all nodes share.
    words: the trainer's arguments.
    rules: what the supervisors' policy follows.
    limits: how long a rank may be silent.
    port: the coordinator's, on the first node. The port after it is the launcher's.
    grace: seconds for the save when the run is asked to stop.
    devices: the devices of each node, for its ranks in order; None: the first ones.
    """

    run: Path
    words: Sequence[str]
    rules: Rules
    limits: Limits
    port: int
    grace: float
    devices: str | None = None

    def arguments(self) -> list[str]:
        """Return the words after `python -m cluster.supervise`."""
        rules = self.rules
        words = ["--run", str(self.run), "--nodes", str(rules.nodes), "--ranks", str(rules.ranks)]
        words += ["--port", str(self.port), "--grace", f"{self.grace:g}"]
        if rules.worlds:
            words += ["--worlds", ",".join(map(str, rules.worlds))]
        if self.devices is not None:
            words += ["--devices", self.devices]
        said = {"nodes", "ranks", "worlds"}
        for model in (rules, self.limits):
            for name, field in type(model).model_fields.items():
                value = getattr(model, name)
                if name not in said and value != field.default:
                    text = f"{value:g}" if isinstance(value, float) else str(value)
                    words += [f"--{name.replace('_', '-')}", text]
        return [*words, "--", *self.words]


def usual_port(run: Path) -> int:
    """Return the port of a run's coordinator where none is chosen: by the name of its folder.

    All nodes find the same, and two runs that share a host hardly ever do.
    """
    digest = hashlib.sha256(str(run.absolute()).encode()).digest()
    return _PORTS[int.from_bytes(digest[:4], "big") % len(_PORTS)]
