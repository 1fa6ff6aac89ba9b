"""A trained network for programs that use it: pictures in; features, tokens and pictures out
(docs/python.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from model.addp import ADDP
from model.conditioning import ALL, NONE, Asked, labels_in_turn, labels_of
from model.config import Geometry
from model.device import usable_device
from model.documents import MIB, first_problem, read_file
from model.editing import between, known_tokens, unknown_tokens
from model.errors import ConfigError, DataError, WeightsError
from model.networks import CONFIG, Network
from model.pictures import Picture, Pictures, as_images, opened, squares
from model.predictor import TokenPredictor
from model.sampler import Given, generated, given_tokens, told_beside
from model.sampling_options import SamplerName, SamplingOptions
from model.shipped import CLASSES, SAMPLER, shipped_folder
from model.vq import VQTokenizer
from model.weights import load_network
from model.yaml_documents import parse_yaml

# What the file of the ADDP network is called: in a run folder and in a native export; in an export
# for Hugging Face; in what `addp import` writes.
NETWORK_FILES = ("network.safetensors", "model.safetensors", "addp.safetensors")
_RUN_CONFIG = "config.resolved.yaml"
_BATCH = 64  # pictures that are computed together


def load(
    path: Path | str | None = None,
    *,
    tokenizer: Path | str | None = None,
    predictor: Path | str | None = None,
    device: str = "cpu",
) -> ImageModel:
    """Load a trained ADDP network with the frozen networks it needs.

    path: the folder of a finished run, of `addp import`, or of an export; or a file of the network
    itself; or None, for the network that ships with the package (docs/shipped.md). tokenizer,
    predictor: files. Where they are not given, they are taken from tokenizer.safetensors and
    predictor.safetensors beside the network, or where the run's configuration says they lie.

    Raises WeightsError, and ConfigError where there is no network or no such device.
    """
    usual: tuple[SamplerName, Asked] = ("published", ALL)
    if path is None:
        usual = SAMPLER, CLASSES
    path = shipped_folder() if path is None else Path(path)
    folder = path if path.is_dir() else path.parent
    network = load_network(_network_file(path) if path.is_dir() else path, "addp")
    assert isinstance(network, ADDP)
    found = [
        _frozen("tokenizer", tokenizer, folder, network.geometry),
        _frozen("predictor", predictor, folder, network.geometry),
    ]
    where = usable_device(device)
    of_tokens, of_masks = (other and other.eval().to(where) for other in found)
    assert of_tokens is None or isinstance(of_tokens, VQTokenizer)
    assert of_masks is None or isinstance(of_masks, TokenPredictor)
    return ImageModel(network.eval().to(where), of_tokens, of_masks, *usual)


def _network_file(folder: Path) -> Path:
    for name in NETWORK_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / _RUN_CONFIG).is_file():
        raise ConfigError(
            f"the run {folder} is not finished and has no {NETWORK_FILES[0]}; `addp export "
            f"{folder} OUT --format huggingface` takes the network out of its newest checkpoint, "
            "for load(OUT)"
        )
    raise ConfigError(f"{folder} holds no network: none of {', '.join(NETWORK_FILES)}")


def _frozen(kind: str, file: Path | str | None, folder: Path, geometry: Geometry) -> Network | None:
    """Load a frozen network; None where there is none, or the run's is not on this machine."""
    config = None
    if file is None and (folder / f"{kind}.safetensors").is_file():
        file = folder / f"{kind}.safetensors"
    elif file is None and (folder / _RUN_CONFIG).is_file():
        where = f"{folder / _RUN_CONFIG}"
        values = parse_yaml(read_file(where, MIB, ConfigError), where, ConfigError)
        section = values.get(kind) if isinstance(values, dict) else None
        if not isinstance(section, dict) or not isinstance(section.get("weights"), str):
            return None
        file = Path(section["weights"])
        if not file.is_file():
            return None
        try:
            config = CONFIG[kind].model_validate(section.get("sizes") or {})
        except ValidationError as error:
            raise ConfigError(f"{where}, {kind}: {first_problem(error)}") from error
    if file is None:
        return None
    network = load_network(file, kind, config=config, geometry=geometry)
    if isinstance(network, VQTokenizer) and Geometry.of(network.config) != geometry:
        raise WeightsError(
            f"{file} was made for {Geometry.of(network.config)!r}, but the network for {geometry!r}"
        )
    return network


class ImageModel:
    """An ADDP network with its tokenizer and predictor, in eval mode.

    Pictures are files, Pillow images, arrays (H, W, 3) or tensors (3, H, W), 8-bit or in [0, 1], of
    any size; one, a list, or a batch of them. The networks see the largest centred square of each,
    at their own size. Generated pictures are Pillow images of that size. Picture i depends on the
    networks, the seed, i and the options alone. Each method raises DataError for what is no
    picture.

    network, tokenizer, predictor: the networks themselves. Without the tokenizer there are features
    only; without the predictor, generation from a given part starts from the mean code. sampler,
    usual_classes: what is taken where the options of `sampling`, or classes, are not given.
    """

    def __init__(
        self,
        network: ADDP,
        tokenizer: VQTokenizer | None,
        predictor: TokenPredictor | None,
        sampler: SamplerName = "published",
        usual_classes: Asked = ALL,
    ) -> None:
        self.network, self.predictor = network, predictor
        self.sampler, self.usual_classes = sampler, usual_classes
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer. Raises ConfigError where there is none."""
        if self._tokenizer is None:
            raise ConfigError(
                "this needs the tokenizer that the network was trained with, and none lies beside "
                "it; name its file: load(path, tokenizer=FILE), or --tokenizer FILE of a command"
            )
        return self._tokenizer

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the network can be asked for; none if it learned none."""
        return self.network.classes

    @torch.inference_mode()
    def embed(self, pictures: Pictures, *, patches: bool = False) -> NDArray[np.float32]:
        """Return one vector for each picture, (N, D): the mean of its patches' vectors, which kNN
        and probes take. patches: return these instead, (N, L, D), in raster order."""
        parts = [self.network.encode(part)[:, 1:] for part in self._batches(pictures)]
        return torch.cat([p if patches else p.mean(1) for p in parts]).float().cpu().numpy()

    @torch.inference_mode()
    def tokenize(self, pictures: Pictures) -> NDArray[np.int64]:
        """Return the token ids of pictures, (N, L), in raster order."""
        parts = [self.tokenizer.encode(part) for part in self._batches(pictures)]
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def decode(self, ids: NDArray[np.integer] | Tensor) -> list[Image.Image]:
        """Return the pictures of token ids (N, L), or of one picture's, (L,). Raises DataError for
        another shape, and for ids that are no codes."""
        geometry, tokens = self.network.geometry, torch.as_tensor(ids)
        if tokens.ndim not in (1, 2) or tokens.shape[-1] != geometry.tokens:
            raise DataError(
                f"ids of the shape {tuple(tokens.shape)}; a picture has {geometry.tokens} of them"
            )
        whole, last = tokens.long(), geometry.codebook_size - 1
        if tokens.is_floating_point() or whole.min() < 0 or whole.max() > last:
            raise DataError(f"ids are whole numbers from 0 to {last}")
        tokens = whole.reshape(-1, geometry.tokens).to(self._device)
        decoded = [
            self.tokenizer.decode(self.tokenizer.embed(t)) for t in torch.split(tokens, _BATCH)
        ]
        return [image for part in decoded for image in as_images(part)]

    def generate(
        self,
        count: int,
        *,
        seed: int = 0,
        start: int = 0,
        classes: Asked | None = None,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 (it is frozen)
    ) -> list[Image.Image]:
        """Generate the pictures start .. start+count-1 of a seed.

        classes: one or several of `self.classes`, by name or number; picture i is of the (i mod
        n)-th of n. "all" are those that the network knows, if it knows any; with "none", pictures
        have no class. None: all; of the network that ships, those that it draws best. Raises
        ConfigError for a class that the network does not know.
        """
        labels = labels_of(self.classes, self.usual_classes if classes is None else classes)
        return self._generated(seed, start, count, sampling.or_else(self.sampler), None, labels)

    def complete(
        self,
        picture: Picture,
        mask: Picture,
        *,
        count: int = 4,
        seed: int = 0,
        classes: Asked = NONE,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
    ) -> list[Image.Image]:
        """Generate the masked part of a picture anew, `count` times.

        mask: a picture of the same size, white (or True) where to generate; or "left", "right",
        "top", "bottom", "center", "border", "border:8". The tokens that no masked pixel touches
        stay. classes: as in `generate`; by default the picture alone says what it is. Raises
        DataError for a mask of another size, and where it masks nothing or everything; ConfigError
        for a name that is none, of a mask or a class.
        """
        image = opened(picture)
        unknown = unknown_tokens(mask, image[0].size, self.network.geometry).to(self._device)
        pixels = squares(image, self.network.geometry.image_size).to(self._device)
        known = known_tokens(self.tokenizer, pixels, unknown), unknown[None]
        labels = labels_of(self.classes, classes)
        return self._generated(seed, 0, count, sampling.or_else(self.sampler), known, labels)

    def interpolate(
        self,
        a: Picture,
        b: Picture,
        *,
        frames: int = 8,
        seed: int = 0,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
    ) -> list[Image.Image]:
        """Generate `frames` pictures on the way from A to B, in order and without the two; how is
        in `model.editing`. Raises DataError where both have the same tokens."""
        ids = torch.from_numpy(self.tokenize([*opened(a), *opened(b)])).to(self._device)
        sampling, images = sampling.or_else(self.sampler), []
        for frame in range(1, frames + 1):
            share = frame / (frames + 1)
            known = between(ids[0], ids[1], share, seed=seed, start=0, count=1)
            images += self._generated(seed, 0, 1, sampling, known)
        return images

    @property
    def _device(self) -> torch.device:
        return self.network.pos_embed.device

    def _batches(self, pictures: Pictures) -> list[Tensor]:
        images, size = opened(pictures), self.network.geometry.image_size
        return [
            squares(images[i : i + _BATCH], size).to(self._device)
            for i in range(0, len(images), _BATCH)
        ]

    def _generated(
        self,
        seed: int,
        start: int,
        count: int,
        sampling: SamplingOptions,
        known: tuple[Tensor, Tensor] | None,
        labels: Sequence[int] = (),
    ) -> list[Image.Image]:
        """Generate the samples start .. start+count-1. known: ids and which are unknown, (1, L)
        each, of all of them; None for nothing. labels: of the classes that take turns; none for
        samples without a class."""
        images: list[Image.Image] = []
        for first in range(start, start + count, _BATCH):
            size = min(_BATCH, start + count - first)
            classes = labels_in_turn(labels, first, size) if labels else None
            given: Given | None = None
            if known is not None:
                ids, unknown = (part.expand(size, -1) for part in known)
                told = told_beside(self.network, self.predictor, classes, sampling)
                given = given_tokens(self.tokenizer, self.predictor, ids, unknown, told)
            images += as_images(
                generated(
                    self.network,
                    self.tokenizer,
                    seed=seed,
                    start=first,
                    count=size,
                    sampling=sampling,
                    given=given,
                    classes=classes,
                )
            )
        return images
