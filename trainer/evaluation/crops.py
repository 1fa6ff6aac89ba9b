"""Images as evaluation sees them: centre crops, in chunks that are the same for any number of
ranks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.images.images import BadImage, ImageEntry, read_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view, resized_crop
from data_pipeline.storage import Store

log = logging.getLogger(__name__)
_THREADS = 4
Crop = Literal["own", "published"]  # as our held-out tokens are made, or as `resized_crop`


class Chunk(NamedTuple):
    """pixels: uint8 (N, 3, H, W). labels: (N,)."""

    pixels: Tensor
    labels: Tensor


class Crops:
    """Images of a store, cropped to `size` pixels a side and read `chunk` at a time.

    classes: names, which the labels of the images index. An image that cannot be read is left out,
    with a warning.
    """

    def __init__(
        self,
        store: Store,
        images: Sequence[ImageEntry],
        classes: tuple[str, ...],
        *,
        size: int,
        chunk: int,
        crop: Crop = "own",
    ) -> None:
        self._store, self._images, self.classes = store, images, classes
        self._size, self._chunk, self._crop = size, chunk, crop

    def __len__(self) -> int:
        return len(self._images)

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-len(self) // self._chunk)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, labels, sizes in bytes, and the crop; no image is opened."""
        digest = hashlib.sha256(f"{self._crop} {self._size}\n".encode())
        for image in self._images:
            digest.update(f"{image.id}\n{image.label} {image.size}\n".encode())
        return digest.hexdigest()

    def _view(self, entry: ImageEntry) -> NDArray[np.uint8] | None:
        try:
            image = read_image(self._store, entry)
            if self._crop == "published":
                return resized_crop(image, self._size)
            return make_view(image, entry.id, 0, ViewRecipe.center(self._size))
        except BadImage as error:
            log.warning("left out: %s", error)
            return None

    def read(self, number: int) -> Chunk:
        """Read chunk 0 .. chunks-1."""
        return self._read(self._images[number * self._chunk : (number + 1) * self._chunk])

    def spread(self, count: int) -> Chunk:
        """Read at most `count` images, spread evenly: a source lists one class after another."""
        return self._read(self._images[:: max(1, -(-len(self) // count))][:count])

    def _read(self, images: Sequence[ImageEntry]) -> Chunk:
        with ThreadPoolExecutor(_THREADS) as pool:
            views = list(pool.map(self._view, images))
        good = [
            (view, image.label)
            for view, image in zip(views, images, strict=True)
            if view is not None
        ]
        nothing = np.zeros((0, self._size, self._size, 3), np.uint8)
        pixels = np.stack([view for view, _ in good]) if good else nothing
        return Chunk(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            torch.tensor([label for _, label in good]).long(),
        )
