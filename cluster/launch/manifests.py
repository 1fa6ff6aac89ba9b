"""What Kubernetes is told: manifests as plain mappings. Pure functions; options have been checked.

    Job, completionMode: Indexed              headless Service of the same name
      pod NAME-0   RANK=0  coordinator  <---- NAME-0.NAME: where all supervisors meet
      pod NAME-1   RANK=1
      ...

Each pod is a node: one supervisor, which starts the ranks in its container. Kubernetes (1.31 or
newer) replaces a pod that is lost, and the supervisor in it joins the others. How a pod's end is
taken:

    77, 78, 79, 80, and 82 (a user's stop)   the Job has failed: no start helps, or none is wanted
    75, and any end by a drained node        a new pod, as often as it takes
    anything else                            a new pod, --pod-restarts times for each index
    index 0 has ended well                   the run is complete, and so is the Job

There is no probe. Nobody calls the pods, so that none has to be ready before another; names resolve
as soon as there are addresses. And the supervisors watch each other and their ranks within seconds:
a liveness probe that is wrong once in a month would cost more than it finds.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.launch.arguments import run_folder, value_of
from cluster.launch.backend import LaunchRequest
from cluster.launch.kubernetes_options import KubernetesOptions
from cluster.launch.pod import EXIT_USER_STOPPED
from cluster.launch.timeouts import NOTICE_MARGIN
from cluster.supervise.history import EXIT_GAVE_UP
from model.documents import MIB, read_file
from model.errors import ConfigError
from trainer.run_folder import EXIT_CONFIG, EXIT_DIVERGED, EXIT_NO_VALID_CHECKPOINT, EXIT_PREEMPTED

Manifest = dict[str, Any]
_CONTAINER = "supervisor"
GROUP = "nodes"  # the replicated job of a JobSet
_LONGEST_NAME = 40  # leaves room for what Job and JobSet append for their pods
_CONFIG_FOLDER = "/etc/addp"
_CONFIG_FILE = "run.yaml"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_FINAL = sorted(
    (EXIT_DIVERGED, EXIT_CONFIG, EXIT_NO_VALID_CHECKPOINT, EXIT_GAVE_UP, EXIT_USER_STOPPED)
)
_GONE_SECONDS = 30  # after which the pods of a node that is gone are replaced; 300 by default


def resource_name(name: str) -> str:
    """Return a name as Kubernetes takes it for a Service and what is named after it (RFC 1035).

    Letters become small, other characters than letters and digits become -.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    named = plain if plain[:1].isalpha() else f"addp-{plain}".strip("-")
    return named[:_LONGEST_NAME].strip("-")


def manifests(request: LaunchRequest, options: KubernetesOptions) -> list[Manifest]:
    """Return what is applied, in order. Raises ConfigError for what cannot be told."""
    name = resource_name(request.name)
    words, config = _own_config(request.arguments)
    parts = [] if config is None else [_config_map(_metadata(name, options), config)]
    first = f"{name}-{GROUP}-0-0.{name}" if options.jobset else f"{name}-0.{name}"
    job = _job(
        len(request.hosts.slots),
        options,
        _pod(request, options, words, name=name, first=first, has_config=config is not None),
    )
    metadata = _metadata(name, options)
    if options.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = options.queue
    if options.jobset:
        return [*parts, _job_set(metadata, job)]
    job["template"]["spec"]["subdomain"] = name
    service = _service(_metadata(name, options))
    return [*parts, service, {**_head("batch/v1", "Job", metadata), "spec": job}]


def _head(version: str, kind: str, metadata: Manifest) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _metadata(name: str, options: KubernetesOptions) -> Manifest:
    namespace = {"namespace": options.namespace} if options.namespace else {}
    return {"name": name, **namespace, "labels": {"app.kubernetes.io/name": "addp"}}


def _own_config(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the words with the run file as it is found in the pods, and its content.

    The file lies on this machine, and travels with the manifests. Raises ConfigError where it
    cannot be read.
    """
    given = list(words)
    path = value_of("--config", given)
    if path is None:
        return given, None
    try:
        text = read_file(Path(path), MIB // 2, ConfigError).decode()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(f"the run file {path} cannot be read: {error}") from error
    given[given.index("--config") + 1] = f"{_CONFIG_FOLDER}/{_CONFIG_FILE}"
    return given, text


def _config_map(metadata: Manifest, text: str) -> Manifest:
    return {**_head("v1", "ConfigMap", metadata), "data": {_CONFIG_FILE: text}}


def _service(metadata: Manifest) -> Manifest:
    """Return the headless service that gives each pod a name of its own."""
    selector = {"batch.kubernetes.io/job-name": metadata["name"]}
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector}
    return {**_head("v1", "Service", metadata), "spec": spec}


def _job(nodes: int, options: KubernetesOptions, pod: Manifest) -> Manifest:
    """Return the spec of the Job, which has a pod for each node."""
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimitPerIndex": options.pod_restarts,
        # Two supervisors of the same node are never there at the same time.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _codes(_FINAL)},
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {"action": "Ignore", "onExitCodes": _codes([EXIT_PREEMPTED])},
            ]
        },
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "template": {"metadata": {"labels": {"app.kubernetes.io/name": "addp"}}, "spec": pod},
    }


def _codes(codes: Sequence[int]) -> Manifest:
    return {"containerName": _CONTAINER, "operator": "In", "values": list(codes)}


def _job_set(metadata: Manifest, job: Manifest) -> Manifest:
    """Return a JobSet of one Job. It makes the service by itself, and starts the Job again where
    that fails for want of pods."""
    return {
        **_head("jobset.x-k8s.io/v1alpha2", "JobSet", metadata),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": metadata["name"]},
            "failurePolicy": {
                "maxRestarts": 3,
                "rules": [
                    {
                        "name": "final",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": GROUP, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(
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
        "name": _CONTAINER,
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
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": options.user,
            "runAsGroup": options.user,
            "fsGroup": options.user,
            "fsGroupChangePolicy": "OnRootMismatch",
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
    first = ["python", "-u", "-m", "cluster.launch.pod", "--run", run, "--"]
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
    """Return the variables of the container. Raises ConfigError where one holds a secret."""
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
        ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": options.shm}}, False)
    ]
    for claim, path in pairs(options.claim):
        sources.append((path, {"persistentVolumeClaim": {"claimName": claim}}, False))
    for secret, path in pairs(options.secret_files):
        # Readable by the group of the pod alone.
        sources.append((path, {"secret": {"secretName": secret, "defaultMode": 0o440}}, True))
    if config is not None:
        sources.append((_CONFIG_FOLDER, {"configMap": {"name": config}}, True))
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


def pairs(items: Sequence[str]) -> list[tuple[str, str]]:
    """Return NAME=VALUE items as pairs."""
    return [(name, value) for name, _, value in (item.partition("=") for item in items)]
