"""Lets torchvision be imported where its compiled part does not load.

Wheels of torchvision are compiled for CUDA. Beside a PyTorch without CUDA their library does not
load, and then `import torchvision` fails at the first operator that it wants to describe. So does
much of transformers, which imports torchvision where it is installed.

`prepare` declares the operators that the import wants to describe. Detection needs one of them,
non-maximum suppression, which is written here; pooling has its own file (`regions.py`). Where the
library loads, nothing is changed.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # an operator lasts as long as its library


@cache
def prepare() -> bool:
    """Make `import torchvision` possible, and return whether its own operators can be used. It does
    not import it, and does nothing where it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    if _loads(Path(spec.submodule_search_locations[0])):
        return True
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    library.impl("nms", suppressed, "CPU")  # type: ignore[no-untyped-call]
    _declared.append(library)
    return False


def _loads(folder: Path) -> bool:
    libraries = sorted(folder.glob("_C*.so"))
    try:
        for path in libraries:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return bool(libraries)


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression: return the indices of the boxes that stay, by falling scores.

    boxes: (N, 4) as x1, y1, x2, y2. scores: (N,). threshold: a box goes if its intersection over
    union with a better one that stays is larger. Of equal scores, the first is the better.
    """
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].double().cpu().numpy().T
    areas = (x2 - x1) * (y2 - y1)
    stays = np.ones(len(x1), dtype=bool)
    for i in range(len(x1)):
        if not stays[i]:
            continue
        width = np.minimum(x2[i], x2[i + 1 :]) - np.maximum(x1[i], x1[i + 1 :])
        height = np.minimum(y2[i], y2[i + 1 :]) - np.maximum(y1[i], y1[i + 1 :])
        shared = width.clip(0) * height.clip(0)
        stays[i + 1 :] &= shared <= threshold * (areas[i] + areas[i + 1 :] - shared)
    return order[torch.from_numpy(stays).to(order.device)]
