"""The pod of a node: one container, in which the supervisor starts the ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from cluster.launch.arguments import run_folder
from cluster.launch.backend import LaunchRequest
from cluster.launch.kubernetes.options import KubernetesOptions, pairs
from cluster.launch.timeouts import NOTICE_MARGIN
from model.errors import ConfigError

Manifest = dict[str, Any]
CONTAINER = "supervisor"
CONFIG_FOLDER = "/etc/addp"
_SHARED_MEMORY = "/dev/shm"
OWN_FOLDERS = (_SHARED_MEMORY, CONFIG_FOLDER)  # where pods mount something by themselves
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_GONE_SECONDS = 30  # after which the pods of a node that is gone are replaced; 300 by default


def pod_spec(
    request: LaunchRequest,
    options: KubernetesOptions,
    words: Sequence[str],
    *,
    name: str,
    first: str,
    has_config: bool,
) -> Manifest:
    """Return the spec of a pod. first: the name by which the first pod is found."""
    volumes, mounts = _volumes(options, name if has_config else None)
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": [_literal(word) for word in _command(request, words)],
        "env": _environment(request, first),
        "resources": _resources(request, options),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    if options.secret_env:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in options.secret_env]
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(request.grace + NOTICE_MARGIN),
        "enableServiceLinks": False,  # variables about every service of the namespace
        # Nothing in a pod calls the API server.
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": options.user,
            "runAsGroup": options.user,
            "fsGroup": options.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            # Namespaces that allow restricted pods only ask for it.
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*map(_toleration, options.tolerate), *_short_patience()],
        "containers": [container],
        "volumes": volumes,
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.node_selector:
        pod["nodeSelector"] = dict(pairs(options.node_selector))
    return pod


def _command(request: LaunchRequest, words: Sequence[str]) -> list[str]:
    run = str(run_folder(request))
    first = ["python", "-u", "-m", "cluster.launch.kubernetes.pod", "--run", run, "--"]
    return [*first, "python", "-u", "-m", request.module, *words]


def _literal(text: str) -> str:
    """Return a text that Kubernetes takes as it is: $(NAME) would be replaced, and $$ is $.

    Raises ConfigError for bytes that are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{text!r} is no text, which Kubernetes needs") from error
    return text.replace("$", "$$")


def _environment(request: LaunchRequest, first: str) -> list[Manifest]:
    """Return the variables of the container. Raises ConfigError where one is no text."""
    own = {
        "WORLD_SIZE": str(len(request.hosts.slots)),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": first,
        "MASTER_PORT": str(request.port),
    }
    carried = {name: _literal(os.environ[name]) for name in request.carried}
    index = {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}
    return [index, *({"name": name, "value": value} for name, value in (carried | own).items())]


def _resources(request: LaunchRequest, options: KubernetesOptions) -> Manifest:
    ranks = request.ranks_per_host or max(request.hosts.slots.values())
    asked = ({options.gpu: str(ranks)} if options.gpu else {}) | dict(pairs(options.resource))
    return {"requests": asked, "limits": dict(asked)} if asked else {}


def _volumes(
    options: KubernetesOptions, config: str | None
) -> tuple[list[Manifest], list[Manifest]]:
    """Return the volumes of a pod, and where its container has them."""
    sources: list[tuple[str, Manifest, bool]] = [
        (_SHARED_MEMORY, {"emptyDir": {"medium": "Memory", "sizeLimit": options.shm}}, False)
    ]
    for claim, path in pairs(options.claim):
        sources.append((path, {"persistentVolumeClaim": {"claimName": claim}}, False))
    for secret, path in pairs(options.secret_files):
        # Readable by the group of the pod alone.
        sources.append((path, {"secret": {"secretName": secret, "defaultMode": 0o440}}, True))
    if config is not None:
        sources.append((CONFIG_FOLDER, {"configMap": {"name": config}}, True))
    volumes, mounts = [], []
    for number, (path, source, read_only) in enumerate(sources):
        volumes.append({"name": f"volume-{number}", **source})
        mount: Manifest = {"name": f"volume-{number}", "mountPath": path}
        mounts.append({**mount, "readOnly": True} if read_only else mount)
    return volumes, mounts


def _toleration(taint: str) -> Manifest:
    """Return the toleration of KEY[=VALUE][:EFFECT]."""
    pair, _, effect = taint.partition(":")
    key, equals, value = pair.partition("=")
    matches = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, **matches, **({"effect": effect} if effect else {})}


def _short_patience() -> list[Manifest]:
    """Return tolerations by which the pods of a node that is gone are soon replaced."""
    kinds = ("not-ready", "unreachable")
    when = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _GONE_SECONDS}
    return [{"key": f"node.kubernetes.io/{kind}", **when} for kind in kinds]
