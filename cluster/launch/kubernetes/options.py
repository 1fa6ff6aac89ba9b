"""What Kubernetes is asked for, beside the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cluster.launch.backend import BackendOptions
from cluster.launch.patterns import each_matching, matching

_LABEL_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123
_SUBDOMAIN = rf"{_LABEL_NAME}(\.{_LABEL_NAME})*"
_QUALIFIED = rf"({_SUBDOMAIN}/)?[A-Za-z0-9]([\w.-]{{0,61}}[A-Za-z0-9])?"  # the key of a label
_LABEL_VALUE = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?"
_PATH = r"/[\w.@%+=:,/ -]+"


_Name = Annotated[str, matching(_SUBDOMAIN, "name in Kubernetes, such as my-claim")]
_Mounts = Annotated[
    list[str], each_matching(rf"{_SUBDOMAIN}={_PATH}", "name and folder, such as my-claim=/data")
]


class KubernetesOptions(BackendOptions):
    """What Kubernetes is asked for."""

    image: Annotated[
        str, matching(r"[\w][\w./:@-]{0,254}", "image such as registry.example/addp:1")
    ] = Field("", description="kubernetes: the container's image; the Dockerfile makes one")
    namespace: Annotated[str, matching(_LABEL_NAME, "namespace")] = Field(
        "", description="kubernetes: the namespace; default: that of kubectl"
    )
    jobset: bool = Field(
        False, description="kubernetes: a JobSet, which starts all pods again together"
    )
    queue: Annotated[str, matching(_LABEL_VALUE, "queue")] = Field(
        "", description="kubernetes: the local queue of Kueue, which starts all pods or none"
    )
    gpu: Annotated[str, matching(_QUALIFIED, "resource such as nvidia.com/gpu")] = Field(
        "nvidia.com/gpu",
        description="kubernetes: the resource of which each rank gets one; '' for none",
    )
    resource: Annotated[
        list[str], each_matching(rf"{_QUALIFIED}={_QUANTITY}", "resource such as cpu=96")
    ] = Field([], description="kubernetes: what each pod gets besides, as memory=900Gi")
    claim: _Mounts = Field(
        [],
        description="kubernetes: a ReadWriteMany claim and where it is mounted, as runs=/mnt/runs",
    )
    secret_env: Annotated[list[str], each_matching(_SUBDOMAIN, "name of a secret")] = Field(
        [], description="kubernetes: a secret whose keys become variables"
    )
    secret_files: _Mounts = Field(
        [], description="kubernetes: a secret whose keys become files, as aws=/home/addp/.aws"
    )
    service_account: _Name = Field(
        "", description="kubernetes: the service account, as for access to S3 by a role"
    )
    node_selector: Annotated[
        list[str], each_matching(rf"{_QUALIFIED}=({_LABEL_VALUE})?", "label such as gpu=h100")
    ] = Field([], description="kubernetes: a label that nodes must have, as gpu=h100")
    tolerate: Annotated[
        list[str],
        each_matching(
            rf"{_QUALIFIED}(={_LABEL_VALUE})?(:(NoSchedule|PreferNoSchedule|NoExecute))?",
            "taint such as nvidia.com/gpu:NoSchedule",
        ),
    ] = Field([], description="kubernetes: a taint that pods bear, as nvidia.com/gpu:NoSchedule")
    shm: Annotated[str, matching(_QUANTITY, "size such as 16Gi")] = Field(
        "16Gi", description="kubernetes: the size of /dev/shm, which NCCL and data loaders use"
    )
    user: int = Field(
        1000,
        ge=1,
        le=2**31 - 1,
        description="kubernetes: the user and group, by number, that owns the run folder",
    )
    pod_restarts: int = Field(
        20,
        ge=0,
        le=10_000,
        description="kubernetes: how often a pod may fail; the run counts its own failures",
    )


def pairs(items: Sequence[str]) -> list[tuple[str, str]]:
    """Return NAME=VALUE items as pairs."""
    return [(name, value) for name, _, value in (item.partition("=") for item in items)]
