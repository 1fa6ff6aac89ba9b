"""A demo keeps to the images and the length that it was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.demo.images import remember_images, remember_length
from model.errors import ConfigError


@pytest.mark.parametrize("marker", ["images.source", "pictures.source"])  # the latter of 0.1.0
def test_a_demo_keeps_to_the_images_that_it_was_begun_on(marker: str, tmp_path: Path) -> None:
    (tmp_path / marker).write_text("openmoji")
    with pytest.raises(ConfigError, match="holds a demo on openmoji"):
        remember_images(tmp_path, tmp_path / "others")
    remember_images(tmp_path, None)
    assert (tmp_path / "images.source").read_text() == "openmoji"


def test_a_demo_keeps_to_its_length(tmp_path: Path) -> None:
    """One that an earlier version began has no marker, and takes the first length that it meets."""
    remember_length(tmp_path, "--scale 0.5")
    remember_length(tmp_path, "--scale 0.5")
    for other in ("--scale 1", "--scale 0.5 --quick"):
        with pytest.raises(ConfigError, match=r"go on with --scale 0\.5, remove that folder"):
            remember_length(tmp_path, other)
