"""Why the range of DeepSpeed has an upper bound: `trainer/engine/` uses names that DeepSpeed does
not promise to keep.

ZeRO divides the float32 weights and the optimizer's state among the ranks, and no public function
says where each part lies or publishes weights that were written into it. A checkpoint that depends
neither on the stage nor on the number of ranks needs both.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "trainer" / "engine"
OTHERS = [
    path
    for package in ("model", "data_pipeline", "trainer", "cluster")
    for path in (ROOT / package).rglob("*.py")
    if ENGINE not in path.parents
]

CHECKED = ">=0.19.8,<0.20"
TO_RAISE_IT = (
    "Before you raise the bound in pyproject.toml, check with the new version (1) that every name "
    "in PRIVATE still means what trainer/engine/deepspeed_internals.py takes it for: groups of "
    "parameters, flat float32 partitions, the address of a parameter's fragment in them, and how "
    "written weights are published; (2) that `pytest tests/trainer/engine "
    "tests/trainer/checkpointing tests/trainer/test_golden.py tests/trainer/test_resume.py` passes "
    "in all ZeRO stages and precisions, and `make test-gpu` on a GPU. Then raise CHECKED as well."
)
# Where DeepSpeed defines the names that are no public interface, and which of them we use.
PRIVATE = {
    "ops/__init__.py": ["__compatible_ops__"],
    "runtime/zero/stage_1_and_2.py": [
        "bit16_groups",
        "single_partition_of_fp32_groups",
        "update_lp_params",
        "cpu_offload",
        "dp_process_group",
        "get_grad_norm_direct",
        "check_overflow",
        "_update_model_bit16_weights",
    ],
    "runtime/bf16_optimizer.py": ["bf16_groups", "fp32_groups_flat_partition", "update_lp_params"],
    "runtime/zero/stage3.py": [
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "_post_step",
        "loss_scaler",
    ],
    "runtime/zero/partition_parameters.py": ["ds_shape", "ds_numel", "partition_numel"],
    "runtime/zero/utils.py": ["ZERO_SUPPORTED_OPTIMIZERS"],
    "runtime/compiler.py": ["compile", "dummy_decorator"],
    "runtime/fp16/loss_scaler.py": ["raise_error_at_min_scale"],
    "utils/mixed_precision_linkage.py": ["_hp_mapping"],
    "utils/tensor_fragment.py": ["lp_fragment_address", "hp_fragment_address", "numel", "start"],
}
# Too common to be looked for elsewhere: words of our own, of Python and of PyTorch.
COMMON = {"numel", "start", "loss_scaler", "compile"}


def defined(path: Path) -> set[str]:
    """Return every name that a file gives to a function, an attribute, a field or a key."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Constant(value=str(name)):
                names.add(name)
    return names


def used(path: Path) -> set[str]:
    """Return every attribute that a file reads or writes, and every string in it."""
    return {
        node.attr if isinstance(node, ast.Attribute) else node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    }


def test_the_range_is_the_one_that_was_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (deepspeed,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "deepspeed"]
    assert deepspeed.specifier == Requirement(f"deepspeed{CHECKED}").specifier, TO_RAISE_IT
    assert importlib.metadata.version("deepspeed") in deepspeed.specifier, TO_RAISE_IT


@pytest.mark.parametrize("file", PRIVATE)
def test_the_installed_version_has_the_private_names(file: str) -> None:
    spec = importlib.util.find_spec("deepspeed")  # found, not imported: that takes seconds
    assert spec is not None and spec.origin is not None
    missing = sorted(set(PRIVATE[file]) - defined(Path(spec.origin).parent / file))
    version = importlib.metadata.version("deepspeed")
    assert not missing, f"{file} of DeepSpeed {version} has no {missing} any more. {TO_RAISE_IT}"


def test_private_names_are_used_in_the_engine_only() -> None:
    names = {name for listed in PRIVATE.values() for name in listed}
    unused = names - {name for path in ENGINE.glob("*.py") for name in used(path)}
    assert not unused, f"trainer/engine/ uses {sorted(unused)} no more; take them off the list"
    elsewhere = {
        str(path.relative_to(ROOT)): sorted(touched)
        for path in OTHERS
        if (touched := used(path) & (names - COMMON))
    }
    assert not elsewhere, f"only trainer/engine/ may touch these names of DeepSpeed: {elsewhere}"


def test_what_the_engine_takes_from_the_zero_optimizer_is_listed() -> None:
    """Whatever `trainer/engine/` reads from an object called `zero` is a private name."""
    names = {name for listed in PRIVATE.values() for name in listed}
    taken = {
        node.attr
        for path in ENGINE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("zero", "self._zero")
    }
    assert taken and taken <= names, f"add {sorted(taken - names)} to PRIVATE, with its file"
