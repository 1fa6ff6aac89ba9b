"""Pictures of predictions: rows of an image, its truth, and what a network finds in it."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from data_pipeline.annotations.painting import Thing, colour_of, painted
from trainer.evaluation.measures.grids import png

_SHOWN = 6  # images
_SIDE = 240  # pixels of the longer side of an image
_GAP, _LINE = 6, 22  # pixels between images, and of a line of the legend
_PAPER, _INK = (250, 250, 248), (40, 40, 40)


class Row(NamedTuple):
    """An RGB image, what is annotated in it, and what is predicted."""

    image: Image.Image
    truth: list[Thing]
    predicted: list[Thing]


def shown_rows(count: int) -> list[int]:
    """Return which of `count` images are shown: some that are spread evenly."""
    return list(range(0, count, max(1, -(-count // _SHOWN))))[:_SHOWN]


def compared(rows: list[Row], classes: tuple[str, ...]) -> dict[str, bytes]:
    """Draw rows, and below them the names of the classes that they show. Returns the PNG under the
    name "predictions", and nothing where there are no rows."""
    if not rows:
        return {}
    legend = _legend(rows, classes, 3 * _SIDE + 2 * _GAP)
    sizes = [_fitted(row.image) for row in rows]
    height = sum(high + _GAP for _, high in sizes) + legend.height
    sheet = Image.new("RGB", (3 * _SIDE + 4 * _GAP, height + 2 * _GAP), _PAPER)
    top = _GAP
    for row, size in zip(rows, sizes, strict=True):
        shown = (
            row.image.resize(size, Image.Resampling.LANCZOS),
            painted(row.image, size, row.truth),
            painted(row.image, size, row.predicted),
        )
        for column, image in enumerate(shown):
            left = _GAP + column * (_SIDE + _GAP) + (_SIDE - size[0]) // 2
            sheet.paste(image, (left, top))
        top += size[1] + _GAP
    sheet.paste(legend, (_GAP, top))
    return {"predictions": png(sheet)}


def _fitted(image: Image.Image) -> tuple[int, int]:
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return width, height


def _legend(rows: list[Row], classes: tuple[str, ...], width: int) -> Image.Image:
    """Draw a square of its colour and a name for each class that the rows show, in lines."""
    font = ImageFont.load_default(14)
    labels = sorted({thing.label for row in rows for thing in (*row.truth, *row.predicted)})
    places: list[tuple[int, float, int]] = []
    left, line = 0.0, 0
    for label in labels:
        length = 20 + font.getlength(classes[label]) + 16
        if left and left + length > width:
            left, line = 0.0, line + 1
        places.append((label, left, line))
        left += length
    legend = Image.new("RGB", (width, _LINE * (line + 1)), _PAPER)
    draw = ImageDraw.Draw(legend)
    for label, left, line in places:
        top = line * _LINE + 4
        draw.rounded_rectangle((left, top, left + 14, top + 14), 3, fill=colour_of(label))
        draw.text((left + 20, top + 7), classes[label], fill=_INK, font=font, anchor="lm")
    return legend
