from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.images.sources import split_of
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards.manifest import MANIFEST, read_manifest
from data_pipeline.streaming import sample_loader
from data_pipeline.streaming.image_loader import ImageLoader
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from model.errors import ConfigError, DataError


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_ranks_slice_the_global_batch(tokens: Path, ranks: int) -> None:
    whole = TokenLoader(tokens, global_batch=12, seed=5, options=LoaderOptions(window=2))
    ranked = [
        TokenLoader(tokens, global_batch=12, seed=5, options=LoaderOptions(window=2))
        for _ in range(ranks)
    ]
    for step in (0, 3, whole.schedule.steps_per_epoch, 1000):
        expected = whole.batch(step, 0, 12)
        size = 12 // ranks
        pieces = [loader.batch(step, r * size, size) for r, loader in enumerate(ranked)]
        np.testing.assert_array_equal(np.concatenate([p.ids for p in pieces]), expected.ids)
        np.testing.assert_array_equal(np.concatenate([p.labels for p in pieces]), expected.labels)
        assert [p.start for p in pieces] == [step * 12 + r * size for r in range(ranks)]


def test_each_image_once_an_epoch_in_another_view_each_time(tokens: Path) -> None:
    loader = TokenLoader(tokens, global_batch=1, seed=0, options=LoaderOptions(window=2))
    n = loader.manifest.rows
    stored = np.concatenate(
        [
            r.records["tokens"]
            for r in map(loader.shards[0].open, range(len(loader.manifest.shards)))
        ]
    )
    seen = []
    for epoch in range(3):
        ids = np.concatenate([loader.batch(epoch * n + s, 0, 1).ids for s in range(n)])
        views = [
            next((i, v) for i in range(n) for v in range(3) if np.array_equal(stored[i, v], row))
            for row in ids
        ]
        seen.append(views)
    # So that rows can be told apart.
    assert len({tuple(row.tobytes() for row in stored[i]) for i in range(n)}) == n
    assert all({i for i, _ in views} == set(range(n)) for views in seen)
    assert {v for views in seen for v in views} == {(i, v) for i in range(n) for v in range(3)}


def test_refusals(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than the data set"):
        TokenLoader(tokens, global_batch=10_000, seed=0)
    with pytest.raises(DataError, match="no finished token data set"):
        TokenLoader(tmp_path, global_batch=1, seed=0)
    with pytest.raises(DataError, match="another tokenizer"):
        TokenLoader(tokens, global_batch=1, seed=0, tokenizer="0" * 64)
    copy = tmp_path / "copy"
    shutil.copytree(tokens, copy)
    content = json.loads((copy / MANIFEST).read_text())
    content["classes"][0] = "renamed"
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after it was written"):
        read_manifest(copy)


def test_image_batches_are_a_function_of_the_step(images: Path) -> None:
    """Not of the number of threads, nor of what was read ahead for other steps."""
    source, threads = split_of(images, "train"), iter((1, 8))

    def loader() -> ImageLoader:
        return ImageLoader(
            source, ViewRecipe(size=16), global_batch=8, seed=1, threads=next(threads)
        )

    first = loader()
    batches = [first.batch(step, 0, 8).pixels for step in range(3)]
    resumed = loader()
    np.testing.assert_array_equal(resumed.batch(2, 0, 4).pixels, batches[2][:4])
    np.testing.assert_array_equal(resumed.batch(2, 4, 4).pixels, batches[2][4:])
    assert batches[0].shape == (8, 16, 16, 3) and not np.array_equal(batches[0], batches[1])
    for step in (0, 2, 1):  # as a rewind, and data that it leaves out
        np.testing.assert_array_equal(first.batch(step, 0, 8).pixels, batches[step])


def test_batches_are_read_ahead_within_a_bound(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps, in two slices each: as many as the memory allows, and always the next one."""
    source = split_of(images, "train")

    def ahead(room: int) -> int:
        monkeypatch.setattr(sample_loader, "_AHEAD_BYTES", room)
        made = []

        def buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
            made.append(shape)
            return np.empty(shape, np.uint8)

        loader = ImageLoader(source, ViewRecipe(size=16), global_batch=8, seed=1, buffer=buffer)
        slices = [loader.batch(step, offset, 4) for step in range(4) for offset in (0, 4)]
        loader.close()
        return len(made) - len(slices)

    assert ahead(2**28) == 4 * 2
    assert ahead(3 * 4 * 3 * 16 * 16) == 3
    assert ahead(0) == 2


def test_an_unreadable_image_is_replaced_up_to_a_limit(images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    source = split_of(copy)

    def epoch() -> ImageLoader:
        loader = ImageLoader(source, ViewRecipe(size=16), global_batch=120, seed=1)
        loader.batch(0, 0, 120)
        return loader

    (copy / source.images[5].id).write_bytes(b"")
    assert list(epoch().bad) == [5]
    (copy / source.images[6].id).write_bytes(b"no image")
    with pytest.raises(DataError, match="more than 1 images cannot be read"):
        epoch()
