"""COCO's average precision, as means of the precision that pycocotools finds."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.annotations.pycoco import precision

_THRESHOLDS = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}  # 0.5 to 0.95 by 0.05
_AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}  # by 32^2 and 96^2 pixels
_KINDS: dict[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}

Metrics = dict[str, float]


def average_precision(
    truth: dict[str, Any], found: list[dict[str, Any]], classes: tuple[str, ...], masks: bool
) -> tuple[Metrics, dict[str, Metrics]]:
    """Return COCO's metrics of all classes together, and of each class.

    truth, found: documents of COCO's form, for `precision`. classes: by the ids of their
    categories. masks: whether to compare masks, too.

    `box_ap` is the mean over thresholds from 0.5 to 0.95, `box_ap50` and `box_ap75` are of one
    threshold, `box_ap_small`, `box_ap_medium` and `box_ap_large` of one range of areas; `mask_ap`
    and so on alike. What nothing is annotated for is left out.
    """
    metrics: Metrics = {}
    of_classes: dict[str, Metrics] = {name: {} for name in classes}
    for kind in ("box", "mask") if masks else ("box",):
        results = found
        if kind == "mask":
            results = [{k: v for k, v in one.items() if k != "bbox"} for one in found]
        values = precision(truth, results, _KINDS[kind])
        metrics |= _named(kind, values)
        for label, name in enumerate(classes):
            of_classes[name] |= _named(kind, values[:, :, label : label + 1])
    return metrics, {name: of_class for name, of_class in of_classes.items() if of_class}


def _named(kind: str, values: NDArray[np.float64]) -> Metrics:
    """values: (T, R, K, A)."""
    metrics = {}
    for threshold, at in _THRESHOLDS.items():
        for area, which in _AREAS.items():
            if threshold and area:
                continue
            part = values[at, :, :, which]
            if (part > -1).any():
                metrics[f"{kind}_ap{threshold}{area}"] = float(part[part > -1].mean())
    return metrics
