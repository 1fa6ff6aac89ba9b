"""Images and tars as people have them, made of a few hundred bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image


def jpeg(seed: int) -> bytes:
    """An image of 20 + seed pixels by 20; each seed gives another one."""
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20 + seed, 3), np.uint8)
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def tar_of(files: Mapping[str, bytes | tarfile.TarInfo], format: int = tarfile.GNU_FORMAT) -> bytes:
    """Members in the given order: their bytes, or, for a link or a device, their header (its name
    is the key)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as tar:
        for name, content in files.items():
            add(tar, name, content)
    return data.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes | tarfile.TarInfo) -> None:
    if isinstance(content, tarfile.TarInfo):
        content.name = name
        tar.addfile(content)
        return
    info = tarfile.TarInfo(name)
    # A fraction makes a PAX header, as WebDataset's writer does.
    info.size, info.mtime = (len(content), 1.5)
    tar.addfile(info, io.BytesIO(content))


def link(kind: bytes, target: str = "") -> tarfile.TarInfo:
    """kind: tarfile.LNKTYPE, SYMTYPE, FIFOTYPE ..."""
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info
