"""Processes that Kubernetes starts: an indexed Job, or a JobSet, with one pod for each node.

The manifests are plain mappings (cluster/launch/kubernetes/manifests.py). They are shown, written
to a file, or given to `kubectl apply`. No value passes through a shell, and no secret is in them:
secrets are named, and stay in the cluster.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from cluster.launch.arguments import run_folder
from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand, PlannedFile
from cluster.launch.kubernetes.options import KubernetesOptions, pairs
from cluster.launch.kubernetes.pod_spec import OWN_FOLDERS
from cluster.launch.variables import is_secret
from model.errors import ConfigError


class KubernetesBackend:
    """Starts processes by a Job or a JobSet of Kubernetes."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ConfigError where there is no kubectl here."""
        if shutil.which("kubectl") is None:
            raise ConfigError(
                "kubectl is not installed here; write the manifests with --write FILE, and apply "
                "them where it is"
            )

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the manifests, in a file of this directory, and the command that applies them.

        Raises ConfigError for what cannot be told to Kubernetes, for a variable that holds a
        secret, and for a run folder that the pods do not share.
        """
        # Not at the top: the help of `addp launch` loads this file, and needs no manifests.
        from cluster.launch.kubernetes.manifests import manifests, resource_name, to_yaml

        options = request.options_of(KubernetesOptions)
        if not options.image:
            raise ConfigError("Kubernetes needs an image; name one with --image (see Dockerfile)")
        _check_places(request, options)
        if secrets := [name for name in request.carried if is_secret(name, os.environ[name])]:
            raise ConfigError(
                f"{', '.join(secrets)} must not stand in a manifest: it holds a secret; keep it in "
                "a secret of the cluster, and name that with --secret-env"
            )
        # Not in the run folder: this machine may well not see it.
        path = Path.cwd() / f"{resource_name(request.name)}.kubernetes.yaml"
        file = PlannedFile(path, to_yaml(manifests(request, options)))
        return LaunchPlan(
            commands=[PlannedCommand(["kubectl", "apply", "-f", str(path)])],
            files=[file],
            waits=False,
            afterwards=_afterwards(request, options, path),
        )


def _afterwards(request: LaunchRequest, options: KubernetesOptions, path: Path) -> list[str]:
    from cluster.launch.kubernetes.manifests import GROUP, resource_name

    space = f" --namespace={options.namespace}" if options.namespace else ""
    name, run = resource_name(request.name), shlex.quote(str(run_folder(request)))
    job = f"job/{name}-{GROUP}-0" if options.jobset else f"job/{name}"
    inside = f"kubectl{space} exec {job} --"
    return [
        f"watch it with `{inside} addp status {run}`, and the pods with `kubectl{space} get pods`",
        f"let it save and end with `{inside} addp stop {run}`",
        f"remove it with `kubectl delete -f {shlex.quote(str(path))}`; the run folder stays",
    ]


def _check_places(request: LaunchRequest, options: KubernetesOptions) -> None:
    """Raise ConfigError where two things are mounted in one folder, or the run lies in none."""
    claims = [path for _, path in pairs(options.claim)]
    places = [*OWN_FOLDERS, *claims, *(path for _, path in pairs(options.secret_files))]
    if twice := sorted({path for path in places if places.count(path) > 1}):
        raise ConfigError(
            f"two things would be mounted at {', '.join(twice)}; give each claim and each secret a "
            f"folder of its own, which is none of {', '.join(OWN_FOLDERS)}"
        )
    run = run_folder(request)
    if not any(run.is_relative_to(claim) for claim in claims):
        raise ConfigError(
            f"the run folder {run} lies in no claim, so that each pod would have its own; mount a "
            "ReadWriteMany claim with --claim NAME=FOLDER, and put run= below that folder"
        )
