"""What must be the same on all nodes: versions, the program's own files, the configuration."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from trainer.config.changes import alike
from trainer.config.schema import RunConfig
from trainer.preflight.finding import Finding

_ROOT = Path(__file__).parents[3]
_PACKAGES = ("torch", "deepspeed", "numpy", "xformers")
# What to do where a fact differs; other facts only slow a run down.
_TODO = {
    "python": "use one environment on shared storage, or the same installation on each node",
    "code": "bring the same checkout to each node",
    "configuration": "start with the same run file and the same overrides",
    "GPUs": "leave the node out, or give each one as many ranks (`--processes`)",
}
_SLOWER = ("driver", "processor")


def facts(config: RunConfig | None, gpus: Sequence[str], driver: str) -> dict[str, str]:
    """Return what this node has, by name. gpus: the names of its GPUs. driver: its version."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "CUDA": str(torch.version.cuda or "none"),
        "code": code_digest(),
        "configuration": configuration_digest(config),
        "GPUs": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "none",
        "driver": driver or "none",
        "processor": platform.machine(),
    }


def version(name: str) -> str:
    """Return the installed version of a package, or "missing"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def code_digest(root: Path = _ROOT) -> str:
    """Return a short digest of this program's files: nodes may hold different checkouts."""
    digest = hashlib.sha256()
    for package in ("model", "data_pipeline", "trainer", "cluster"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def configuration_digest(config: RunConfig | None) -> str:
    """Return a short digest of what must be the same in a configuration on all ranks."""
    if config is None:
        return "unreadable"
    return hashlib.sha256(json.dumps(alike(config)).encode()).hexdigest()[:8]


def differences(nodes: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Finding]:
    """Yield a finding for each fact that differs, with who has what; one that all is the same
    otherwise. nodes: each one's name and its facts."""
    different = 0
    for fact in nodes[0][1]:
        values: dict[str, list[str]] = {}
        for host, own in nodes:
            values.setdefault(own.get(fact, "missing"), []).append(host)
        if len(values) == 1:
            continue
        different += 1
        found = f"{fact} differs: " + "; ".join(
            f"{value} on {_some(hosts)}" for value, hosts in values.items()
        )
        if fact in _SLOWER:
            yield Finding("versions", "warning", found, "the slowest node sets the pace of all")
        else:
            yield Finding("versions", "FAILED", found, _TODO.get(fact, _TODO["python"]))
    if not different:
        own = nodes[0][1]
        shown = ", ".join(f"{name} {own[name]}" for name in ("python", *_PACKAGES) if name in own)
        where = "" if len(nodes) == 1 else f" on all {len(nodes)} nodes"
        yield Finding("versions", "ok", f"{shown}, code {own.get('code', '')}{where}")


def _some(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
