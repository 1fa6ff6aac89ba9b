"""The photographs of the study of samplers: pictures of 64 x 64 pixels in class folders, made of
Debian packages.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds \\
        plasma-workspace-wallpapers tuxpaint-stamps-default
    for d in *.deb; do dpkg-deb -x $d unpacked; done
    python -m benchmarks.photographs unpacked photos

Cut-outs of objects (Tux Paint's stamps, GPL-2) lie on white squares: the whole object, and three
crops of it. Backgrounds of desktops, those that are photographs (CC BY-SA, LGPL, GPL), give 32
crops each, in the class "views". Crops depend on nothing but the files' names.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

_SIDE, _CROPS, _OF_OBJECT = 64, 32, 3
_STAMPS = ("animals", "food", "plants", "household", "vehicles", "space", "hobbies", "sports")
_DRAWN = {"cartoon", "toys", "plastic"}  # folders of stamps that are no photographs
_NOT_PHOTOGRAPHS = ("hedgehog", "Apricot_1", "Cherry_S", "Strawber", "pizza")
_BACKGROUNDS = "usr/share/backgrounds"
_PLASMA = (
    *("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow"),
    *("FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
)
_LOMIRI = (
    *("Bridge", "Dragonfly", "Picture_0B", "Picture_1A", "Wine", "aitzgorri", "free_", "friends"),
    *("greentock", "life", "picosdeeuropa", "seeding", "sunset", "Kleiber"),
)

Box = tuple[float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder of the unpacked packages")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    _objects(options.packages / "usr/share/tuxpaint/stamps", options.out)
    for name, file in _views(options.packages):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        draw = random.Random(name)
        for i in range(_CROPS):
            box = _random_box(draw, *image.size, 0.05, 1.0)
            _save(image, box, options.out / "views" / f"{name}-{i:02d}.png")


def _objects(stamps: Path, out: Path) -> None:
    for file in sorted(stamps.rglob("*.png")):
        parts = file.relative_to(stamps).parts
        drawn = bool(set(parts) & _DRAWN) or file.stem.startswith(_NOT_PHOTOGRAPHS)
        if parts[0] not in _STAMPS or drawn or file.stem.endswith(("_mirror", "_flip")):
            continue
        with Image.open(file) as opened:
            cut = opened.convert("RGBA")
        cut = cut.crop(cut.getchannel("A").getbbox())
        side = round(max(cut.size) * 1.06)
        square = Image.new("RGB", (side, side), "white")
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2), cut)
        draw = random.Random(f"{parts[0]}/{file.stem}")
        boxes = [(0.0, 0.0, float(side), float(side))]
        boxes += [_random_box(draw, side, side, 0.5, 0.9) for _ in range(_OF_OBJECT)]
        for i, box in enumerate(boxes):
            _save(square, box, out / parts[0] / f"{file.stem}-{i}.png")


def _views(packages: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each background that is a photograph."""
    backgrounds = packages / _BACKGROUNDS
    for file in sorted((backgrounds / "mate/nature").glob("*.jpg")):
        yield file.stem, file
    for name in _PLASMA:
        yield name, packages / "usr/share/wallpapers" / name / "contents/images/2560x1600.jpg"
    for file in sorted(backgrounds.glob("*.jpg")):
        if file.stem.startswith(_LOMIRI):
            yield file.stem, file


def _random_box(draw: random.Random, width: float, height: float, least: float, most: float) -> Box:
    """Return a square whose area is a share of the largest one, between `least` and `most`."""
    side = (draw.uniform(least, most) ** 0.5) * min(width, height)
    left, top = draw.uniform(0, width - side), draw.uniform(0, height - side)
    return left, top, left + side, top + side


def _save(image: Image.Image, box: Box, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (_SIDE, _SIDE)
    image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3).save(path)


if __name__ == "__main__":
    main()
