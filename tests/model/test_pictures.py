"""Pictures in every form that users have them in, and what is no picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from model.errors import DataError
from model.pictures import as_images, opened, squares


def test_all_forms_of_a_picture_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [tmp_path / "image.png", str(tmp_path / "image.png"), image, pixels, tensor]
    forms += [pixels / 255, tensor / 255, pixels.astype(np.float32) / 255]
    for form in forms:
        assert np.array_equal(np.asarray(opened(form)[0]), pixels)
    assert len(opened(forms)) == len(forms)
    assert len(opened(np.stack([pixels] * 3))) == len(opened(torch.stack([tensor] * 3))) == 3
    grey = opened([pixels[..., 0], pixels[..., 0] > 127])
    assert grey[0].mode == "RGB" and set(np.unique(np.asarray(grey[1]))) == {0, 255}


def test_a_users_image_is_left_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGBA", (24, 20), (255, 0, 0, 0)).save(tmp_path / "turned.png", exif=exif)
    image = Image.open(tmp_path / "turned.png")
    (seen,) = opened(image)
    assert seen.size == (20, 24) and seen.getpixel((0, 0)) == (255, 255, 255)
    assert image.size == (24, 20) and image.mode == "RGBA"


def test_squares_are_the_views_that_evaluation_measures() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    view = make_view(image, "id", 0, ViewRecipe.center(16))
    square = squares([image], 16)
    assert square.shape == (1, 3, 16, 16) and np.array_equal(np.asarray(as_images(square)[0]), view)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((4, 4, 3)) + 7, "pixels from 7 to 7, but numbers with a fraction are in"),
        (np.full((4, 4, 3), np.nan), "pixels from nan"),
        (np.zeros((4, 4, 3), np.int64), "of the type int64"),
        (np.zeros((3, 4, 4)), r"of the shape \(3, 4, 4\), as height, width and colours"),
        (torch.zeros(4, 4, 3), r"of the shape \(4, 3, 4\), as height, width and colours"),
        (np.zeros((0, 4, 3)), "are no picture"),
        (7, "a int is no picture"),
        ([], "no pictures were given"),
        ("none.png", "cannot read none.png: No such file"),
        (__file__, "is no image that Pillow can read"),
    ],
)
def test_what_is_no_picture(picture: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened([picture] if isinstance(picture, int) else picture)  # type: ignore[list-item, arg-type]


def test_a_damaged_file_is_no_picture(tmp_path: Path) -> None:
    """Pillow raises ValueError for the first, and reads the second only when it is used."""
    file, cut = tmp_path / "damaged.png", tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\rIHDR", b"\x01IHDR"))
    cut.write_bytes(content[: len(content) // 2])
    with Image.open(cut) as image:
        for picture in (file, image):
            with pytest.raises(DataError, match=r"cannot read .*: .*[Tt]runcated"):
                opened(picture)
