"""What the command line of `addp launch` says of the launch itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import Field

from cluster.launch.backend import BackendOptions
from cluster.launch.backends.deepspeed import DeepSpeedOptions
from cluster.supervise.limits import Limits
from model.documents import Settings


class LaunchOptions(Settings):
    """The options of a launch that are the same for all backends."""

    nodes: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="nodes that train; the hosts of the hostfile if not given",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="ranks on each node; the hostfile's slots if not given, or 1",
    )
    min_nodes: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="go on with as few nodes as this where others are lost (all)",
    )
    spares: int = Field(
        0, ge=0, le=1024, description="nodes beyond --nodes, which wait until one is needed"
    )
    max_restarts: int = Field(
        3, ge=1, le=1000, description="give up after so many failures without progress"
    )
    rejoin: float | None = Field(
        None,
        ge=0,
        le=604_800,
        description="seconds for which supervisors wait for missing nodes (120); where this "
        "command starts them over ssh, they end soon (5), and it starts them again",
    )
    grow: float = Field(
        600, ge=0, le=604_800, description="seconds that fewer nodes train before more may join"
    )
    grace: float = Field(
        60, ge=1, le=86_400, description="seconds for the save when the run is asked to stop"
    )
    port: int | None = Field(
        None,
        ge=1024,
        le=65_534,
        description="of the coordinator on the first node, and of the launcher the one after it; "
        "from the run's name if not given",
    )
    master_addr: str | None = Field(
        None, description="the first node's address, if its name is not what others reach it by"
    )
    devices: str | None = Field(
        None,
        description="the devices of each node for its ranks, as 0,2; the first ones if not given",
    )


@dataclass(frozen=True)
class Asked:
    """What the command line says of the launch itself. own: the backend's own options."""

    backend: str
    own: BackendOptions | None
    hostfile: Path | None
    options: LaunchOptions
    limits: Limits

    @property
    def reaches_hosts(self) -> bool:
        """Whether the backend brings processes and variables to other hosts, over ssh."""
        return isinstance(self.own, DeepSpeedOptions) and not self.own.no_ssh

    @property
    def has_no_scheduler(self) -> bool:
        """Whether the hosts are known here, and not only to a scheduler."""
        return self.backend in ("local", "deepspeed", "torchrun")


def refuse_options_of_others(backend: str, own: Mapping[str, BackendOptions]) -> None:
    """Raise BadParameter for an option that only another backend has: it would change nothing.

    own: the options of each backend that has some.
    """
    for other, options in own.items():
        if other == backend:
            continue
        for name, field in type(options).model_fields.items():
            if getattr(options, name) != field.default:
                raise typer.BadParameter(
                    f"this is an option of --backend {other}, and the backend is {backend}",
                    param_hint=f"--{name.replace('_', '-')}",
                )
