"""Pictures as evaluation reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.evaluation.crops import Crops


@pytest.mark.parametrize(("count", "of_each"), [(6, 2), (64, 20), (120, 40), (500, 40)])
def test_a_few_pictures_are_of_all_classes(count: int, of_each: int, pictures: Path) -> None:
    """The real ones beside samples: the first of a source would be of its first class."""
    found = Crops(str(pictures), "all", held_out=0.1, size=16, chunk=8).spread(count)
    assert found.labels.bincount().tolist() == [of_each] * 3 and found.pixels.shape[1:] == (3, 16, 16)
