from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.streaming.epochs import EpochSchedule
from data_pipeline.streaming.order import SampleOrder

shards = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    rows=shards, seed=st.integers(0, 2**40), window=st.integers(1, 40), epoch=st.integers(0, 1000)
)
def test_an_epoch_is_a_permutation(rows: list[int], seed: int, window: int, epoch: int) -> None:
    order = SampleOrder(rows, seed, window=window)
    where = order.locate(epoch, 0, order.samples)
    expected = {(s, r) for s, n in enumerate(rows) for r in range(n)}
    assert (
        len(where.row) == len(expected)
        and set(zip(where.shard.tolist(), where.row.tolist(), strict=True)) == expected
    )


@settings(max_examples=80, deadline=None)
@given(rows=shards, seed=st.integers(0, 100), window=st.integers(1, 8), data=st.data())
def test_any_slice_of_it_is_the_same(
    rows: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    order = SampleOrder(rows, seed, window=window)
    whole = order.locate(3, 0, order.samples)
    start = data.draw(st.integers(0, order.samples))
    count = data.draw(st.integers(0, order.samples - start))
    if count:
        piece = SampleOrder(rows, seed, window=window).locate(3, start, count)
        np.testing.assert_array_equal(piece.shard, whole.shard[start : start + count])
        np.testing.assert_array_equal(piece.row, whole.row[start : start + count])


def test_a_window_holds_only_its_shards() -> None:
    order = SampleOrder([10] * 12, 0, window=3)
    where = order.locate(0, 0, 120)
    assert all(len(set(where.shard[i : i + 30])) == 3 for i in range(0, 120, 30))


def test_epochs_and_seeds_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        where = SampleOrder([50] * 4, seed).locate(epoch, 0, 200)
        return (where.shard * 50 + where.row).tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(s, e)) for s in range(3) for e in range(3)}) == 9
    correlation = np.corrcoef(np.arange(200), first(1, 1))[0, 1]
    assert abs(correlation) < 0.25


def test_steps_map_onto_epochs() -> None:
    schedule = EpochSchedule(samples=103, global_batch=10)
    assert schedule.steps_per_epoch == 10
    assert [schedule.locate(s) for s in (0, 9, 10, 25)] == [(0, 0), (0, 90), (1, 0), (2, 50)]
