"""Draws some scenes on one picture, each beside itself with its masks, boxes and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_pipeline.annotations.painting import Thing, colour_of, painted
from data_pipeline.annotations.run_lengths import mask_of_runs
from data_pipeline.scenes import licence
from data_pipeline.scenes.chunks import SceneRecord

SHEET_SCENES = 12
_COLUMNS = 3  # pairs of a scene and its annotations in a row
_SIDE = 240  # pixels that a scene is shown at
_GAP, _MARGIN, _LEGEND = 6, 18, 60
_PAPER, _INK = (250, 250, 248), (40, 40, 40)


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
        things = [
            Thing(
                found.label - 1,
                mask_of_runs(found.runs, scene.height, scene.width).astype(bool),
                found.box,
            )
            for found in record.annotations
        ]
        sheet.paste(painted(scene, (_SIDE, _SIDE), things), (left + _SIDE + _GAP, top))
    _draw_legend(sheet, height - _LEGEND, classes)
    return sheet


def _draw_legend(sheet: Image.Image, top: int, classes: tuple[str, ...]) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    left: float = _MARGIN
    for label, name in enumerate(classes):
        draw.rounded_rectangle((left, top, left + 16, top + 16), 4, fill=colour_of(label))
        draw.text((left + 22, top + 8), name, fill=_INK, font=font, anchor="lm")
        left += 22 + draw.textlength(name, font=font) + 22
    draw.text(
        (_MARGIN, top + 38),
        licence.ATTRIBUTION,
        fill=(120, 120, 120),
        font=ImageFont.load_default(14),
        anchor="lm",
    )
