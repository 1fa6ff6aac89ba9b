"""Pictures of a split as evaluation sees them: centre crops, read in chunks that do not depend on who reads them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.pictures import BadPicture, Picture, Split, read_picture
from data_pipeline.sources import split_of
from data_pipeline.views import ViewRecipe, make_view

log = logging.getLogger(__name__)
_THREADS = 4


class Chunk(NamedTuple):
    """pixels: uint8 (N, 3, H, W). labels: (N,)."""

    pixels: Tensor
    labels: Tensor


class Crops:
    """A picture that cannot be read is left out, and said. Raises DataError for what is no source of pictures."""

    def __init__(self, pictures: str, split: Split, held_out: float, size: int, chunk: int) -> None:
        self._source = split_of(pictures, split, held_out)
        self._recipe, self._chunk = ViewRecipe.center(size), chunk
        self.classes = self._source.classes

    def __len__(self) -> int:
        return len(self._source.pictures)

    @property
    def chunks(self) -> int:
        return -(-len(self) // self._chunk)

    @cached_property
    def fingerprint(self) -> str:
        """Of what the pictures are, not of their bytes: names, sizes, labels, crop."""
        digest = hashlib.sha256(self._recipe.model_dump_json().encode())
        for p in self._source.pictures:
            digest.update(f"{p.id}\n{p.label} {p.size}\n".encode())
        return digest.hexdigest()

    def _view(self, picture: Picture) -> NDArray[np.uint8] | None:
        try:
            return make_view(read_picture(self._source.store, picture), picture.id, 0, self._recipe)
        except BadPicture as error:
            log.warning("left out: %s", error)
            return None

    def read(self, number: int) -> Chunk:
        """Chunk 0 .. chunks-1."""
        return self._read(self._source.pictures[number * self._chunk : (number + 1) * self._chunk])

    def spread(self, count: int) -> Chunk:
        """At most `count`, evenly over all: a source has its classes one after another."""
        return self._read(self._source.pictures[:: max(1, -(-len(self) // count))][:count])

    def _read(self, pictures: Sequence[Picture]) -> Chunk:
        with ThreadPoolExecutor(_THREADS) as pool:
            views = list(pool.map(self._view, pictures))
        good = [(view, p.label) for view, p in zip(views, pictures, strict=True) if view is not None]
        size = self._recipe.size
        pixels = np.stack([view for view, _ in good]) if good else np.zeros((0, size, size, 3), np.uint8)
        return Chunk(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([label for _, label in good]).long())
