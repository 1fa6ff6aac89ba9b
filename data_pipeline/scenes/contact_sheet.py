"""Draws some scenes on one picture, each beside itself with its masks, boxes and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.scenes import licence
from data_pipeline.scenes.annotations import mask_of
from data_pipeline.scenes.chunks import SceneRecord

SHEET_SCENES = 12
_COLUMNS = 3  # pairs of a scene and its annotations in a row
_SIDE = 240  # pixels that a scene is shown at
_GAP, _MARGIN, _LEGEND = 6, 18, 60
_PAPER, _INK = (250, 250, 248), (40, 40, 40)
_FADED = 0.35  # how much of the scene shows beside its masks
_TINT = 0.62  # how much of a class's colour lies over an emoji
# Of the classes, by their labels: as far apart as nine colours can be.
COLOURS = (
    (226, 50, 60),
    (142, 92, 50),
    (230, 180, 0),
    (70, 160, 30),
    (0, 165, 155),
    (245, 125, 20),
    (30, 105, 225),
    (125, 60, 190),
    (225, 60, 165),
)


def draw_sheet(scenes: Sequence[tuple[Path, SceneRecord]], classes: tuple[str, ...]) -> Image.Image:
    """Draw scenes, (picture, record) each, in pairs: as they are, and annotated."""
    rows = -(-len(scenes) // _COLUMNS)
    pair = 2 * _SIDE + _GAP
    width = 2 * _MARGIN + _COLUMNS * pair + (_COLUMNS - 1) * _MARGIN
    height = _MARGIN + rows * (_SIDE + _MARGIN) + _LEGEND
    sheet = Image.new("RGB", (width, height), _PAPER)
    for i, (picture, record) in enumerate(scenes):
        left = _MARGIN + i % _COLUMNS * (pair + _MARGIN)
        top = _MARGIN + i // _COLUMNS * (_SIDE + _MARGIN)
        with Image.open(picture) as scene:
            scene.load()
        sheet.paste(scene.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, top))
        annotated = _annotated(scene, record)
        sheet.paste(annotated, (left + _SIDE + _GAP, top))
    _draw_legend(sheet, height - _LEGEND, classes)
    return sheet


def _annotated(scene: Image.Image, record: SceneRecord) -> Image.Image:
    size = scene.width
    large = np.asarray(scene.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float32)
    grey = large.mean(axis=2, keepdims=True)
    pixels = 255 - _FADED * (255 - grey.repeat(3, axis=2))
    for annotation in record.annotations:
        mask = _enlarged(mask_of(annotation.runs, size))
        colour = np.array(COLOURS[annotation.label - 1], np.float32)
        pixels[mask] = (1 - _TINT) * grey[mask] + _TINT * colour
        pixels[_outline(mask)] = colour * 0.6
    image = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    scale = _SIDE / size
    for annotation in record.annotations:
        left, top, width, height = annotation.box
        box = [left * scale, top * scale, (left + width) * scale - 1, (top + height) * scale - 1]
        draw.rectangle(box, outline=COLOURS[annotation.label - 1], width=2)
    return image


def _enlarged(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) > 127


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside of it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _draw_legend(sheet: Image.Image, top: int, classes: tuple[str, ...]) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    left: float = _MARGIN
    for name, colour in zip(classes, COLOURS, strict=False):
        draw.rounded_rectangle((left, top, left + 16, top + 16), 4, fill=colour)
        draw.text((left + 22, top + 8), name, fill=_INK, font=font, anchor="lm")
        left += 22 + draw.textlength(name, font=font) + 22
    draw.text(
        (_MARGIN, top + 38),
        licence.ATTRIBUTION,
        fill=(120, 120, 120),
        font=ImageFont.load_default(14),
        anchor="lm",
    )
