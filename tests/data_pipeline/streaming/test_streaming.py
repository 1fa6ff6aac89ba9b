"""What a run reads: the same on any cluster, each sample once, mixed exactly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from data_pipeline.streaming.mixture import BLOCK, Mixture
from data_pipeline.streaming.order import SampleOrder
from model.errors import ConfigError
from tests.token_sets import samples_of, tokens_of, write_tokens

ROWS = [13, 40, 7, 25, 30, 21, 18, 40]  # 194 samples in 8 uneven shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tokens(LocalStore(folder), ROWS)
    return folder


def loader(
    data: Path | str | list[tuple[str, float]], batch: int, seed: int = 1, **options: object
) -> TokenLoader:
    return TokenLoader(
        data, global_batch=batch, seed=seed, options=LoaderOptions(**{"window": 3, **options})
    )  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 64),
    micro=st.integers(1, 3),
    steps=st.integers(0, 5000),
    seed=st.integers(0, 99),
)
def test_global_batches_are_the_same_on_any_number_of_ranks(
    data: Path, ranks: int, micro: int, steps: int, seed: int
) -> None:
    batch = ranks * micro
    whole, ranked = loader(data, batch, seed), loader(data, batch, seed)
    for step in (steps, steps + 1):
        expected = whole.batch(step, 0, batch)
        pieces = [ranked.batch(step, rank * micro, micro) for rank in range(ranks)]
        assert np.array_equal(np.concatenate([p.ids for p in pieces]), expected.ids)
        assert np.array_equal(np.concatenate([p.labels for p in pieces]), expected.labels)
    whole.close()
    ranked.close()


def test_labels_and_tokens_belong_together(data: Path) -> None:
    reader = loader(data, 97)
    for step in range(6):
        batch = reader.batch(step, 0, 97)
        for row, label in zip(batch.ids, batch.labels, strict=True):
            assert np.array_equal(row, tokens_of(int(label), int(row[2])))
        for offset in (0, 50, 96):
            location = reader.where(step, offset)
            assert (
                location is not None
                and location.epoch == step // 2
                and location.view == batch.ids[offset, 2]
            )
            number = int(location.shard[7:13])
            assert sum(ROWS[:number]) + location.row == batch.labels[offset]


def test_the_tail_is_dropped_or_padded(data: Path) -> None:
    dropped, padded = loader(data, 60), loader(data, 60, tail="pad")
    assert dropped.schedule.steps_per_epoch == 3 and padded.schedule.steps_per_epoch == 4
    seen, weights = [], []
    for step in range(4):
        batch = padded.batch(step, 0, 60)
        weight = np.ones(60, np.float32) if batch.weights is None else batch.weights
        seen += [s for s, w in zip(samples_of(batch.ids), weight, strict=True) if w]
        weights.append(float(weight.sum()))
    assert sorted(seen) == list(range(194)) and weights == [60, 60, 60, 14]
    assert padded.where(3, 13) is not None and padded.where(3, 14) is None
    assert padded.batch(4, 0, 60).weights is None  # the next epoch


@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("stripes", [2, 4, 8])
def test_with_stripes_a_node_reads_only_its_own(data: Path, stripes: int, tail: str) -> None:
    batch = 16
    reader = loader(data, batch, stripes=stripes, tail=tail)
    share = batch // stripes
    shards: list[set[str]] = [set() for _ in range(stripes)]
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for step in range(
            epoch * reader.schedule.steps_per_epoch, (epoch + 1) * reader.schedule.steps_per_epoch
        ):
            got = reader.batch(step, 0, batch)
            sound = np.ones(batch, bool) if got.weights is None else got.weights > 0
            seen.update(s for s, ok in zip(samples_of(got.ids), sound, strict=True) if ok)
            for offset in range(batch):
                if (location := reader.where(step, offset)) is not None:
                    shards[offset // share].add(location.shard)
        assert set(seen.values()) == {1} and (tail == "drop" or len(seen) == 194)
    # No shard in two stripes.
    assert sum(len(s) for s in shards) == 8 and len(set.union(*shards)) == 8


def test_mixtures_are_exact(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tokens(LocalStore(other), [50, 50], first=1000)
    sets = [(str(data), 3.0), (str(other), 1.0)]
    reader, again = loader(sets, 64), loader(sets, 64)
    seen = [s for step in range(64) for s in samples_of(reader.batch(step, 0, 64).ids)]
    from_other = [s for s in seen if s >= 1000]
    assert len(seen) == BLOCK and len(from_other) == BLOCK // 4
    for start in range(0, len(from_other) - 100, 100):  # each set's own epochs are whole
        assert sorted(from_other[start : start + 100]) == list(range(1000, 1100))
    own = [s for s in seen if s < 1000]
    assert all(sorted(own[i : i + 194]) == list(range(194)) for i in range(0, len(own) - 194, 194))
    piece = again.batch(40, 10, 20)  # any slice, without reading what comes before
    assert samples_of(piece.ids) == seen[40 * 64 + 10 : 40 * 64 + 30]
    location = reader.where(0, [s >= 1000 for s in seen].index(True))
    assert location is not None and location.dataset == str(other)
    with pytest.raises(ConfigError, match="under 1/4096"):
        Mixture([1.0, 1e-6], 0)
    with pytest.raises(ConfigError, match="not with a mixture"):
        loader(sets, 64, stripes=2)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 10), min_size=2, max_size=6),
    start=st.integers(0, 10**7),
    seed=st.integers(0, 9),
)
def test_mixture_slices_agree(weights: list[float], start: int, seed: int) -> None:
    mixture = Mixture(weights, seed)
    assert int(mixture.counts.sum()) == BLOCK
    whole = mixture.locate(start, 300)
    piece = mixture.locate(start + 100, 50)
    assert np.array_equal(piece.dataset, whole.dataset[100:150]) and np.array_equal(
        piece.sample_index, whole.sample_index[100:150]
    )
    for d in range(len(weights)):
        indices = whole.sample_index[whole.dataset == d]
        assert np.array_equal(np.diff(indices), np.ones(max(0, len(indices) - 1)))


def test_all_tokens_in_stored_order(data: Path) -> None:
    of_data = loader(data, 1)
    assert np.array_equal(of_data.all_tokens(), np.stack([tokens_of(n, 0) for n in range(194)]))
    assert of_data.all_labels().tolist() == list(range(194))


def test_shuffle_quality() -> None:
    """Distinct shards in a batch of 64 against the ideal, and serial correlation: docs/streaming.md
    has the figures."""
    order = SampleOrder([1000] * 200, seed=0, window=16)
    where = order.locate(0, 0, 64 * 1000)
    distinct = np.mean([len(np.unique(where.shard[i : i + 64])) for i in range(0, 64_000, 64)])
    ideal = 16 * (1 - (1 - 1 / 16) ** 64)  # drawing from the shards of a window
    assert distinct == pytest.approx(ideal, rel=0.02)
    rows = where.row[:16_000]
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.03


def test_ten_epochs_take_no_more_memory_than_one(data: Path) -> None:
    reader = loader(data, 32)
    for step in range(60):
        reader.batch(step, 0, 32)
        stream = reader._streams[0]
        assert len(stream._windows) <= 2 and len(reader.shards[0]._recent) <= 6
