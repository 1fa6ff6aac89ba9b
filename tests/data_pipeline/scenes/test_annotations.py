from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from data_pipeline.annotations.run_lengths import mask_of_runs
from data_pipeline.scenes.annotations import run_lengths, tight_box

masks = arrays.arrays(np.bool_, st.integers(1, 9).map(lambda side: (side, side)))


@given(masks)
def test_runs_go_down_the_columns(mask: NDArray[np.bool_]) -> None:
    runs = run_lengths(mask)
    height, width = mask.shape
    column_by_column = [bool(mask[y, x]) for x in range(width) for y in range(height)]
    decoded: list[bool] = []
    for i, run in enumerate(runs):
        assert run > 0 or i == 0  # the first pixel may be of the mask
        decoded += [i % 2 == 1] * run
    assert decoded == column_by_column
    assert (mask_of_runs(runs, height, width) == mask).all()


@given(masks.filter(np.any))
def test_boxes_are_tight(mask: NDArray[np.bool_]) -> None:
    left, top, width, height = tight_box(mask)
    inside = mask[top : top + height, left : left + width]
    assert inside.sum() == mask.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
