from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from data_pipeline.annotations.run_lengths import mask_of_runs, parse_runs
from model.errors import DataError


@settings(max_examples=40)
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 9), gap=st.floats(0, 1)
)
def test_packed_runs_are_those_of_pycocotools(
    height: int, width: int, seed: int, gap: float
) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < gap).astype(np.uint8)
    packed = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
    runs = parse_runs(packed)
    assert parse_runs(runs) is runs
    assert np.array_equal(mask_of_runs(np.array(runs, np.uint32), height, width), mask)


@settings(max_examples=50)
@given(st.text(max_size=12) | st.text(st.characters(min_codepoint=48, max_codepoint=111)))
def test_any_text_gives_runs_or_an_error(text: str) -> None:
    try:
        runs = parse_runs(text)
    except DataError:
        return
    assert all(0 <= run < 2**31 for run in runs)


@pytest.mark.parametrize(
    "counts", [None, 5, {}, [1.0], [True], [-1], [2**31], ["1"], "P", "~", "o" * 9]
)
def test_what_are_no_runs(counts: object) -> None:
    with pytest.raises(DataError, match="counts"):
        parse_runs(counts)
