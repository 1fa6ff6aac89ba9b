from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.shards.manifest import read_manifest
from model.errors import ConfigError, DataError
from model.networks import build
from tests.cluster.calling import addp
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.registry import objective_class
from trainer.preflight.assumptions import Assumptions
from trainer.preflight.estimates import make_plan

ROOT = Path(__file__).parents[3]


def plan(
    file: str = "trainer/recipes/base.yaml", *overrides: str, gpus: tuple[int, ...] = (8, 32)
) -> dict[str, object]:
    return make_plan(ROOT / file, list(overrides), list(gpus), Assumptions(images=1_281_167))


def test_the_published_run() -> None:
    found = plan()
    assert found["steps"] == 1600 * 312 and found["learning_rate"] == pytest.approx(1.6e-3)
    assert found["possible_gpus"] == [1, 2, 4, 8, 16, 32]
    assert found["trained_parameters"] == 145_883_625
    eight, many = found["worlds"]  # type: ignore[misc]
    assert (eight["accumulation"], many["accumulation"]) == (4, 1)
    assert eight["days"] == pytest.approx(4 * many["days"])
    memory = {stage: row["total"] for stage, row in eight["memory_gib"].items()}
    assert set(memory) == {"0", "1", "2", "3"} and memory["1"] > memory["2"] > memory["3"]


def test_failures_cost_more_on_more_gpus() -> None:
    """At the published mean time to failure; what is proposed is never worse than what is set."""
    many = plan("trainer/recipes/base.yaml", "batch.micro=4", gpus=(8, 64, 1024))
    rows = [world["reliability"] for world in many["worlds"]]  # type: ignore[attr-defined]
    assert [row["ettr"] for row in rows] == sorted((row["ettr"] for row in rows), reverse=True)
    assert rows[-1]["hours_to_failure"] == pytest.approx(7.9, rel=1e-3)
    for row in rows:
        assert row["ettr"] >= row["ettr_as_configured"] > 0.9
        assert sum(row["waste"].values()) == pytest.approx(1 - row["ettr"], abs=1e-3)
        assert row["every"] * row["step_seconds"] >= 0.9 * row["commit_seconds"]


def test_a_save_that_training_waits_for_is_made_less_often() -> None:
    assumptions = Assumptions(images=1_281_167, write=0.05)
    behind, waiting = (
        make_plan(ROOT / "trainer/recipes/base.yaml", overrides, [8], assumptions)["worlds"][0]
        for overrides in ([], ["checkpoint.asynchronous=false"])
    )
    assert waiting["reliability"]["every"] > behind["reliability"]["every"]
    assert waiting["reliability"]["ettr"] < behind["reliability"]["ettr"]
    assert waiting["reliability"]["commit_seconds"] == 0
    stated = make_plan(
        ROOT / "trainer/recipes/base.yaml", [], [8], assumptions.model_copy(update={"stall": 30.0})
    )
    assert stated["worlds"][0]["reliability"]["stall_seconds"] == 30


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="this one on 1, 2, 4, 8, 16, 32 ranks"):
        plan(gpus=(64,))
    with pytest.raises(ConfigError, match="larger than the data set"):
        make_plan(None, [], [8], Assumptions(images=1000))
    with pytest.raises(ConfigError, match="H100"):
        make_plan(None, [], [8], Assumptions(images=10_000, device="abacus"))


def test_a_demo_is_planned_where_its_data_are_not() -> None:
    """And where 8 GPUs are too many for its batch."""
    found = plan("trainer/recipes/demo-addp.yaml", gpus=())
    assert [world["gpus"] for world in found["worlds"]] == [2]  # type: ignore[attr-defined]
    assert found["images_per_epoch"] == 1_281_167


def test_images_are_counted_or_stated(tokens: Path, tmp_path: Path) -> None:
    mage = [
        "objective=mage",
        "batch.global_batch=8",
        "batch.micro=1",
        "tokenizer.sizes.size=tiny",
        "predictor.sizes.size=tiny",
    ]

    def images(place: Path | None, stated: int | None) -> int:
        data = [f"data.tokens={place}"] if place else []
        return make_plan(None, [*mage, *data], [], Assumptions(images=stated))["images_per_epoch"]  # type: ignore[no-any-return]

    assert images(tokens, None) == read_manifest(tokens).rows != images(tokens, 1000) == 1000
    assert images(None, None) == 1_281_167
    with pytest.raises(
        DataError, match="make it with `addp tokenize`; or state its images by --images"
    ):
        images(tmp_path, None)


def test_recomputing_and_offloading_save_memory() -> None:
    config = load_config(ROOT / "trainer/recipes/base.yaml")
    recomputing = load_config(ROOT / "trainer/recipes/base.yaml", ["recompute_every=1"])
    assert costs.step_footprint(recomputing).trained < 0.5 * costs.step_footprint(config).trained
    assert costs.rank_memory(config, 3, 64).optimizer == pytest.approx(
        costs.rank_memory(config, 3, 8).optimizer / 8
    )


def test_mixed_precision_lies_between_whole_half_and_float32() -> None:
    half, mixed, single = (
        load_config(ROOT / "trainer/recipes/base.yaml", [f"precision={p}"])
        for p in ("bf16", "bf16-mixed", "fp32")
    )
    held = [costs.step_footprint(config).trained for config in (half, mixed, single)]
    assert held[0] < held[1] < 0.65 * held[2]
    memory = [costs.rank_memory(config, 1, 8) for config in (half, mixed)]
    trained, _ = costs.parameters(half)
    assert memory[1].weights - memory[0].weights == 2 * trained
    assert memory[1].frozen == memory[0].frozen and memory[1].optimizer == memory[0].optimizer
    stages = plan("trainer/recipes/base.yaml", "precision=bf16")["worlds"][0]["memory_gib"]  # type: ignore[index]
    assert set(stages) == {"1", "2", "3"}


def test_operations_are_those_of_the_real_network() -> None:
    """Of the predictor's forward and backward: six a parameter and token in its matrices, and some
    for attention."""
    config = load_config(ROOT / "trainer/recipes/mage-base.yaml")
    g, sizes = config.geometry, config.predictor.sizes
    per_block = 12 * sizes.dim**2
    encoder = 6 * per_block * sizes.depth * (g.tokens // 2 + 1)
    decoder = 6 * per_block * sizes.decoder_depth * (g.tokens + 1)
    assert encoder + decoder < costs.image_operations(config).total < 1.25 * (encoder + decoder)


def test_operations_of_deep_networks_are_those_of_their_blocks() -> None:
    """Which are counted at once, however many there are."""
    sizes = {
        "tokenizer": {"sizes": {"size": "tiny"}},
        "predictor": {"sizes": {"size": "tiny", "depth": 3}},
        "addp": {"sizes": {"size": "tiny", "depth": 2, "decoder_depth": 3}},
    }
    for objective in ("addp", "mage", "classify"):
        config = RunConfig.model_validate({"objective": objective, **sizes})
        assert costs.image_operations(config) == objective_class(objective).counted_flops(config)


def test_operations_depend_on_what_an_objective_sets_by_itself() -> None:
    """A section of its own says that a linear probe does not go back through the encoder."""
    classify = ["objective=classify", "addp.sizes.size=tiny"]
    whole, probe = (
        costs.image_operations(load_config(None, [*classify, f"classifier.method={method}"]))
        for method in ("finetune", "linear")
    )
    assert 0 < probe.total < whole.total / 2


def test_parameters_and_checkpoint_sizes_are_those_of_a_real_one(tmp_path: Path) -> None:
    config = load_config(
        None, ["objective=mage", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny"]
    )
    network = build("predictor", config.predictor.sizes, config.geometry)
    size = sum(p.numel() for p in network.parameters())
    assert costs.parameters(config) == (size, 0)
    assert costs.checkpoint_bytes(config) == 12 * size  # weights and two moments, in float32
    assert next(network.parameters()).dtype == torch.float32


def test_the_command_prints_a_table_and_json() -> None:
    found = addp(
        "plan", "batch.micro=64", ROOT / "trainer/recipes/base.yaml", "--gpus", 32
    )  # arguments in any order
    assert (
        "ZeRO-3" in found.stdout
        and "145.9 M trained" in found.stdout
        and "micro 64" in found.stdout
        and "10.5 d" in found.stdout  # between two failures of 32 GPUs
    )
    found = addp("plan", "--config", ROOT / "trainer/recipes/base.yaml", "--gpus", 32, "--json")
    assert json.loads(found.stdout)["worlds"][0]["gpus"] == 32
    assert (
        "one run file only"
        in addp(
            "plan",
            "--config",
            ROOT / "trainer/recipes/base.yaml",
            ROOT / "trainer/recipes/large.yaml",
        ).stderr
    )
