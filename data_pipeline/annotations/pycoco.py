"""Polygons as pixels, by pycocotools. No other file imports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError


def mask_api() -> Any:
    """Return pycocotools' module of masks. Raises ConfigError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError(
            f"detection needs pycocotools ({error}); install it with `pip install 'addp[detect]'`"
        ) from error
    return mask


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
