"""The rules of the tree: packages import in one direction, and each outside system is touched in
one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["model", "data_pipeline", "trainer", "cluster"]
ONE_FILE = {
    "deepspeed": "trainer/engine/engine.py",
    "xformers": "model/attention.py",
    "sklearn": "trainer/evaluation/measures/recognition.py",
    "kornia": "trainer/objectives/augmentation.py",
    "torch_fidelity": "trainer/evaluation/measures/fidelity.py",
    "apex": "trainer/engine/optimizers.py",
    "boto3": "data_pipeline/storage/s3.py",
    "botocore": "data_pipeline/storage/s3.py",
    "ray": "cluster/sharding/ray_engine.py",
}
FILES = sorted(p for package in ORDER for p in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & set(ORDER[ORDER.index(package) + 1 :])
    for outside, place in ONE_FILE.items():
        assert outside not in tops or path == ROOT / place


@pytest.mark.parametrize(
    "module",
    [
        "data_pipeline.streaming.order",
        "data_pipeline.shards.format",
        "data_pipeline.streaming.loader",
        "data_pipeline.storage.s3",
        "data_pipeline.images.sources",
        "cluster.commands.tokenize",
        "trainer.run_folder",
        "trainer.config.defaults",
        "trainer.config.reading",
        "trainer.resilience.stopping",
        "trainer.resilience.heartbeat",
        "trainer.distributed.world",
        "trainer.distributed.environment",
        "cluster.launch.launch",
        "trainer.evaluation.report",
        "trainer.evaluation.benchmarks.registry",
    ],
)
def test_light_modules_need_no_torch(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_names_of_files_say_a_job() -> None:
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert not any(vague & {part.removesuffix(".py") for part in p.parts} for p in FILES)


def test_nothing_unsafe_is_loaded() -> None:
    forbidden = (
        "weights_only=False",
        "allow_pickle=True",
        "shell=True",
        "extractall(",
        "pickle.load",
    )
    assert not [(p.name, word) for p in FILES for word in forbidden if word in p.read_text()]
