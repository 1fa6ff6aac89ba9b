"""A set of generated images on disk: image i is a function of (network, seed, i), whoever makes it.

The unit of work is a chunk of `batch` images. A chunk is always computed as one batch, so that the
files are the same for any number of processes. Nothing is coordinated: process r of R makes chunks
r, r + R, r + 2 R, ... and leaves out what is there. The same command finishes a set that was cut
off.
"""

from __future__ import annotations

import json
import tarfile
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.storage import LocalStore
from data_pipeline.storage.output import writing
from model.errors import ConfigError, DataError
from model.files import write_atomically
from model.pictures import as_images
from model.sampler import generated
from model.sampling_options import SamplingOptions
from model.weights import fingerprint
from trainer.evaluation.editing import Edit
from trainer.evaluation.options import SetOptions
from trainer.evaluation.sample_classes import SampleClasses
from trainer.evaluation.trained import Trained, in_precision

SETTINGS = "samples.json"
_COLUMNS = 8  # of a grid of denoising steps
_PUBLISHED = SamplingOptions().model_dump()


class SampleSet:
    """A folder with samples.json, which says what the images are a function of, and the images.

    They are NNNNNN.png, or samples-NNNNN.tar: a WebDataset shard of PNGs for each chunk. edit: what
    they are made beside, where pictures were given; `options` are then what `Edit.as_set` returns.
    classes: of the images; None for images without a class. Raises ConfigError where the folder
    holds another set.
    """

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        options: SetOptions,
        sampling: SamplingOptions,
        edit: Edit | None = None,
        classes: SampleClasses | None = None,
    ) -> None:
        self._folder, self._trained = folder, trained
        self._options, self._sampling, self._edit = options, sampling, edit
        self._classes = classes
        settings: dict[str, Any] = {
            "count": options.count,
            "seed": options.seed,
            "sampler": sampling.model_dump(),
            "container": options.container,
            "batch": options.batch,
            "precision": options.precision,
            "network": fingerprint(trained.network),
            "tokenizer": fingerprint(trained.tokenizer),
            "step": trained.step,
            "classes": classes and classes.settings,
            **(edit.settings if edit is not None else {}),
        }
        store = LocalStore(folder)
        # The first of all processes to create the file decides; the others compare.
        store.create(SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
        there = json.loads(store.read(SETTINGS))
        if isinstance(there.get("sampler"), dict):  # earlier versions had no other than this one
            there["sampler"] = _PUBLISHED | there["sampler"]
        different = [
            f"{key}: {there.get(key)!r} there, now {value!r}"
            for key, value in settings.items()
            if there.get(key) != value
        ]
        if different:
            asked = classes is not None and classes.counts is None
            plain = asked and there.get("classes") is None
            raise ConfigError(
                f"{folder} holds another set of samples ({'; '.join(different)}); choose another "
                f"folder{', or go on without classes by --class none' if plain else ''}"
            )

    @property
    def chunks(self) -> int:
        """How many chunks the set has."""
        return -(-self._options.count // self._options.batch)

    def size(self, chunk: int) -> int:
        """How many images a chunk keeps."""
        return min(self._options.batch, self._options.count - chunk * self._options.batch)

    def is_made(self, chunk: int) -> bool:
        """Whether all files of a chunk are there."""
        return all(path.exists() for path in self._files(chunk))

    def _files(self, chunk: int) -> list[Path]:
        if self._options.container == "webdataset":
            return [self._folder / f"samples-{chunk:05d}.tar"]
        first = chunk * self._options.batch
        return [self._folder / f"{i:06d}.png" for i in range(first, first + self.size(chunk))]

    def file(self, chunk: int) -> Path:
        """The file of a chunk, in a set of WebDataset shards."""
        assert self._options.container == "webdataset"
        return self._files(chunk)[0]

    def make_chunk(self, chunk: int) -> None:
        """Make a chunk where it is missing. Raises StorageError where it cannot be written."""
        if not self.is_made(chunk):
            images = self._images(chunk)
            with writing(self._folder):
                self._write(chunk, images)

    def _images(self, chunk: int) -> Tensor:
        """Generate the images of a chunk, (size, 3, H, W).

        The last chunk computes as many as the others: no image depends on how many are kept.
        """
        if self._edit is not None:
            return self._edit.make(
                self._computing,
                chunk,
                seed=self._options.seed,
                sampling=self._sampling,
                classes=self._classes,
            )
        images = generated(
            self._computing.network,
            self._computing.tokenizer,
            seed=self._options.seed,
            start=chunk * self._options.batch,
            count=self._options.batch,
            sampling=self._sampling,
            classes=self._labels(chunk),
        )
        return images[: self.size(chunk)]

    def labels(self, chunk: int) -> Tensor | None:
        """Return the classes of a chunk's images, (size,) int64; None where they have none."""
        labels = self._labels(chunk)
        return None if labels is None else labels[: self.size(chunk)]

    def _labels(self, chunk: int) -> Tensor | None:
        seed, size = self._options.seed, self._options.batch
        return self._classes.of(seed, chunk * size, size) if self._classes else None

    @cached_property
    def _computing(self) -> Trained:
        return in_precision(self._trained, self._options.precision)

    def _write(self, chunk: int, images: Tensor) -> None:
        encoded = []
        for image in as_images(images):
            data = BytesIO()
            image.save(data, "PNG")
            encoded.append(data.getvalue())
        files = self._files(chunk)
        if self._options.container == "png":
            for path, content in zip(files, encoded, strict=True):
                write_atomically(path, content)
            return
        tar = BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for index, content in enumerate(encoded, chunk * self._options.batch):
                member = tarfile.TarInfo(f"{index:06d}.png")  # mtime 0: the same bytes each time
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
        write_atomically(files[0], tar.getvalue())


def step_of_set(folder: Path) -> int | None:
    """Return the step of the checkpoint that the set in a folder is made from.

    It is None where the set is made from the finished network, and where there is no set.
    """
    try:
        step = json.loads((folder / SETTINGS).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def denoising_grid(states: list[Tensor], zoom: int) -> Image.Image:
    """Draw a grid with one row an image, some of its steps from left to right.

    states: images (N, 3, H, W) after each step.
    """
    last = len(states) - 1
    chosen = sorted({round(i * last / (_COLUMNS - 1)) for i in range(_COLUMNS)})
    rows = torch.stack([states[i] for i in chosen], 1).flatten(0, 1)
    return image_grid(rows, columns=len(chosen), zoom=zoom)


def read_chunk(path: Path) -> Tensor:
    """Read the images of a WebDataset shard of a set, uint8 (N, 3, H, W).

    Raises DataError where it is damaged.
    """
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
