"""What training of segmenters and of detectors shares: the encoder that they begin with, what its
layers learn at, and annotated images (docs/annotations.md)."""

from __future__ import annotations

import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from data_pipeline.images.location import locate
from data_pipeline.storage import Store
from data_pipeline.streaming.sample_loader import SampleLoader
from model.config import Geometry
from model.dense.config import BackboneConfig, WindowsConfig
from model.dense.detector import Detector
from model.dense.pretrained import Pretrained, read_pretrained, take
from model.dense.segmenter import Segmenter
from model.documents import first_problem
from model.errors import ConfigError, WeightsError
from model.resizing import Resized
from model.transformer import drop_paths
from model.weights import fingerprint
from trainer.config.schema import DetectorSection, RunConfig, SegmenterSection
from trainer.engine.optimizers import layerwise_groups
from trainer.objectives.base import Objective, on_device
from trainer.objectives.counting import Operations
from trainer.objectives.images import reading_threads
from trainer.objectives.initial_weights import InitialWeights

Classes = tuple[str, ...]


class DenseObjective(Objective):
    """Trains a network on an encoder's maps. The encoder is that of `addp.weights`, which are
    ADDP's, a classifier's, or those of any ViT of timm's layout; without a file it is a fresh one.

    A file brings its own patch and its own grid of positions. Of a fresh encoder they are those of
    `tokenizer.sizes`. Images may have any size that is a multiple of twice the patch.

    A subclass lists its data and opens them.
    """

    exported: Segmenter | Detector

    # Whose layout the data have.
    layout: ClassVar[str]
    # How many classes the published data have, for counts that are made before the data are read.
    published_classes: ClassVar[int]

    def __init__(self, config: RunConfig, fresh: bool = False, listed: Any = None) -> None:
        """listed: what `listed` returns, where rank 0 has read it for all ranks; else it is read
        here. Raises what `listed` raises, and what reading weights raises."""
        super().__init__(config, fresh)
        found, place = listed or self.listed(config), self.place(config)
        started = time.monotonic()
        self.loader = self.opened(found, locate(place).store, reading_threads(place))
        self.opening = time.monotonic() - started
        self.epochs = self.loader.schedule
        self.data_fingerprint = found.fingerprint()
        self._begin(found.classes)

    @classmethod
    def place(cls, config: RunConfig) -> str:
        """Where the annotated images lie. Raises ConfigError where nothing says so."""
        if config.data.images is None:
            raise ConfigError(
                f"objective {config.objective} needs data.images, annotated images in the layout "
                f"of {cls.layout}: docs/annotations.md shows it"
            )
        return config.data.images

    @abstractmethod
    def opened(self, listed: Any, store: Store, threads: int) -> SampleLoader[Any]:
        """Return the loader of what `listed` returned. threads: that read."""

    def close(self) -> None:
        self.loader.close()

    @staticmethod
    @abstractmethod
    def section(config: RunConfig) -> SegmenterSection | DetectorSection:
        """The section of the configuration that describes the network."""

    @staticmethod
    @abstractmethod
    def image_size(config: RunConfig) -> int:
        """The side of the square images of a batch, in pixels."""

    @classmethod
    @abstractmethod
    def build(
        cls, config: RunConfig, geometry: Geometry, backbone: BackboneConfig, classes: Classes
    ) -> Segmenter | Detector:
        """The network with fresh weights. Raises ConfigError where the package of its heads is
        missing, ValidationError for sizes that do not fit together."""

    def _begin(self, classes: Classes) -> None:
        """Make the network, and give its backbone the weights that the configuration names. Raises
        ConfigError, WeightsError."""
        pretrained = _pretrained(self.config)
        network = self.network_for(self.config, classes, pretrained)
        if pretrained is not None:
            take(network.backbone, pretrained)
            self.frozen = {"pretrained": fingerprint(network.backbone)}
            self.initial_weights = InitialWeights(
                "addp.weights", pretrained.path, self.frozen["pretrained"]
            )
        self.exported = self.network = network

    @classmethod
    def network_for(
        cls, config: RunConfig, classes: Classes, pretrained: Pretrained | None = None
    ) -> Segmenter | Detector:
        """The network as it trains, with fresh weights of the sizes of a pre-trained encoder."""
        section = cls.section(config)
        windows = None
        if isinstance(section, DetectorSection):
            windows = {
                "size": section.window,
                "global_blocks": section.global_blocks,
                "image_size": section.jitter.size,
            }
        geometry = pretrained.geometry if pretrained else config.geometry
        unit, size = 2 * geometry.patch_size, cls.image_size(config)
        if size % unit:
            raise ConfigError(
                f"images of {size} pixels are no multiple of {unit}, twice the encoder's patch; "
                f"{size // unit * unit or unit} or {(size // unit + 1) * unit} would be"
            )
        try:
            backbone = BackboneConfig(
                encoder=config.addp.sizes.model_copy(update={"dropout": 0.0}),
                tokenizer_norm=section.tokenizer_norm,
                layer_scale=pretrained is not None and pretrained.layer_scale,
                windows=WindowsConfig.model_validate(windows) if windows else None,
            )
            network = cls.build(config, geometry, backbone, classes)
        except ValidationError as error:
            raise ConfigError(
                f"objective {config.objective}: {first_problem(error)}; see "
                f"{'detector' if windows else 'segmenter'} in the configuration"
            ) from error
        drop_paths(network.backbone.blocks, section.drop_path)
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, or two, for each layer: the learning rate falls from the heads down. To the
        heads belongs whatever is not the backbone's."""
        return layerwise_groups(
            (
                (name.removeprefix("backbone."), parameter)
                for name, parameter in self.network.named_parameters()
            ),
            self.config.optimizer.weight_decay,
            depth=self.config.addp.sizes.depth,
            layer_decay=self.section(self.config).layer_decay,
        )

    def identity(self) -> dict[str, Any]:
        """As the base class says. The geometry is the backbone's, which may come from a file."""
        geometry = self.exported.geometry.model_dump(mode="json")
        return {**super().identity(), "geometry": geometry}

    @classmethod
    def check_weights(cls, config: RunConfig) -> dict[Path, Resized | None]:
        pretrained = _pretrained(config)
        if pretrained is None:
            return {}
        take(cls.network_for(config, ("any",), pretrained).backbone, pretrained)
        return {pretrained.path: None}

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        """The network has as many classes as the published data: how many there are shows when the
        data are read."""
        return cls.network_for(config, cls.some_classes()), []

    @classmethod
    def some_classes(cls) -> Classes:
        """Names of as many classes as the published data have."""
        return tuple(map(str, range(cls.published_classes)))

    @classmethod
    def flops(cls, config: RunConfig) -> Operations:
        """All blocks are counted: some attend within windows, and maps are taken of some."""
        return cls.counted_flops(config)


def pixels_of(device: torch.device, images: NDArray[Any]) -> Tensor:
    """(B, 3, H, W) uint8 in host memory as float32 in [0, 1] on the device. Bytes go over."""
    return on_device(device, images).float() / 255


def _pretrained(config: RunConfig) -> Pretrained | None:
    """The encoder that the configuration names the file of. Raises WeightsError where its sizes are
    not `addp.sizes`."""
    file, sizes = config.addp.weights, config.addp.sizes
    if file is None:
        return None
    pretrained = read_pretrained(file, heads=sizes.heads)
    other = {
        name: (getattr(pretrained.encoder, name), getattr(sizes, name))
        for name in ("dim", "depth", "heads")
        if getattr(pretrained.encoder, name) != getattr(sizes, name)
    }
    if other:
        raise WeightsError(
            f"{file} does not fit addp.sizes: "
            + ", ".join(f"its {name} is {its}, not {own}" for name, (its, own) in other.items())
            + "; set addp.sizes to the file's, or give another file"
        )
    return pretrained
