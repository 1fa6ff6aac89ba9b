"""Every kind of odd image is read as documented, or refused with its name and reason."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.images.images import BadImage, ImageEntry, decode_image, read_image
from data_pipeline.images.split import is_held_out
from data_pipeline.storage import LocalStore, open_store
from model.errors import DataError
from tests.tars import jpeg


def read(path: Path) -> Image.Image:
    size = path.stat().st_size if path.exists() else 0
    return read_image(LocalStore(path.parent), ImageEntry(path.name, 0, path.name, size))


def test_the_split_is_fixed_by_the_name() -> None:
    assert [is_held_out(f"a/{i}.png", 0.3) for i in range(5)] == SPLIT
    assert sum(is_held_out(f"a/{i}.png", 0.1) for i in range(5000)) == pytest.approx(500, abs=60)
    assert not is_held_out("x", 0.0) and is_held_out("x", 1.0)


SPLIT = [True, False, True, False, False]


def test_colours(tmp_path: Path) -> None:
    red, path = (200, 30, 40), tmp_path / "x.png"
    Image.new("RGB", (5, 3), red).save(path)
    assert read(path).getpixel((0, 0)) == red
    Image.new("L", (5, 3), 77).save(path)
    assert read(path).getpixel((0, 0)) == (77, 77, 77)
    Image.new("RGBA", (5, 3), (*red, 0)).save(path)
    assert read(path).getpixel((0, 0)) == (255, 255, 255)  # transparent lies over white
    palette = Image.new("P", (5, 3), 1)
    palette.putpalette([9, 9, 9, *red])
    palette.save(path, transparency=0)
    assert read(path).getpixel((0, 0)) == red
    Image.fromarray(np.full((3, 5), 40_000, np.uint16)).save(path)
    assert read(path).getpixel((0, 0)) == (156, 156, 156)  # 16 bit is scaled, not clipped
    Image.new("CMYK", (5, 3), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    r, g, b = read(tmp_path / "x.jpg").getpixel((0, 0))  # type: ignore[misc]
    assert r > 220 and g < 40 and b < 40


def test_geometry(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read(tmp_path / "x.jpg").size == (2, 6)
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (3, 3), "lime").save(tmp_path / "mislabelled.JPEG", "PNG")
    assert read(tmp_path / "mislabelled.JPEG").getpixel((1, 1)) == (0, 255, 0)
    Image.new("RGB", (1, 90)).save(tmp_path / "thin.png")
    assert read(tmp_path / "thin.png").size == (1, 90)


def test_unreadable(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cases = {
        "empty.png": (b"", "empty file"),
        "text.png": (b"no image", "cannot identify"),
        "cut.png": (whole.read_bytes()[:900], "truncated"),
        "gone.png": (None, "gone since it was listed"),
    }
    for name, (content, reason) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=name) as caught:
            read(tmp_path / name)
        assert reason in caught.value.reason and str(tmp_path) not in caught.value.reason
    sent = pickle.loads(pickle.dumps(caught.value))
    # Engines send it between processes.
    assert (str(sent), sent.reason) == (str(caught.value), caught.value.reason)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_another_file_than_was_listed(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = (
        LocalStore(tmp_path) if where == "folder" else open_store(request.getfixturevalue("bucket"))
    )
    for content in (jpeg(0), b""):
        store.replace("x.jpg", content)
        size = len(content)
        with pytest.raises(BadImage, match=f" {size} bytes, but {size + 1} when it was listed"):
            read_image(store, ImageEntry("x.jpg", 0, "x.jpg", size + 1))
    store.replace("x.jpg", jpeg(0))
    with pytest.raises(BadImage, match="more than 3 bytes, but 3 when it was listed"):
        read_image(store, ImageEntry("x.jpg", 0, "x.jpg", 3))


@pytest.mark.filterwarnings("ignore")  # pytest undoes our own filter of Pillow's
def test_bounds(tmp_path: Path) -> None:
    """Images are bounded in bytes, before they are read, and in pixels, before they are decoded."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")  # 11 kB, just above the limit
    with pytest.raises(
        BadImage, match=r"10000 x 9000 pixels, more than .* 89,478,485: a decompression bomb"
    ):
        read(tmp_path / "bomb.png")
    with (tmp_path / "long.jpg").open("wb") as file:
        file.write(jpeg(0))
        file.truncate(2**40)
    with pytest.raises(
        BadImage, match="1,099,511,627,776 bytes, more than the limit of 67,108,864"
    ):
        read(tmp_path / "long.jpg")
    # It has grown since it was listed.
    with pytest.raises(BadImage, match="more than 99 bytes, but 99 when"):
        read_image(LocalStore(tmp_path), ImageEntry("long.jpg", 0, "long.jpg", 99))
    with pytest.raises(DataError, match="more than the limit"):
        decode_image(bytes(2**26 + 1))


def test_floating_point_pixels(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tif")  # a conversion would clip it to black
    with pytest.raises(BadImage, match="floating-point numbers, of no known scale"):
        read(tmp_path / "x.tif")
