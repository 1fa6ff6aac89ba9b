"""What pycocotools does: polygons as pixels, masks as packed run lengths, and COCO's evaluation. No
other file imports it."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"pycocotools.{name}")
    except ImportError as error:
        raise ConfigError(
            f"detection needs pycocotools ({error}); install it with `pip install 'addp[detect]'`"
        ) from error


def mask_api() -> Any:
    """Return pycocotools' module of masks. Raises ConfigError where it is not installed."""
    return _module("mask")


def mask_of_rings(
    rings: Sequence[NDArray[np.floating[Any]]], height: int, width: int
) -> NDArray[np.uint8]:
    """Return the union of polygons as a mask, uint8 (height, width) of 0 and 1.

    rings: the corners of each polygon, (K, 2) as x and y in pixels; what lies outside is cut off.
    Pixels count as COCO counts them.
    """
    mask = mask_api()
    polygons = [ring.ravel().tolist() for ring in rings]
    encoded = mask.merge(mask.frPyObjects(polygons, height, width))
    return np.asarray(mask.decode(encoded))


def packed_masks(masks: NDArray[np.bool_]) -> list[str]:
    """Return the `counts` of masks (N, height, width) as COCO packs them, which is compact text."""
    columns = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    return [encoded["counts"].decode() for encoded in mask_api().encode(columns)]


def precision(
    truth: dict[str, Any], found: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> NDArray[np.float64]:
    """Return COCO's precision, float64 (T, R, K, A), by pycocotools' own evaluation.

    truth: a document of COCO's form (`CocoIndex.ground_truth`). found: results of COCO's form; for
    `segm` without `bbox`, or the area of an object would be that of its box. Neither is changed.
    Annotations are numbered anew, from 1: pycocotools takes one whose id is 0 for never found.

    T thresholds of the intersection over union, 0.5 to 0.95. R recalls, 0 to 1. K classes, by their
    ids. A areas: all, small, medium, large. At most 100 objects of an image and class count. It is
    -1 where there is nothing of that class and area to find.
    """
    coco, evaluation = _module("coco").COCO, _module("cocoeval").COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        expected, actual = coco(), coco()
        numbered = [{**one, "id": i} for i, one in enumerate(truth["annotations"], 1)]
        expected.dataset = {**truth, "annotations": numbered}
        expected.createIndex()
        if found:
            actual = expected.loadRes([dict(one) for one in found])
        else:  # which loadRes does not take
            actual.dataset = {**truth, "annotations": []}
            actual.createIndex()
        evaluated = evaluation(expected, actual, kind)
        evaluated.evaluate()
        evaluated.accumulate()
    return np.asarray(evaluated.eval["precision"][..., -1])
