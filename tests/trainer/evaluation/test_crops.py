"""Images as evaluation reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.storage import LocalStore
from trainer.evaluation.contents import listing_of
from trainer.evaluation.crops import Crop, Crops


def crops(images: Path, crop: Crop) -> Crops:
    listing = listing_of(str(images))
    return Crops(LocalStore(images), listing.images, listing.classes, size=16, chunk=8, crop=crop)


@pytest.mark.parametrize("count", [6, 64, 119, 120, 500])
def test_a_few_images_are_of_all_classes(count: int, images: Path) -> None:
    """As many as were asked for, of 120. The first of a source would be of its first class."""
    chunk = crops(images, "own").spread(count)
    of_each = chunk.labels.bincount().tolist()
    assert sum(of_each) == min(count, 120) and max(of_each) - min(of_each) <= 1
    assert chunk.pixels.shape[1:] == (3, 16, 16)


def test_the_published_protocol_reads_every_image(images: Path, tmp_path: Path) -> None:
    """The shorter of 24 x 20 pixels becomes 16, bilinear; then the middle. One that cannot be read
    is missing."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    published = crops(folder, "published")
    pixels = np.concatenate(
        [
            published.read(number).pixels.permute(0, 2, 3, 1).numpy()
            for number in range(published.chunks)
        ]
    )
    files = sorted(folder.glob("*/*.png"), key=lambda path: path.relative_to(folder).as_posix())
    expected = [
        np.asarray(
            Image.open(f)
            .convert("RGB")
            .resize((19, 16), Image.Resampling.BILINEAR)
            .crop((2, 0, 18, 16))
        )
        for f in files
    ]
    assert np.array_equal(pixels, np.stack(expected)) and len(pixels) == 120
    own = crops(folder, "own")
    assert (
        not np.array_equal(own.read(0).pixels, published.read(0).pixels)
        and own.fingerprint != published.fingerprint
    )
    files[3].write_bytes(files[3].read_bytes()[:40])
    assert len(crops(folder, "published").read(0).labels) == 7
