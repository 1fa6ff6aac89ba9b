from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.images.images import read_image
from data_pipeline.images.openmoji import labelled_svgs, render
from data_pipeline.images.sources import split_of
from model.errors import ConfigError


def test_rendering_and_going_on(tmp_path: Path) -> None:
    assert render(tmp_path, size=48, limit=60) > 40
    source = split_of(tmp_path)
    first, second = source.images[:2]
    image = read_image(source.store, first)
    assert (
        len(source.classes) >= 8
        and image.size == (48, 48)
        and image.getpixel((0, 0)) == (255, 255, 255)
    )
    (tmp_path / first.id).write_bytes(b"kept")
    (tmp_path / second.id).unlink()
    render(tmp_path, size=48, limit=60)
    assert (tmp_path / first.id).read_bytes() == b"kept" and (tmp_path / second.id).exists()


def test_images_of_another_size_are_not_taken_for_done(tmp_path: Path) -> None:
    render(tmp_path, size=48, limit=3)
    with pytest.raises(ConfigError, match="holds images of 48 pixels, and 64 are asked for"):
        render(tmp_path, size=64, limit=3)


def test_the_set() -> None:
    svgs = list(labelled_svgs())
    assert len(svgs) > 1800 and len({category for _, category in svgs}) == 9
    assert not any("1F3FB" in svg.stem for svg, _ in svgs)
