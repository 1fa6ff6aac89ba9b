from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainer.evaluation.measures.confusion import class_scores, confusion, scores

CLASSES = 4


@given(
    truth=arrays(np.int64, (3, 5, 7), elements=st.integers(-1, CLASSES - 1)),
    predicted=arrays(np.int64, (3, 5, 7), elements=st.integers(0, CLASSES - 1)),
)
def test_scores_are_those_of_a_count_by_hand(truth: np.ndarray, predicted: np.ndarray) -> None:
    """As mmsegmentation takes means: classes that are 0 over 0 are left out."""
    counts = sum(confusion(t, p, CLASSES) for t, p in zip(truth, predicted, strict=True))
    pixels = [
        (t, p)
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True)
        if t >= 0
    ]
    ious, accuracies = {}, {}
    for label in range(CLASSES):
        both = sum(t == p == label for t, p in pixels)
        either = sum(label in pair for pair in pixels)
        there = sum(t == label for t, _ in pixels)
        if either:
            ious[f"c{label}"] = both / either
        if there:
            accuracies[f"c{label}"] = both / there
    if not pixels:
        assert scores(counts) == {} and class_scores(counts, ("c0", "c1", "c2", "c3")) == {}
        return
    assert scores(counts) == pytest.approx(
        {
            "miou": math.fsum(ious.values()) / len(ious),
            "mean_accuracy": math.fsum(accuracies.values()) / len(accuracies),
            "pixel_accuracy": sum(t == p for t, p in pixels) / len(pixels),
        }
    )
    of_classes = class_scores(counts, ("c0", "c1", "c2", "c3"))
    assert {name: one["iou"] for name, one in of_classes.items()} == pytest.approx(ious)
    assert {
        name: one["accuracy"] for name, one in of_classes.items() if "accuracy" in one
    } == pytest.approx(accuracies)
