"""The images and the length of a demo: chosen when it is begun, and kept to."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from data_pipeline.images.openmoji import render
from data_pipeline.images.sources import split_of
from data_pipeline.storage.output import check_apart, check_output
from model.errors import ConfigError

_IMAGES = "images.source"
_IMAGES_BEFORE = "pictures.source"  # of version 0.1.0
_LENGTH = "length"

_console = Console(stderr=True)


def take_images(images: Path | None, out: Path, length: str) -> Path:
    """Return the folder of images, and render it where none is given.

    length: the options that say how long the trainings are, as a user writes them.

    Raises ConfigError where the demo's folder cannot be written, or lies within the images, or
    holds a demo on other images or of another length.
    """
    check_output(out)
    if images is not None:
        check_apart(out, images, "--out")
    remember_images(out, images)
    remember_length(out, length)
    if images is None:
        _console.rule("images: OpenMoji, CC BY-SA 4.0")
        render(out / "images")
    folder = images or out / "images"
    source = split_of(folder)
    _console.print(f"{len(source.images)} images in {len(source.classes)} classes")
    return folder


def remember_images(out: Path, images: Path | None) -> None:
    """Leave a marker of the images. Raises ConfigError where the demo was begun on other ones."""
    name = str(images.resolve()) if images else "openmoji"
    for marker in (out / _IMAGES, out / _IMAGES_BEFORE):
        if marker.exists() and (before := marker.read_text()) != name:
            raise ConfigError(
                f"{out} holds a demo on {before}; remove that folder, or give another one with "
                "--out"
            )
    _write(out / _IMAGES, name)


def remember_length(out: Path, length: str) -> None:
    """Leave a marker of the length. Raises ConfigError where the demo was begun with another one.

    A longer tokenizer would make other tokens, so that nothing of a shorter demo could be used.
    """
    marker = out / _LENGTH
    if marker.exists() and (before := marker.read_text()) != length:
        raise ConfigError(
            f"{out} holds a demo with {before}, and a demo cannot be made longer or shorter; go on "
            f"with {before}, remove that folder, or give another one with --out"
        )
    _write(marker, length)


def _write(marker: Path, text: str) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(text)
