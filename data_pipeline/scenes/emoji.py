"""The emoji that scenes are made of: their groups, their split, and the parts of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from data_pipeline.images.openmoji import labelled_svgs
from data_pipeline.images.split import is_held_out
from data_pipeline.scenes.settings import Split

_HELD_OUT = 0.1  # share of the emoji, as in `addp demo`
_SVG = "http://www.w3.org/2000/svg"
# What the layers of OpenMoji's files show. A part's index is its place here, from 1 on.
PARTS = ("color", "line", "hair", "skin")
_PART_OF_LAYER = {
    "color": "color",
    "color-foreground": "color",
    "line": "line",
    "line-supplement": "line",
    "hair": "hair",
    "skin": "skin",
    "skin-shadow": "skin",
}


class Emoji(NamedTuple):
    """An emoji of the set. code: its code points, as in the name of its file. group: its class."""

    code: str
    group: str
    file: Path


class Layer(NamedTuple):
    """Something that is drawn at once. part: index into PARTS, from 1 on. body: SVG elements, in a
    square of 72 units."""

    part: int
    body: str


def is_validation(emoji: Emoji) -> bool:
    """Whether an emoji stands in validation scenes; it then stands in no training scene.

    `addp demo` holds out the same emoji: what it trained has not seen those of validation scenes.
    """
    return is_held_out(f"{emoji.group}/{emoji.code}.png", _HELD_OUT)


@cache
def cast_of(split: Split, classes: tuple[str, ...]) -> tuple[Sequence[Emoji], ...]:
    """Return the emoji that stand in the scenes of a split, for each class, ordered by their codes.

    Raises DataError if the packages that hold them are not installed.
    """
    members: dict[str, list[Emoji]] = defaultdict(list)
    for file, group in labelled_svgs():
        emoji = Emoji(file.stem, group, file)
        if is_validation(emoji) == (split == "validation"):
            members[group].append(emoji)
    return tuple(members[name] for name in classes)


@cache
def layers_of(file: Path) -> tuple[Layer, ...]:
    """Return the layers of an emoji, the lowest one first; neighbours of the same part are one."""
    ElementTree.register_namespace("", _SVG)
    layers: list[Layer] = []
    for element in ElementTree.parse(file).getroot():
        part = PARTS.index(_PART_OF_LAYER[element.get("id", "")]) + 1
        element.tail = None
        body = ElementTree.tostring(element, "unicode")
        if layers and layers[-1].part == part:
            body = layers.pop().body + body
        layers.append(Layer(part, body))
    return tuple(layers)
