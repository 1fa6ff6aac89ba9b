"""What a run reads from its step alone, on any number of ranks; a resumed run is a new one with a
later step."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.storage import LocalStore
from model.errors import ConfigError
from tests.token_sets import samples_of, write_tokens
from trainer.checkpointing.expected import Expected
from trainer.checkpointing.format import Manifest
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.mage import MageObjective
from trainer.prefetch import Prefetch
from trainer.resilience.state import data_step

ROWS = [13, 40, 7, 25, 30, 21, 18, 40]  # 194 samples in 8 uneven shards
BATCH, PER_EPOCH = 32, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tokens(LocalStore(folder), ROWS)
    return folder


def config(data: Path, *overrides: str) -> RunConfig:
    return load_config(
        None,
        [
            "objective=mage",
            "predictor.sizes.size=tiny",
            "tokenizer.sizes.size=tiny",
            "tokenizer.sizes.image_size=16",
            "tokenizer.sizes.codebook_size=1024",
            f"data.tokens={data}",
            "data.window=3",
            f"batch.global_batch={BATCH}",
            "batch.micro=2",
            "seed=1",
            *overrides,
        ],
    )


def read(prefetch: Prefetch, step: int) -> np.ndarray:
    """Ids of this rank's micro batches, while the next step's are fetched."""
    return np.concatenate([batch.ids for batch in prefetch.get([step, step + 1])[0].result()])


def test_a_run_that_moves_between_clusters_sees_each_sample_once(data: Path) -> None:
    """4 -> 8 -> 1 -> 16 -> 2 ranks at random steps, over three epochs. Nothing but the step goes
    from one to the next; ranks accumulate, and each has a loader and a thread of its own, as in a
    run."""
    chance, objectives = (
        random.Random(3),
        [MageObjective(config(data), fresh=True) for _ in range(17)],
    )
    step, seen = 0, list[int]()
    for ranks in (4, 8, 1, 16, 2):
        world = [Prefetch(objectives[rank], rank, BATCH // 2 // ranks, 2) for rank in range(ranks)]
        stop = 3 * PER_EPOCH if ranks == 2 else min(step + chance.randint(1, 5), 3 * PER_EPOCH - 1)
        for now in range(step, stop):
            ids = np.concatenate([read(prefetch, now) for prefetch in world])
            assert np.array_equal(ids, objectives[16].batch(now, 0, BATCH).ids)
            seen += samples_of(ids)
        step = stop
        for prefetch in world:
            prefetch.close()
    for epoch in range(3):
        counted = Counter(seen[epoch * PER_EPOCH * BATCH : (epoch + 1) * PER_EPOCH * BATCH])
        assert len(counted) == PER_EPOCH * BATCH == 192 and set(counted.values()) == {1}
    assert data_step([{"step": 4, "length": 3}], 5) == 8  # where a rewind has left data out
    for objective in objectives:
        objective.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.tokens={other}", r"data: checkpoint '\w{64}', now '\w{64}'"),
        ("seed=2", "seed: checkpoint 1, now 2"),
        ("data.window=4", "order: window: checkpoint 3, now 4"),
        ("batch.global_batch=16", "global_batch: checkpoint 32, now 16"),
    ],
)
def test_other_data_are_refused_with_the_difference(
    change: str, words: str, data: Path, tmp_path: Path
) -> None:
    """The bytes, their order, the seed and the batch; by the identity that a checkpoint holds."""

    def run_identity(settings: RunConfig) -> dict[str, object]:
        objective = MageObjective(settings, fresh=True)
        objective.close()
        return objective.identity()

    before, now = config(data), config(data, change.format(other=tmp_path))
    write_tokens(LocalStore(tmp_path), ROWS, first=1)
    saved = Manifest(
        step=5,
        world_size=1,
        zero_stage=1,
        run_identity=run_identity(before),
        parameters={},
        export_prefix="",
        state_keys=[],
        applied=5,
        scaler={},
        skipped=[],
        trainer_state={},
        run="mine",
        config=before.model_dump(mode="json"),
    )
    assert Expected(run_identity(before), "mine", before, {}).check(saved, "step-00000005") == []
    with pytest.raises(ConfigError, match=words):
        Expected(run_identity(now), "mine", now, {}).check(saved, "step-00000005")
