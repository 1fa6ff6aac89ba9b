"""Edits that `generate` is asked for: completions of pictures, and pictures between two. What they
are is in `model.editing`; here they are read, divided into chunks, and drawn."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.images.images import ImageEntry, is_image, read_image
from data_pipeline.storage import LocalStore
from model.editing import between, known_tokens, unknown_tokens
from model.errors import DataError
from model.pictures import squares
from model.predictor import TokenPredictor
from model.sampler import generated, given_tokens, told_beside
from model.sampling_options import SamplingOptions
from model.weights import fingerprint
from trainer.evaluation.options import EditOptions, SetOptions
from trainer.evaluation.sample_classes import SampleClasses
from trainer.evaluation.trained import Trained, frozen_predictor

_MOST = 8  # images of a folder


class Edit(ABC):
    """What is generated beside given pictures: chunk after chunk, each the variants of one picture.

    Image i is variant i % V of chunk i // V. chunks: how many there are. settings: what the images
    depend on, beside networks and noise.
    """

    name: str
    chunks: int

    def __init__(
        self, predictor: TokenPredictor | None, variants: int, given: list[Tensor]
    ) -> None:
        self._predictor, self.variants = predictor, variants
        content = b"".join(tensor.cpu().numpy().tobytes() for tensor in given)
        self.settings = {
            "edit": self.name,
            "given": hashlib.sha256(content).hexdigest(),
            "predictor": predictor and fingerprint(predictor),
        }

    def as_set(self, options: SetOptions) -> SetOptions:
        """Return the options of the set that all chunks are together."""
        update = {"count": self.chunks * self.variants, "batch": self.variants}
        return options.model_copy(update=update)

    def make(
        self,
        trained: Trained,
        chunk: int,
        *,
        seed: int,
        sampling: SamplingOptions,
        classes: SampleClasses | None = None,
    ) -> Tensor:
        """Generate the pictures of a chunk, (V, 3, H, W). trained: networks in any precision.
        classes: of the pictures; None for pictures without a class."""
        first = self._first_sample(chunk)
        labels = classes.of(seed, first, self.variants) if classes else None
        told = told_beside(trained.network, self._predictor, labels, sampling)
        return generated(
            trained.network,
            trained.tokenizer,
            seed=seed,
            start=first,
            count=self.variants,
            sampling=sampling,
            given=given_tokens(trained.tokenizer, self._predictor, *self._known(chunk, seed), told),
            advisers=trained.advisers,
            classes=labels,
        )

    @abstractmethod
    def sheet(self, made: Tensor, zoom: int) -> Image.Image:
        """Draw the pictures of all chunks, (chunks * V, 3, H, W), beside what was given."""

    @abstractmethod
    def _known(self, chunk: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the ids (V, L) of a chunk, and which of them are unknown."""

    @abstractmethod
    def _first_sample(self, chunk: int) -> int:
        """Return which sample's noise a chunk begins with."""


class Completions(Edit):
    """Completions of pictures (N, 3, H, W) where tokens (L,) are unknown: a chunk for each."""

    name = "completed"

    def __init__(self, trained: Trained, images: Tensor, unknown: Tensor, variants: int) -> None:
        super().__init__(_predictor(trained), variants, [images, unknown])
        device, geometry = trained.network.pos_embed.device, trained.network.geometry
        self.chunks, self._images = len(images), images
        self._unknown = unknown.to(device)
        self._ids = known_tokens(trained.tokenizer, images.to(device), self._unknown)
        hidden = unknown.view(1, 1, geometry.grid, geometry.grid)
        for axis in (2, 3):
            hidden = hidden.repeat_interleave(geometry.patch_size, axis)
        self._hidden = hidden

    def _first_sample(self, chunk: int) -> int:
        return chunk * self.variants

    def _known(self, chunk: int, seed: int) -> tuple[Tensor, Tensor]:
        v = self.variants
        return self._ids[chunk].expand(v, -1), self._unknown.expand(v, -1)

    def sheet(self, made: Tensor, zoom: int) -> Image.Image:
        """One row a picture: itself, what is known of it on grey, and its completions."""
        masked = self._images.masked_fill(self._hidden, 0.5)
        rows = [self._images[:, None], masked[:, None], made.view(self.chunks, -1, *made.shape[1:])]
        return image_grid(torch.cat(rows, 1).flatten(0, 1), self.variants + 2, zoom)


class Interpolations(Edit):
    """Pictures between two, (2, 3, H, W): a chunk for each frame."""

    name = "between"

    def __init__(self, trained: Trained, images: Tensor, frames: int, variants: int) -> None:
        super().__init__(_predictor(trained), variants, [images])
        self.chunks, self._images = frames, images
        self._ends = trained.tokenizer.encode(images.to(trained.network.pos_embed.device))

    def _first_sample(self, chunk: int) -> int:
        return 0  # the same noise in all frames: what changes comes from A and B

    def _known(self, chunk: int, seed: int) -> tuple[Tensor, Tensor]:
        a, b = self._ends
        share = (chunk + 1) / (self.chunks + 1)
        return between(a, b, share, seed=seed, start=0, count=self.variants)

    def sheet(self, made: Tensor, zoom: int) -> Image.Image:
        """One row a variant: A, its frames, and B."""
        strips = made.view(self.chunks, -1, *made.shape[1:]).transpose(0, 1)
        ends = self._images.expand(self.variants, -1, -1, -1, -1)
        rows = torch.cat([ends[:, :1], strips, ends[:, 1:]], 1)
        return image_grid(rows.flatten(0, 1), self.chunks + 2, zoom)


@torch.no_grad()
def open_edit(options: EditOptions, trained: Trained) -> Edit | None:
    """Return the edit that is asked for, if one is. trained: the networks, in fp32. Raises
    DataError or ConfigError."""
    geometry = trained.network.geometry
    if options.complete is not None:
        pictures = read_images(options.complete)
        for picture in pictures:  # all of one size, where the mask is a file
            unknown = unknown_tokens(options.mask, picture.size, geometry)
        images = squares(pictures, geometry.image_size)
        return Completions(trained, images, unknown, options.variants)
    if options.between is not None:
        a, b = options.between
        images = squares([read_image_file(a), read_image_file(b)], geometry.image_size)
        return Interpolations(trained, images, options.frames, options.variants)
    return None


def read_images(path: Path) -> list[Image.Image]:
    """Read an image, or the first few of a folder, to RGB. Raises DataError."""
    if not path.is_dir():
        return [read_image_file(path)]
    files = sorted(p for p in path.iterdir() if is_image(p.name))[:_MOST]
    if not files:
        raise DataError(f"{path} holds no images")
    return [read_image_file(file) for file in files]


def read_image_file(path: Path) -> Image.Image:
    """Read an image to RGB. Raises DataError."""
    try:
        entry = ImageEntry(path.name, 0, path.name, path.stat().st_size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return read_image(LocalStore(path.parent), entry)


def _predictor(trained: Trained) -> TokenPredictor | None:
    predictor = frozen_predictor(trained.config)
    return predictor and predictor.to(trained.network.pos_embed.device)
