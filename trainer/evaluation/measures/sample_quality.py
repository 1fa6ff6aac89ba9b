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
    """The metrics on rank 0, by all ranks together. Raises ADDPError."""
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
    """Features of images that are read in chunks, on rank 0; None on the others."""
    moments: list[Moments] = []

    def work(number: int) -> tuple[Any, Any]:
        features, logits = (x.numpy() for x in extractor(read(number)))
        if not moments:
            moments.append(Moments(features.shape[1]))
        moments[0].add(features)
        return features, logits

    extracted = task.over(title, chunks, work)
    of_ranks = [m for of_rank in task.collectives.collect(moments) for m in of_rank]
    if not extracted:
        return None
    for other in of_ranks[1:]:
        of_ranks[0].merge(other)
    features, logits = (np.concatenate(list(arrays)) for arrays in zip(*extracted, strict=True))
    return FeatureSet(of_ranks[0].mean, of_ranks[0].covariance, features, logits)


def _reference(task: Task, extractor: Extractor) -> FeatureSet | None:
    """Features of the real images on rank 0; computed once, and kept beside the sample sets."""
    crops = task.reference()
    key = f"{extractor.name}-{extractor.fingerprint[:12]}-{crops.fingerprint[:12]}"
    path = task.work.parent / "reference" / f"{key.replace(' ', '_')}.safetensors"
    if not task.collectives.broadcast_from_rank0(path.is_file):
        title = f"{extractor.name} of real images"
        real = _feature_set(
            task, title, crops.chunks, lambda number: crops.read(number).pixels, extractor
        )
        if real is not None:
            arrays = {name: np.ascontiguousarray(a) for name, a in real._asdict().items()}
            write_atomically(path, save(arrays))
    return FeatureSet(**load_file(path)) if task.collectives.rank == 0 else None
