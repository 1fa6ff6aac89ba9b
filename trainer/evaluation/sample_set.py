"""A set of generated images on disk: image i is a function of (network, seed, i), whoever makes it.

The unit of work is a chunk of `batch` images, always computed as one batch, so that the files are
the same for any number of processes. There is nothing to coordinate: process r of R makes every
R-th chunk, leaves out what is there, and a set that was cut off is finished by the same command.
"""

from __future__ import annotations

import json
import tarfile
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.storage import LocalStore
from model.errors import ConfigError, DataError
from model.files import write_atomically
from model.precision import InferencePrecision
from model.sampler import SamplerConfig, generate
from model.weights import fingerprint
from trainer.evaluation.trained import Trained, in_precision

Container = Literal["png", "webdataset"]
SETTINGS = "samples.json"
_COLUMNS = 8  # of a grid of denoising steps


class SampleSet:
    """`folder` holds samples.json (what the images are a function of) and either NNNNNN.png or
    samples-NNNNN.tar, a WebDataset shard of PNGs a chunk. Raises ConfigError where the folder holds
    another set."""

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        count: int,
        seed: int,
        sampler: SamplerConfig,
        container: Container,
        batch: int,
        precision: InferencePrecision,
    ) -> None:
        self._folder, self._trained, self._count, self._seed = folder, trained, count, seed
        self._sampler, self._container, self._batch, self._precision = (
            sampler,
            container,
            batch,
            precision,
        )
        settings: dict[str, Any] = {
            "count": count,
            "seed": seed,
            "sampler": sampler._asdict(),
            "container": container,
            "batch": batch,
            "precision": precision,
            "network": fingerprint(trained.network),
            "tokenizer": fingerprint(trained.tokenizer),
            "step": trained.step,
        }
        store = LocalStore(folder)
        store.create(
            SETTINGS, (json.dumps(settings, indent=1) + "\n").encode()
        )  # the first of all processes wins
        there = json.loads(store.read(SETTINGS))
        different = [
            f"{k}: {there.get(k)!r} there, now {v!r}"
            for k, v in settings.items()
            if there.get(k) != v
        ]
        if different:
            raise ConfigError(
                f"{folder} holds another set of samples ({'; '.join(different)}); choose another "
                "folder"
            )

    @property
    def chunks(self) -> int:
        return -(-self._count // self._batch)

    def size(self, chunk: int) -> int:
        return min(self._batch, self._count - chunk * self._batch)

    def is_made(self, chunk: int) -> bool:
        return all(path.exists() for path in self._files(chunk))

    def _files(self, chunk: int) -> list[Path]:
        if self._container == "webdataset":
            return [self._folder / f"samples-{chunk:05d}.tar"]
        first = chunk * self._batch
        return [self._folder / f"{i:06d}.png" for i in range(first, first + self.size(chunk))]

    def file(self, chunk: int) -> Path:
        """Of a WebDataset set."""
        assert self._container == "webdataset"
        return self._files(chunk)[0]

    def make_chunk(self, chunk: int) -> None:
        """Where it is missing."""
        if not self.is_made(chunk):
            self._write(chunk, self._images(chunk))

    def _images(self, chunk: int) -> Tensor:
        """(size, 3, H, W). The last chunk computes as many as the others: no image depends on how
        many are kept."""
        computing, start, size = self._computing, chunk * self._batch, self._batch
        for state in generate(
            computing.network,
            computing.tokenizer,
            seed=self._seed,
            start=start,
            count=size,
            config=self._sampler,
            all_images=False,
        ):
            last = state.image
        return last[: self.size(chunk)]

    @cached_property
    def _computing(self) -> Trained:
        return in_precision(self._trained, self._precision)

    def _write(self, chunk: int, images: Tensor) -> None:
        pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        encoded = []
        for image in pixels:
            data = BytesIO()
            Image.fromarray(image).save(data, "PNG")
            encoded.append(data.getvalue())
        files = self._files(chunk)
        if self._container == "png":
            for path, content in zip(files, encoded, strict=True):
                write_atomically(path, content)
            return
        tar = BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for index, content in enumerate(encoded, chunk * self._batch):
                member = tarfile.TarInfo(
                    f"{index:06d}.png"
                )  # its mtime is 0: the same bytes each time
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
        write_atomically(files[0], tar.getvalue())


def step_of_set(folder: Path) -> int | None:
    """Of the checkpoint that the set in a folder is made from; None where it is the finished
    network, or no set."""
    try:
        step = json.loads((folder / SETTINGS).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def denoising_grid(states: list[Tensor], zoom: int) -> Image.Image:
    """states: images (N, 3, H, W) after each step. One row an image, some of its steps from left to
    right."""
    last = len(states) - 1
    chosen = sorted({round(i * last / (_COLUMNS - 1)) for i in range(_COLUMNS)})
    rows = torch.stack([states[i] for i in chosen], 1).flatten(0, 1)
    return image_grid(rows, columns=len(chosen), zoom=zoom)


def read_chunk(path: Path) -> Tensor:
    """Images of a WebDataset set's file, uint8 (N, 3, H, W). Raises DataError where it is
    damaged."""
    images = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                images.append(np.asarray(Image.open(content).convert("RGB")))
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and it is made again") from error
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
