"""What the engine uses of DeepSpeed beyond its API is there in the version that is installed, and
versions that nobody has looked at are not installed by themselves."""

from __future__ import annotations

import importlib
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
# By module: attributes that it sets, and functions that it has.
NAMES = {
    "deepspeed.runtime.zero.stage_1_and_2": (
        "bit16_groups",
        "single_partition_of_fp32_groups",
        "update_lp_params",
        "loss_scaler",
    ),
    "deepspeed.runtime.bf16_optimizer": (
        "bf16_groups",
        "fp32_groups_flat_partition",
        "update_lp_params",
    ),
    "deepspeed.runtime.zero.stage3": (
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "_post_step",
        "loss_scaler",
    ),
    "deepspeed.runtime.zero.partition_parameters": ("ds_shape", "ds_numel", "partition_numel"),
    "deepspeed.utils.mixed_precision_linkage": ("_hp_mapping",),
    "deepspeed.utils.tensor_fragment": ("lp_fragment_address", "hp_fragment_address"),
    "deepspeed.runtime.fp16.loss_scaler": ("raise_error_at_min_scale", "cur_scale"),
}


@pytest.mark.parametrize("module", NAMES)
def test_the_private_parts_are_there(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    source = Path(file).read_text()
    for name in NAMES[module]:
        assert re.search(rf"\.{name} = |def {name}\(|\b{name}: ", source), f"{module}: {name}"


def test_the_shared_memory_kernel_can_be_left_out() -> None:
    import deepspeed.ops

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_the_range_of_deepspeed_ends_before_the_next_minor_version() -> None:
    """Minor versions of DeepSpeed have moved and renamed these parts. One more is allowed in
    pyproject.toml once this file, `test_engine.py` and `test_resume.py` pass with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (stated,) = (r for r in project["dependencies"] if r.startswith("deepspeed"))
    installed = version("deepspeed")
    major, minor = (int(n) for n in installed.split(".")[:2])
    specifier = Requirement(stated).specifier
    assert installed in specifier and f"{major}.{minor + 1}.0" not in specifier
