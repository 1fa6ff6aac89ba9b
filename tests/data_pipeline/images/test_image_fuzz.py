"""Damaged images of every format that is read: each gives an image or a BadImage, and nothing
else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.images.images import FORMATS, decode_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from model.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
RECIPE = ViewRecipe(size=16, views=2)


def saved(format: str, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(NOISE, "RGBA").convert(mode).save(data, format, **options)
    return data.getvalue()


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "red")]}
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
SEEDS: dict[str, bytes] = {
    "JPEG": saved("JPEG"),
    "JPEG progressive, EXIF": saved("JPEG", progressive=True, exif=TURNED),
    "JPEG CMYK": saved("JPEG", "CMYK"),
    "PNG": saved("PNG"),
    "PNG alpha": saved("PNG", "RGBA"),
    "PNG palette": saved("PNG", "P", transparency=0),
    "PNG 16 bit": saved("PNG", "I;16"),
    "WEBP": saved("WEBP"),
    "WEBP lossless": saved("WEBP", "RGBA", lossless=True),
    "WEBP animated": saved("WEBP", **FRAMES),
    "GIF": saved("GIF", "P"),
    "GIF animated": saved("GIF", **FRAMES),
    "BMP": saved("BMP"),
    "BMP palette": saved("BMP", "P"),
    "PPM": saved("PPM"),
    "PPM grey": saved("PPM", "L"),
    "TIFF": saved("TIFF"),
    "TIFF LZW": saved("TIFF", compression="tiff_lzw"),
    "TIFF deflate": saved("TIFF", "RGBA", compression="tiff_adobe_deflate"),
    "TIFF JPEG": saved("TIFF", compression="jpeg"),
}


def test_the_seeds_are_read_and_are_all_formats() -> None:
    for name, data in SEEDS.items():
        assert decode_image(data).size in ((24, 20), (20, 24)), name  # EXIF turns one
    assert {name.split()[0] for name in SEEDS} == set(FORMATS)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to three damages: bytes changed, cut off, left out, doubled, zeroed, or a number made
    extreme."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        # headers are where most of the code is
        at = (
            chance.randrange(min(len(content), 80) if chance.random() < 0.5 else len(content))
            if content
            else 0
        )
        length = chance.randint(1, 16)
        match chance.randrange(6):
            case 0:
                content[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[at:]
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + length] = bytes(length)
            case _:
                content[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80")
                )
    return bytes(content)


@pytest.mark.parametrize("rounds", [80, pytest.param(8000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata that it passes over
def test_mutations(name: str, rounds: int) -> None:
    chance = random.Random(name)
    refused = 0
    for _ in range(rounds):
        data = mutated(SEEDS[name], chance)
        try:
            image = decode_image(data)
        except DataError as error:
            reason = str(error)
            assert 0 < len(reason) <= 250 and reason.isprintable() and "0x" not in reason, reason
            refused += 1
        else:
            assert image.mode == "RGB"
            assert make_view(image, "x", 1, RECIPE).shape == (16, 16, 3)
    assert refused > rounds // 20


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("AVIF", "RGB"),
        ("DDS", "RGBA"),
        ("BLP", "P"),
        ("SPIDER", "F"),
        ("EPS", "RGB"),
        ("JPEG2000", "RGB"),
        ("TGA", "RGB"),
        ("PCX", "RGB"),
        ("ICO", "RGBA"),
        ("PDF", "RGB"),
    ],
)
def test_other_formats_reach_no_decoder(format: str, mode: str) -> None:
    """Whole or damaged: some of these decoders raise errors of any type, and that of EPS starts a
    program."""
    whole = saved(format, mode)
    for data in (whole, whole[:-1] + bytes([whole[-1] ^ 1]), whole[:40]):
        with pytest.raises(DataError, match=r"^cannot identify image file$"):
            decode_image(data)


def test_an_error_of_any_type_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that fails in a way of its own, as Pillow's for AVIF does."""

    def raises(error: Exception) -> Callable[..., None]:
        def load(self: object) -> None:
            raise error

        return load

    for error, reason in (
        (RuntimeError("decoder at 0x7f00 failed\nbadly"), "RuntimeError: decoder failed badly"),
        (KeyError(273), "KeyError: 273"),
        (MemoryError(), "MemoryError: "),
        (OSError("x" * 999), "x" * 200),
    ):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", raises(error))
        with pytest.raises(DataError) as caught:
            decode_image(SEEDS["BMP"])
        assert str(caught.value) == reason
