"""The generated images of a checkpoint beside real ones, by the formulas of `fidelity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from torch import Tensor

from model.files import write_atomically
from trainer.evaluation.measures.fidelity import Extractor, FeatureSet, Moments, fidelity_metrics
from trainer.evaluation.sample_set import read_chunk
from trainer.evaluation.task import Task


def compare_samples(task: Task, extractor: Extractor) -> dict[str, Any]:
    """Generate and compare samples, by all ranks together.

    Returns the metrics on rank 0, and none on the other ranks. Raises ADDPError.
    """
    real = _reference(task, extractor)
    samples = task.samples
    generated = _feature_set(
        task,
        f"{extractor.name} of samples",
        samples.chunks,
        lambda number: read_chunk(samples.file(number)),
        extractor,
    )
    if generated is None or real is None:
        return {}
    with task.progress(f"metrics on {extractor.name}", 1):
        metrics = fidelity_metrics(extractor.labels, generated, real)
    return {**metrics, "reference_images": len(real.features)}


def _feature_set(
    task: Task, title: str, chunks: int, read: Callable[[int], Tensor], extractor: Extractor
) -> FeatureSet | None:
    """Extract the features of images that are read in chunks, by all ranks together.

    Returns them on rank 0, and None on the other ranks.
    """
    moments: list[Moments] = []

    def work(number: int) -> tuple[Any, Any]:
        features, logits = (x.numpy() for x in extractor(read(number)))
        if not moments:
            moments.append(Moments(features.shape[1]))
        moments[0].add(features)
        return features, logits

    extracted = task.over(title, chunks, work)
    by_rank = task.collectives.collect(moments)  # a rank without a chunk has none
    if not extracted:
        return None
    whole, *others = [m for of_rank in by_rank for m in of_rank]
    for other in others:
        whole.merge(other)
    features, logits = (np.concatenate(list(arrays)) for arrays in zip(*extracted, strict=True))
    return FeatureSet(whole.mean, whole.covariance, features, logits)


def _reference(task: Task, extractor: Extractor) -> FeatureSet | None:
    """Extract the features of the real images, once: they are kept beside the sample sets.

    Returns them on rank 0, and None on the other ranks.
    """
    crops = task.reference()
    key = f"{extractor.name}-{extractor.fingerprint[:12]}-{crops.fingerprint[:12]}"
    path = task.work.parent / "reference" / f"{key.replace(' ', '_')}.safetensors"
    if not task.collectives.broadcast_from_rank0(path.is_file):
        title = f"{extractor.name} of real images"
        chunks = crops.each(task.own(crops.chunks))
        real = _feature_set(task, title, crops.chunks, lambda _: next(chunks).pixels, extractor)
        if real is not None:
            arrays = {name: np.ascontiguousarray(a) for name, a in real._asdict().items()}
            write_atomically(path, save(arrays))
    return FeatureSet(**load_file(path)) if task.collectives.rank == 0 else None
