from __future__ import annotations

from pathlib import Path

import pytest

from trainer import costs
from trainer.config.reading import load_config
from trainer.recipes import recipe
from trainer.run_folder import RunFolder

GIB = 2**30
# What an H200 allocated at most, in GiB: docs/gpu.md. ADDP's by benchmarks.step, whose masks come
# close to the least ratio; the others' by their first steps. One rank, one micro batch a step, and
# a bucket for the whole network, at most 5e8 elements, where ZeRO had one.
MEASURED = {"base": 29.25, "large": 34.31, "mage-base": 18.5, "finetune-large": 30.6}
MEASURED_LESS_WELL = {"finetune-base": 11.6, "tokenizer": 23.7}


def planned(name: str) -> float:
    config = load_config(recipe(name))
    batch = config.batch.model_copy(update={"global_batch": config.batch.micro})
    memory = costs.rank_memory(config.model_copy(update={"batch": batch}), config.zero_stage, 1)
    trained, _ = costs.parameters(config)
    bucket = 4 * min(trained, 500_000_000) if memory.buffers else 0
    return (memory.total - memory.buffers + bucket) / GIB


@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_what_an_h200_allocated(name: str) -> None:
    assert planned(name) == pytest.approx(MEASURED[name], rel=0.05)


@pytest.mark.parametrize("name", MEASURED_LESS_WELL)
def test_memory_is_nearly_what_an_h200_allocated(name: str) -> None:
    assert planned(name) == pytest.approx(MEASURED_LESS_WELL[name], rel=0.1)


def test_what_frozen_networks_take_counts_where_it_is_the_most() -> None:
    """With every block recomputed, the VQ decoder's tensors outweigh what ADDP keeps."""
    config = load_config(recipe("base"), ["recompute_every=1"])
    step = costs.step_footprint(config)
    assert step.inputs > step.trained
    assert costs.rank_memory(config, 2, 32).activations == step.inputs
    # The decoder's second-last tensors are as many as these, at its highest resolution.
    g, channels = config.geometry, config.tokenizer.sizes.channels
    assert step.inputs > 4 * 2 * config.batch.micro * channels * g.image_size**2


def test_frozen_networks_beside_the_backward_pass_take_their_memory_on_top() -> None:
    config = load_config(recipe("base"))
    plain, beside = (
        costs.rank_memory(config.model_copy(update={"frozen_ahead": ahead}), 2, 32)
        for ahead in (False, True)
    )
    assert beside.total - plain.total == costs.step_footprint(config).inputs


def test_a_run_counts_its_operations_once(tmp_path: Path) -> None:
    """And again where the sizes differ, or where the file is none of ours."""
    folder, deep = RunFolder(tmp_path), ["addp.sizes.depth=3"]
    small = [f"{name}.sizes.size=tiny" for name in ("tokenizer", "predictor", "addp")]
    config = load_config(None, ["run=none", "data.tokens=none", *small])
    file = tmp_path / "operations.json"
    counted = costs.operations_of_run(config, folder)
    assert counted == costs.image_operations(config)
    file.write_text(file.read_text().replace(str(counted.trained), "1.0"))
    assert costs.operations_of_run(config, folder).trained == 1
    other = load_config(None, ["run=none", "data.tokens=none", *small, *deep])
    assert costs.operations_of_run(other, folder).trained > counted.trained
    for content in ('{"torch": 2}', "{", file.read_text().replace("frozen", "froze")):
        file.write_text(content)
        assert costs.operations_of_run(config, folder) == counted
