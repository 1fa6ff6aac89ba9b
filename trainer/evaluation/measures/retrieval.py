"""Altered copies of held-out images look for their originals.

    images   --------------> patches (N, L, D) --\
       |                                          > cosine (N, N) --> rank of each one's original
    altered copies --------> patches (N, L, D) --/

Patches are compared each in its place, all of an image as one vector; and by their mean. Pixels are
compared in the same two ways: cut into the same patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from PIL import ImageDraw
from torch import Tensor

from data_pipeline.images.image_grid import GAP, image_grid
from model.errors import DataError
from trainer.evaluation.benchmarks.base import Outcome
from trainer.evaluation.measures.alterations import altered
from trainer.evaluation.measures.features import encoders, patches_of
from trainer.evaluation.measures.grids import png, zoom_of
from trainer.evaluation.measures.intervals import MAIN, shares
from trainer.evaluation.task import Task

_MOST = 1000  # images: as many more would make it harder, and the matrix larger
_SHOWN, _NEAREST = 8, 5  # rows of the picture, and images of each kind in a row
_FRAME = (20, 150, 60)

Patches = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> (B, L, D)


def measure(task: Task) -> Outcome:
    """Let altered copies of held-out images, at most 1,000 of them, find their originals.

    Rank 0 does it alone: it is over in seconds. Raises ADDPError.
    """
    crops = task.crops("val")
    if task.collectives.rank:
        return Outcome({})
    images = crops.spread(_MOST).on(task.device)
    if not len(images):
        raise DataError("none of the images can be read")
    copies = altered(images, task.options.seed)
    right: dict[str, dict[str, Tensor]] = {}
    nearest = []
    for kind, patches in _kinds(task):
        originals, queries = (_in_batches(patches, x, task.options.batch) for x in (images, copies))
        right[kind] = {}
        for prefix, cosine in _cosines(queries, originals):
            place = places(cosine).cpu()
            right[kind] |= {f"{prefix}top{k}": place <= k for k in (1, _NEAREST)}
            if kind in (MAIN, "pixels") and not prefix:
                nearest.append(cosine.topk(min(_NEAREST, len(images)), 1).indices.cpu())
    picture = _picture(images.cpu(), copies.cpu(), nearest)
    return Outcome({**shares(right), "images": len(images)}, {"nearest": picture})


def places(cosine: Tensor) -> Tensor:
    """Return the place of each copy's original, (N,) int64, 1 for the nearest. cosine: (N, N), a
    row for each copy; its original has the same number.

    One that is as near as the original counts as nearer; so does one whose cosine is not a number.
    """
    return (~(cosine < cosine.diagonal()[:, None])).sum(1)


def _kinds(task: Task) -> Iterator[tuple[str, Patches]]:
    """Yield what patches are taken of: encoders; with `baselines` pixels and the mean colour."""
    for name, network in encoders(task).items():
        yield name, partial(patches_of, network)
    if task.options.baselines:
        side = task.config.geometry.patch_size
        yield "pixels", lambda images: F.unfold(images, side, stride=side).transpose(1, 2)
        yield "colour", lambda images: images.mean((2, 3))[:, None]


def _in_batches(patches: Patches, images: Tensor, batch: int) -> Tensor:
    return torch.cat([patches(some) for some in torch.split(images, batch)])


def _cosines(queries: Tensor, originals: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the cosines (N, N) of two sets of patches (N, L, D), all of an image as one vector, and
    by their mean, where an image has several: the prefix of its metrics, and the matrix."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x.flatten(1)}
    if originals.shape[1] > 1:
        ways["mean_"] = lambda x: x.mean(1)
    for prefix, pooled in ways.items():
        ours, theirs = (F.normalize(pooled(x), dim=1) for x in (queries, originals))
        yield prefix, ours @ theirs.T


def _picture(images: Tensor, copies: Tensor, nearest: list[Tensor]) -> bytes:
    """Draw rows of a copy and its nearest originals, by each kind. nearest: (N, 5) each."""
    rows = range(0, len(images), max(1, len(images) // _SHOWN))[:_SHOWN]
    blank, drawn, found = torch.full_like(images[:1], 200 / 255), [], []
    for row in rows:
        parts = [copies[row : row + 1]]
        for indices in nearest:
            parts += [blank, images[indices[row]]]
        found.append([-1, *(x for i in nearest for x in (-1, *i[row].tolist()))])
        drawn.append(torch.cat(parts))
    zoom = zoom_of(images.shape[-1])
    sheet = image_grid(torch.cat(drawn), len(found[0]), zoom)
    side, brush = images.shape[-1] * zoom + GAP, ImageDraw.Draw(sheet)
    for line, (row, shown) in enumerate(zip(rows, found, strict=True)):
        for column in (column for column, index in enumerate(shown) if index == row):
            left, top = column * side, line * side
            brush.rectangle((left, top, left + side + 1, top + side + 1), outline=_FRAME, width=4)
    return png(sheet)
