"""Generates a set of samples by a setting, and compares it with real images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from data_pipeline.images.location import locate
from data_pipeline.progress import Progress
from model.files import write_atomically
from model.sampler import generated
from model.sampling_options import SamplingOptions
from trainer.evaluation.contents import listing_of
from trainer.evaluation.crops import Crops
from trainer.evaluation.measures.fidelity import Extractor, FeatureSet, Moments, fidelity_metrics
from trainer.evaluation.trained import Trained


def feature_set(parts: list[tuple[Any, Any]]) -> FeatureSet:
    """Put the features and logits of batches together."""
    features, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    moments = Moments(features.shape[1])
    moments.add(features)
    return FeatureSet(moments.mean, moments.covariance, features, logits)


def real_features(
    images: str, size: int, batch: int, extractor: Extractor, kept: Path
) -> FeatureSet:
    """Return the features of all images of a source, which are made once and kept in a folder."""
    listing = listing_of(images)
    crops = Crops(
        locate(images).store,
        listing.images,
        listing.classes,
        size=size,
        chunk=batch,
        crop="published",
    )
    file = kept / f"{extractor.name}-{crops.fingerprint[:12]}.safetensors"
    if not file.is_file():
        parts = []
        with Progress(f"{extractor.name} of real images", crops.chunks, "batches") as progress:
            for chunk in crops.each(range(crops.chunks)):
                parts.append(tuple(x.numpy() for x in extractor(chunk.pixels)))
                progress.advance()
        write_atomically(file, save(dict(feature_set(parts)._asdict())))
    return FeatureSet(**load_file(file))


def measured(
    trained: Trained,
    sampling: SamplingOptions,
    references: dict[Extractor, FeatureSet],
    *,
    seed: int,
    samples: int,
    batch: int,
) -> dict[str, Any]:
    """Generate samples 0 .. samples-1 of a seed, and return their metrics and the CPU seconds that
    generating took."""
    parts: dict[Extractor, list[tuple[Any, Any]]] = {extractor: [] for extractor in references}
    cpu = 0.0
    for start in range(0, samples, batch):
        before = time.process_time()
        count = min(batch, samples - start)
        last = generated(
            trained.network,
            trained.tokenizer,
            seed=seed,
            start=start,
            count=count,
            sampling=sampling,
        )
        cpu += time.process_time() - before
        pixels = (last.float().clamp(0, 1) * 255).round().byte().cpu()
        for extractor, of_batch in parts.items():
            of_batch.append(tuple(x.numpy() for x in extractor(pixels)))  # type: ignore[arg-type]
    metrics: dict[str, Any] = {"cpu_seconds": round(cpu, 2)}
    for extractor, of_batch in parts.items():
        metrics |= fidelity_metrics(extractor.labels, feature_set(of_batch), references[extractor])
    return metrics
