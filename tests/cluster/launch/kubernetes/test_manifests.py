"""The manifests for Kubernetes: they fit the schemas, and nothing of a user's words becomes a
command, a key or a reference. No API server is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.backend import LaunchRequest
from cluster.launch.backends.kubernetes import KubernetesBackend
from cluster.launch.hosts import unnamed
from cluster.launch.kubernetes.manifests import manifests, resource_name, to_yaml
from cluster.launch.kubernetes.options import KubernetesOptions
from model.errors import ConfigError

OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
HOSTILE = [
    "data.tokens=/with space",
    "a=$(RANK) $$(RANK) $ $$ ${RANK} $(",
    "b=`id`; reboot #",
    "c='\"\\",
    "d=two\nlines: {a: &b *c}\n---\nkind: Pod",
    "yes",
    "0x10",
    "",
    "e=\u00e4\u2028\u0085\x07",
    "!!python/object:os.system",
]
# What a user would give for a real run.
FULL: dict[str, object] = {
    "image": "registry.example:5000/team/addp@sha256:0123",
    "namespace": "research",
    "queue": "gpu-queue",
    "resource": ["cpu=96", "memory=900Gi", "rdma/ib=1"],
    "claim": ["runs=/mnt/runs", "tokens=/mnt/tokens"],
    "secret_env": ["s3-credentials"],
    "secret_files": ["aws=/home/addp/.aws"],
    "service_account": "trainer",
    "node_selector": ["gpu=h100", "topology.example/rack="],
    "tolerate": ["nvidia.com/gpu:NoSchedule", "dedicated=training:NoExecute", "spot"],
}


def request(*words: str, config: Path | None = None, nodes: int = 4) -> LaunchRequest:
    given = [] if config is None else ["--config", str(config)]
    return LaunchRequest(
        module="cluster.supervise",
        arguments=["--run", "/mnt/runs/base", "--nodes", str(nodes), "--", *given, *words],
        hosts=unnamed(nodes, 1),
        port=29_601,
        name="Base run",
        ranks_per_host=8,
        grace=120,
    )


def made(request: LaunchRequest, **options: object) -> dict[str, dict[str, Any]]:
    """Return the manifests by kind. They are valid, and come back from YAML as they are."""
    asked = KubernetesOptions.model_validate({**FULL, **options})
    documents = manifests(request, asked)
    assert list(yaml.safe_load_all(to_yaml(documents))) == documents
    for document in documents:
        for version in (OLDEST, NEWEST):
            if document["kind"] == "JobSet":
                (group,) = document["spec"]["replicatedJobs"]
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
                kubernetes_validate.validate({**job, **group["template"]}, version, strict=True)
            else:
                kubernetes_validate.validate(document, version, strict=True)
    return {document["kind"]: document for document in documents}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(job)["containers"]
    return container


def as_kubernetes_expands(text: str, variables: dict[str, str]) -> str:
    """Return what a container gets for a word of its command."""

    def replace(match: re.Match[str]) -> str:
        whole = match[0]
        return "$" if whole == "$$" else variables.get(whole[2:-1], whole)

    return re.sub(r"\$\$|\$\([^)]*\)", replace, text)


def test_the_schemas_refuse_what_is_wrong() -> None:
    job = made(request())["Job"]
    del job["spec"]["template"]
    job["spec"]["backofLimitPerIndex"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, NEWEST, strict=True)


def test_each_pod_is_a_node_that_finds_the_others() -> None:
    kinds = made(request())
    job, service = kinds["Job"], kinds["Service"]
    assert job["metadata"] == {
        "name": "base-run",
        "namespace": "research",
        "labels": {"app.kubernetes.io/name": "addp", "kueue.x-k8s.io/queue-name": "gpu-queue"},
    }
    spec, container = job["spec"], container_of(job)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    environment = {item["name"]: item for item in container["env"]}
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert environment.pop("RANK")["valueFrom"]["fieldRef"]["fieldPath"] == index
    assert {name: item["value"] for name, item in environment.items()} == {
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "base-run-0.base-run",
        "MASTER_PORT": "29601",
    }
    assert pod_of(job)["subdomain"] == service["metadata"]["name"] == "base-run"
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": "base-run"},
    }
    start = ["python", "-u", "-m", "cluster.launch.kubernetes.pod", "--run", "/mnt/runs/base", "--"]
    start += ["python", "-u", "-m", "cluster.supervise", *request().arguments]
    assert container["command"] == start and "args" not in container


def test_how_the_end_of_a_pod_is_taken() -> None:
    spec = made(request())["Job"]["spec"]
    final, disrupted, stopped = spec["podFailurePolicy"]["rules"]
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", [77, 78, 79, 80, 82])
    assert disrupted == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [75])
    assert spec["backoffLimitPerIndex"] == 20 and spec["podReplacementPolicy"] == "Failed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 150


def test_what_a_pod_gets() -> None:
    job = made(request())["Job"]
    pod, container = pod_of(job), container_of(job)
    asked = {"nvidia.com/gpu": "8", "cpu": "96", "memory": "900Gi", "rdma/ib": "1"}
    assert container["resources"] == {"requests": asked, "limits": asked}
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert {path: volumes[name] for path, name in places.items()} == {
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        "/mnt/runs": {"persistentVolumeClaim": {"claimName": "runs"}},
        "/mnt/tokens": {"persistentVolumeClaim": {"claimName": "tokens"}},
        "/home/addp/.aws": {"secret": {"secretName": "aws", "defaultMode": 0o440}},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {"gpu": "h100", "topology.example/rack": ""}
    assert pod["tolerations"][:3] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoExecute"},
        {"key": "spot", "operator": "Exists"},
    ]
    nothing = made(request(), gpu="", resource=[], secret_env=[])["Job"]
    assert container_of(nothing)["resources"] == {} and "envFrom" not in container_of(nothing)


def test_a_namespace_for_restricted_pods_takes_them() -> None:
    """By the rules of Kubernetes' Pod Security Standards, and they know nothing of the API."""
    job = made(request())["Job"]
    pod, container = pod_of(job), container_of(job)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    assert pod["automountServiceAccountToken"] is False


def test_a_job_set_starts_the_same_job() -> None:
    kinds = made(request(), jobset=True)
    assert set(kinds) == {"JobSet"}
    spec = kinds["JobSet"]["spec"]
    (group,) = spec["replicatedJobs"]
    assert (group["name"], group["replicas"]) == ("nodes", 1)
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "base-run"}
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    inner, alone = group["template"]["spec"], made(request())["Job"]["spec"]
    address = inner["template"]["spec"]["containers"][0]["env"][3]
    assert address == {"name": "MASTER_ADDR", "value": "base-run-nodes-0-0.base-run"}
    address["value"] = "base-run-0.base-run"
    assert alone["template"]["spec"].pop("subdomain") == "base-run"  # it makes its own
    assert inner == alone


def test_the_run_file_travels_with_the_manifests(tmp_path: Path) -> None:
    config = tmp_path / "it's $(RANK).yaml"
    config.write_text("objective: mage\nrun: '$(RANK)'\n# \u00e4\n")
    kinds = made(request(config=config))
    assert kinds["ConfigMap"]["data"] == {"run.yaml": config.read_text()}
    words = container_of(kinds["Job"])["command"]
    assert words[words.index("--config") + 1] == "/etc/addp/run.yaml"
    mounts = container_of(kinds["Job"])["volumeMounts"]
    assert [m["readOnly"] for m in mounts if m["mountPath"] == "/etc/addp"] == [True]
    with pytest.raises(ConfigError, match="cannot be read"):
        made(request(config=tmp_path / "none.yaml"))


def test_hostile_words_reach_the_supervisors_as_they_are() -> None:
    words = container_of(made(request(*HOSTILE))["Job"])["command"]
    variables = {"RANK": "pwned", "WORLD_SIZE": "pwned"}
    assert [as_kubernetes_expands(word, variables) for word in words][-len(HOSTILE) :] == HOSTILE
    with pytest.raises(ConfigError, match="is no text"):
        made(request("bytes=\udcff"))


@given(st.text(alphabet="$()RANK ", max_size=12))
def test_no_word_is_replaced(word: str) -> None:
    asked = KubernetesOptions(image="x", claim=["runs=/mnt/runs"])
    words = container_of(manifests(request(word), asked)[-1])["command"]
    assert as_kubernetes_expands(words[-1], {"RANK": "0", "": "0", "R": "0"}) == word


@given(st.text(max_size=80))
def test_any_name_becomes_one_that_kubernetes_takes(name: str) -> None:
    made_of_it = resource_name(name)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", made_of_it)


def test_names_stay_recognisable() -> None:
    assert resource_name("Base run;$(id)") == "base-run-id"
    assert resource_name("2026-base") == "addp-2026-base"
    assert resource_name("../..") == "addp"


def plan_of(monkeypatch: pytest.MonkeyPatch, *carried: str, **options: object) -> str:
    asked = KubernetesOptions.model_validate({"image": "x", "claim": ["r=/mnt"], **options})
    whole = {**vars(request()), "options": asked, "carried": carried}
    plan = KubernetesBackend().plan(LaunchRequest(**whole))
    (file,) = plan.files
    (command,) = plan.commands
    assert not plan.waits and list(command.words) == ["kubectl", "apply", "-f", str(file.path)]
    return file.text


def test_secrets_are_named_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_REGION", "eu $(RANK)")
    text = plan_of(monkeypatch, "AWS_REGION")
    assert "very-secret" not in text and "value: eu $$(RANK)" in text
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY must not stand in a manifest"):
        plan_of(monkeypatch, "AWS_REGION", "AWS_SECRET_ACCESS_KEY")


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="needs an image"):
        plan_of(monkeypatch, image="")
    with pytest.raises(ConfigError, match="/mnt/runs/base lies in no claim"):
        plan_of(monkeypatch, claim=["r=/mnt/run"])
    for taken in ("/mnt", "/etc/addp", "/dev/shm"):
        with pytest.raises(ConfigError, match=f"two things would be mounted at {taken};"):
            plan_of(monkeypatch, secret_files=[f"aws={taken}"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="kubectl is not installed here"):
        KubernetesBackend().check(request())
