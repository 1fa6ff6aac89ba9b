"""How segmentations agree with the truth: counts of pixels, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (C, C): pixels by their true class, then by the predicted one


def confusion(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> Counts:
    """Count the pixels of an image.

    truth: (height, width), classes from 0, or negative for pixels that do not count. predicted: the
    same shape, classes from 0.
    """
    counted = truth >= 0
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(counts: Counts) -> dict[str, float]:
    """Return the shares that are reported of the pixels of all images together.

    miou: the mean of the classes' intersection over union. mean_accuracy: the mean share of a
    class's pixels that are found. pixel_accuracy: the share of all pixels that are right. As in
    mmsegmentation's `IoUMetric`, a class that is neither predicted nor there has no intersection
    over union, and is left out of that mean; one that is not there is left out of the mean
    accuracy. Without any pixel, nothing is returned.
    """
    total = int(counts.sum())
    if not total:
        return {}
    iou, accuracy = _of_classes(counts)
    return {
        "miou": float(np.nanmean(iou)),
        "mean_accuracy": float(np.nanmean(accuracy)),
        "pixel_accuracy": int(np.trace(counts)) / total,
    }


def class_scores(counts: Counts, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return intersection over union, accuracy and the number of true pixels of each class that is
    predicted or there."""
    iou, accuracy = _of_classes(counts)
    found: dict[str, dict[str, Any]] = {}
    for label, name in enumerate(classes):
        if np.isnan(iou[label]):
            continue
        found[name] = {"iou": float(iou[label])}
        if not np.isnan(accuracy[label]):
            found[name]["accuracy"] = float(accuracy[label])
        found[name]["pixels"] = int(counts[label].sum())
    return found


def _of_classes(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return intersection over union and accuracy by class, NaN where they are 0 over 0."""
    right, there = np.diag(counts).astype(np.float64), counts.sum(1)
    union = there + counts.sum(0) - np.diag(counts)
    with np.errstate(invalid="ignore"):
        return right / union, right / there
