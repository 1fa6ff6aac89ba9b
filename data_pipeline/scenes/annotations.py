"""What is known of a scene, as plain numbers: the box, area and mask of each emoji in it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_pipeline.scenes.composition import Scene
from model.documents import Count, Positive, Record


class Annotation(Record):
    """An emoji in a scene, by what shows of it.

    label: its class, from 1 on. emoji: its code points. box: left, top, width and height in pixels;
    the smallest one. area: pixels that show. runs: the mask's lengths of runs of 0 and 1 in turn,
    beginning with 0, down the columns from left to right, as COCO's run-length encoding.
    """

    label: Positive
    emoji: Annotated[str, Field(max_length=100)]
    box: tuple[Count, Count, Positive, Positive]
    area: Positive
    runs: list[Count]


def annotate(scene: Scene) -> list[Annotation]:
    """Return the annotations of a scene, from the lowest emoji to the topmost."""
    found = []
    for number, instance in enumerate(scene.instances, 1):
        mask = scene.owner == number
        found.append(
            Annotation(
                label=instance.label,
                emoji=instance.emoji.code,
                box=tight_box(mask),
                area=int(mask.sum()),
                runs=run_lengths(mask),
            )
        )
    return found


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the smallest box around a mask (H, W) that is not
    empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of 0 and 1 in turn, beginning with 0, down the columns of a
    mask (H, W) from left to right."""
    flat = np.concatenate(([False], mask.ravel(order="F")))
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(borders, prepend=0, append=mask.size).tolist()
    return runs
