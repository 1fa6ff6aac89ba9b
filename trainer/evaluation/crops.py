"""Images as evaluation sees them: centre crops, in chunks that are the same for any number of
ranks."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.images.images import BadImage, ImageEntry, read_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view, resized_crop
from data_pipeline.storage import Store
from model.device import staging

log = logging.getLogger(__name__)
_CHUNKS_AHEAD = 2
Crop = Literal["own", "published"]  # as our held-out tokens are made, or as `resized_crop`


class Chunk(NamedTuple):
    """pixels: uint8 (N, 3, H, W). labels: (N,)."""

    pixels: Tensor
    labels: Tensor

    def on(self, device: torch.device) -> Tensor:
        """The images on a device: (N, 3, H, W) float32 in [0, 1]."""
        return self.pixels.to(device, non_blocking=True).float() / 255


class _Reading(NamedTuple):
    """A chunk that threads read: each puts one image into its place, and says whether it could."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    readable: list[Future[bool]]

    def chunk(self) -> Chunk:
        """Wait for the images that can be read."""
        readable = torch.tensor([image.result() for image in self.readable], dtype=torch.bool)
        pixels, labels = torch.from_numpy(self.pixels), torch.from_numpy(self.labels)
        if not readable.all():
            pixels, labels = pixels[readable], labels[readable]
        return Chunk(pixels.permute(0, 3, 1, 2), labels)


class Crops:
    """Images of a store, cropped to `size` pixels a side and read `chunk` at a time.

    classes: names, which the labels of the images index. threads: how many read and decode. An
    image that cannot be read is left out, with a warning.
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
        threads: int = 1,
    ) -> None:
        self._store, self._images, self.classes = store, images, classes
        self._size, self._chunk, self._crop, self._threads = size, chunk, crop, threads

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

    def read(self, number: int) -> Chunk:
        """Read chunk 0 .. chunks-1."""
        (chunk,) = self.each([number])
        return chunk

    def each(self, numbers: Iterable[int]) -> Iterator[Chunk]:
        """Read chunks, in the order that is given. While the caller computes with one, threads read
        the next ones."""
        size = self._chunk
        return self._read(self._images[n * size : (n + 1) * size] for n in numbers)

    def spread(self, count: int) -> Chunk:
        """Read at most `count` images, spread evenly: a source lists one class after another."""
        count = min(count, len(self))
        images = [self._images[i * len(self) // count] for i in range(count)]
        (chunk,) = self._read(iter([images]))
        return chunk

    def _read(self, chunks: Iterator[Sequence[ImageEntry]]) -> Iterator[Chunk]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="crops")
        try:
            begun = deque(self._start(pool, c) for c in islice(chunks, 1 + _CHUNKS_AHEAD))
            while begun:
                chunk = begun.popleft().chunk()
                begun.extend(self._start(pool, c) for c in islice(chunks, 1))
                yield chunk
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, images: Sequence[ImageEntry]) -> _Reading:
        chunk = _Reading(
            staging((len(images), self._size, self._size, 3)),
            np.array([image.label for image in images], np.int64),
            [],
        )
        for place, image in enumerate(images):
            chunk.readable.append(pool.submit(self._put, image, chunk.pixels[place]))
        return chunk

    def _put(self, entry: ImageEntry, place: NDArray[np.uint8]) -> bool:
        """Put the crop of an image into its place. Returns whether it can be read."""
        try:
            image = read_image(self._store, entry)
        except BadImage as error:
            log.warning("left out: %s", error)
            return False
        if self._crop == "published":
            place[:] = resized_crop(image, self._size)
        else:
            place[:] = make_view(image, entry.id, 0, ViewRecipe.center(self._size))
        return True
