"""Every kind of odd picture is read as documented, or refused with its file and reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures import class_folders, is_held_out, read_picture
from model.errors import DataError


def test_class_folders(pictures: Path) -> None:
    everything = class_folders(pictures)
    assert everything.classes == ("ellipse", "line", "rectangle") and len(everything.pictures) == 120
    train, val = class_folders(pictures, "train"), class_folders(pictures, "val")
    assert {p.id for p in train.pictures} | {p.id for p in val.pictures} == {p.id for p in everything.pictures}
    assert not {p.id for p in train.pictures} & {p.id for p in val.pictures}
    assert everything.pictures[0].id == "ellipse/000.png" and everything.pictures[-1].label == 2


def test_the_split_is_fixed_by_the_name() -> None:
    assert [is_held_out(f"a/{i}.png", 0.3) for i in range(5)] == SPLIT
    assert sum(is_held_out(f"a/{i}.png", 0.1) for i in range(5000)) == pytest.approx(500, abs=60)
    assert not is_held_out("x", 0.0) and is_held_out("x", 1.0)


SPLIT = [True, False, True, False, False]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "there is no picture folder"),
        (lambda root: root.mkdir(), "holds no class folders"),
        (lambda root: (root / "cats").mkdir(parents=True), "no pictures"),
    ],
)
def test_folders_without_pictures(tmp_path: Path, make: object, words: str) -> None:
    root = tmp_path / "pictures"
    make(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        class_folders(root)


def test_empty_split(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match="split"):
        class_folders(tmp_path, "val", 0.0)


def test_colours(tmp_path: Path) -> None:
    red, path = (200, 30, 40), tmp_path / "x.png"
    Image.new("RGB", (5, 3), red).save(path)
    assert read_picture(path).getpixel((0, 0)) == red
    Image.new("L", (5, 3), 77).save(path)
    assert read_picture(path).getpixel((0, 0)) == (77, 77, 77)
    Image.new("RGBA", (5, 3), (*red, 0)).save(path)
    assert read_picture(path).getpixel((0, 0)) == (255, 255, 255)  # transparent lies over white
    palette = Image.new("P", (5, 3), 1)
    palette.putpalette([9, 9, 9, *red])
    palette.save(path, transparency=0)
    assert read_picture(path).getpixel((0, 0)) == red
    Image.fromarray(np.full((3, 5), 40_000, np.uint16)).save(path)
    assert read_picture(path).getpixel((0, 0)) == (156, 156, 156)  # 16 bit is scaled, not clipped
    Image.new("CMYK", (5, 3), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    r, g, b = read_picture(tmp_path / "x.jpg").getpixel((0, 0))
    assert r > 220 and g < 40 and b < 40


def test_geometry(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").size == (2, 6)
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (3, 3), "lime").save(tmp_path / "mislabelled.JPEG", "PNG")
    assert read_picture(tmp_path / "mislabelled.JPEG").getpixel((1, 1)) == (0, 255, 0)
    Image.new("RGB", (1, 90)).save(tmp_path / "thin.png")
    assert read_picture(tmp_path / "thin.png").size == (1, 90)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cases = {"empty.png": b"", "text.png": b"no picture", "cut.png": whole.read_bytes()[:900]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png"):
        read_picture(tmp_path / "gone.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="bomb"):
        read_picture(whole)
