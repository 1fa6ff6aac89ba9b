"""Pictures as users have them, and as networks see them: files, Pillow images, arrays and tensors
of any size <-> (N, 3, S, S) in [0, 1], the largest centred squares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from model.errors import DataError
from model.rgb import centred_square, to_rgb

Picture = Image.Image | Path | str | NDArray[Any] | Tensor
Pictures = Picture | Sequence[Picture]
_ONE = (Image.Image, Path, str, np.ndarray, Tensor)


def opened(pictures: Pictures) -> list[Image.Image]:
    """Return pictures as 8-bit RGB images, whole and in order.

    pictures: one of these, or a sequence of them: a file's path; a Pillow image; an array (H, W, 3)
    or (H, W); a tensor (3, H, W) or (H, W). Or an array (N, H, W, 3), or a tensor (N, 3, H, W).
    Numbers are 8-bit, boolean, or floating-point in [0, 1]. Raises DataError for anything else, and
    for a file that is no image.
    """
    if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim == 4:
        pictures = list(pictures)
    elif isinstance(pictures, _ONE):
        pictures = [pictures]
    if not pictures:
        raise DataError("no pictures were given")
    return [_opened(picture) for picture in pictures]


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image | Path | str):
        try:
            if isinstance(picture, Image.Image):
                return to_rgb(picture.copy())
            with Image.open(picture) as file:
                return to_rgb(file)
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"{picture} is no image that Pillow can read") from error
        except OSError as error:
            raise DataError(f"cannot read {picture}: {error.strerror or error}") from error
        except Exception as error:  # a damaged file may raise anything
            raise DataError(f"cannot read {picture}: {error}") from error
    if isinstance(picture, Tensor):
        array = picture.detach().cpu()
        pixels = (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()
    elif isinstance(picture, np.ndarray):
        pixels = picture
    else:
        raise DataError(
            f"a {type(picture).__name__} is no picture; give a path, a Pillow image, an array or a "
            "tensor"
        )
    return _of_numbers(pixels)


def _of_numbers(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise DataError(
            f"pixels of the shape {pixels.shape}, as height, width and colours, are no picture; "
            "arrays are (H, W, 3) or (H, W), and tensors (3, H, W) or (H, W)"
        )
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # neither holds of NaN
            raise DataError(
                f"pixels from {pixels.min():g} to {pixels.max():g}, but numbers with a fraction "
                "are in [0, 1]; convert those from 0 to 255 to uint8"
            )
        pixels = (pixels.astype(np.float64) * 255).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DataError(
            f"pixels of the type {pixels.dtype}; give uint8, bool, or floating point in [0, 1]"
        )
    return Image.fromarray(pixels).convert("RGB")


def squares(images: Sequence[Image.Image], size: int) -> Tensor:
    """Return the largest centred squares of RGB images as pixels in [0, 1], (N, 3, size, size),
    resized by a bicubic filter without aliasing."""
    pixels = [
        np.asarray(
            image.resize((size, size), Image.Resampling.BICUBIC, box=centred_square(*image.size))
        )
        for image in images
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Return pixels (N, 3, H, W), clamped to [0, 1], as 8-bit RGB images."""
    bytes_ = (pixels.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in bytes_]
