"""What the Dockerfile names is there, and it installs what is pinned. It is not built here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from cluster.launch.kubernetes.options import KubernetesOptions

ROOT = Path(__file__).parents[1]


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each in one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    whole = re.sub(r"\\\n\s*", "", text)
    return [(line.split()[0], line) for line in whole.splitlines() if line.strip()]


def copied() -> list[str]:
    lines = [line for name, line in steps() if name == "COPY" and "--from=" not in line]
    return [source for line in lines for source in line.split()[1:-1]]


def test_what_is_copied_is_there_and_is_sent() -> None:
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*" and sent == set(copied())
    assert all((ROOT / name).exists() for name in sent)


def test_all_packages_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in found} <= set(copied())


def test_the_pins_are_installed_heaviest_first() -> None:
    """And the CUDA builds are those of the pinned versions: pip would bring others else."""
    installs = re.findall(r"--requirement (\S+)", " ".join(line for _, line in steps()))
    assert installs == ["requirements-gpu.txt", "requirements.txt", "requirements-nodeps.txt"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "=" in line
    )
    gpu = (ROOT / "requirements-gpu.txt").read_text()
    assert f"torch=={pinned['torch']}+cu" in gpu and f"xformers-{pinned['xformers']}-" in gpu
    assert "setuptools" in pinned  # the package is built without fetching another one


def test_python_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)-", (ROOT / "Dockerfile").read_text(), re.M)
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{version}.0")


def test_it_runs_as_the_user_whom_pods_run_as() -> None:
    user = KubernetesOptions().user
    names = [name for name, _ in steps()]
    assert ("USER", f"USER {user}:{user}") in steps() and f"--uid {user} " in str(steps())
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert "ADD" not in names and "latest" not in str(steps())
