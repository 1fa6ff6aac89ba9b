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

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from cluster.launch.arguments import value_of
from cluster.launch.backend import LaunchRequest
from cluster.launch.kubernetes.options import KubernetesOptions
from cluster.launch.kubernetes.pod import EXIT_USER_STOPPED
from cluster.launch.kubernetes.pod_spec import CONFIG_FOLDER, CONTAINER, Manifest, pod_spec
from cluster.supervise.history import EXIT_GAVE_UP
from model.documents import MIB, read_file
from model.errors import ConfigError
from trainer.run_folder import EXIT_CONFIG, EXIT_DIVERGED, EXIT_NO_VALID_CHECKPOINT, EXIT_PREEMPTED

GROUP = "nodes"  # the replicated job of a JobSet
_LONGEST_NAME = 40  # leaves room for what Job and JobSet append for their pods
_CONFIG_FILE = "run.yaml"
_FINAL = sorted(
    (EXIT_DIVERGED, EXIT_CONFIG, EXIT_NO_VALID_CHECKPOINT, EXIT_GAVE_UP, EXIT_USER_STOPPED)
)


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
        pod_spec(request, options, words, name=name, first=first, has_config=config is not None),
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
    given[given.index("--config") + 1] = f"{CONFIG_FOLDER}/{_CONFIG_FILE}"
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
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}


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


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines, as a run file, in lines of its own."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Readable.add_representer(str, _text)


def to_yaml(documents: Sequence[Manifest]) -> str:
    """Return manifests as one file, which `kubectl apply -f` takes."""
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=100)
