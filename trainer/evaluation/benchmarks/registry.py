"""The parts of an evaluation: what each computes, of which runs, and what its result depends on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from model.addp import ADDP
from model.classifier import Classifier
from model.denoising import FrozenNetworks
from model.errors import ConfigError
from model.files import write_atomically
from model.predictor import TokenPredictor
from model.sampler import generate
from model.vq import VQTokenizer
from trainer.evaluation.benchmarks import fidelity, held_out, recognition
from trainer.evaluation.sample_set import denoising_grid, read_chunk
from trainer.evaluation.task import Options, Outcome, Task
from trainer.objectives.addp import load_frozen

_SHOWN = 64  # samples of a grid
_ROWS = 8  # of its denoising steps


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def _zoom(size: int) -> int:
    return max(1, 96 // size)


def _held_out(task: Task) -> Outcome:
    o, network = task.options, task.network
    zoom = _zoom(task.image_size)
    wanted = isinstance(network, VQTokenizer) or (
        isinstance(network, ADDP) and o.images is not None
    )
    crops = task.crops("val") if wanted else None
    if isinstance(network, VQTokenizer):
        assert crops is not None
        parts = task.over(
            "images", crops.chunks, lambda n: held_out.tokenizer_part(network, crops.read(n).pixels)
        )
        if task.collectives.rank:
            return Outcome({})
        shown = crops.read(0).pixels[:8].to(task.device).float() / 255
        with torch.no_grad():
            pairs = torch.cat([shown, network.reconstruct(shown)]).cpu()
        grid = image_grid(pairs, columns=len(shown), zoom=zoom)
        return Outcome(held_out.tokenizer_figures(parts), {"reconstructions": _png(grid)})
    if o.tokens is None or o.train_tokens is None:
        missing = (
            "--tokens, a token data set of held-out images"
            if o.tokens is None
            else "--train-tokens"
        )
        raise ConfigError(f"held-out figures of a predictor or ADDP need {missing}")
    assert isinstance(network, TokenPredictor | ADDP)
    ids, frequencies = held_out.token_data(o.tokens, o.train_tokens)
    frozen: FrozenNetworks | None = (
        load_frozen(task.config).to(task.device) if isinstance(network, ADDP) else None
    )
    predict, codes = held_out.predictor_of(network, frozen), task.config.geometry.codebook_size
    on_device = ids.to(task.device)
    draws = task.over(
        "masked tokens",
        held_out.MASK_DRAWS,
        lambda d: held_out.masked_nats(predict, on_device, d, codes),
    )
    if task.collectives.rank:
        return Outcome({})
    found = sum(d[0] for d in draws) / sum(d[1] for d in draws)
    unigram = held_out.unigram_cross_entropy(frequencies, ids)
    figures = {"cross_entropy": found, "unigram": unigram, "gain": unigram - found}
    if frozen is None or crops is None:
        return Outcome(figures)
    shown = crops.read(0).pixels[:_ROWS].to(task.device).float() / 255
    noisy = held_out.noisy_images(frozen, shown).cpu()
    return Outcome(
        figures, {"x_t": _png(image_grid(noisy, columns=len(held_out.RATIOS) + 2, zoom=zoom))}
    )


def _samples(task: Task) -> Outcome:
    """The whole set, and a grid of its first images with the steps by which some came about."""
    made = task.samples
    crops = task.crops("val") if task.options.images is not None else None
    first = min(made.chunks, -(-_SHOWN // task.options.batch))
    parts = task.collectives.divide(
        first, lambda n: read_chunk(made.file(n))
    )  # each by the rank that made it
    if task.collectives.rank:
        return Outcome({})
    shown = torch.cat(parts)[:_SHOWN].float() / 255
    assert isinstance(task.network, ADDP)
    sampler = task.options.sampler
    trail = [
        state.image.cpu()
        for state in generate(
            task.network,
            task.tokenizer,
            seed=task.options.seed,
            start=0,
            count=min(_ROWS, len(shown)),
            config=sampler,
        )
    ]
    zoom, columns = _zoom(task.image_size), max(1, round(len(shown) ** 0.5))
    grids = {"": _png(image_grid(shown, columns, zoom)), "steps": _png(denoising_grid(trail, zoom))}
    if crops is not None:  # real ones beside them
        real = crops.spread(len(shown)).pixels.float() / 255
        if len(real):
            grids["real"] = _png(image_grid(real, columns, zoom))
    return Outcome({"samples": task.options.count}, grids)


def _quality(task: Task, extractor: fidelity.Extractor) -> Outcome:
    real = _reference(task, extractor)
    made = task.samples
    found = _feature_set(
        task,
        f"{extractor.name} of samples",
        made.chunks,
        lambda n: read_chunk(made.file(n)),
        extractor,
    )
    if found is None or real is None:
        return Outcome({})
    with task.progress(f"figures on {extractor.name}", 1):
        made_of = fidelity.figures(extractor.labels, found, real)
    return Outcome({**made_of, "reference_images": len(real.features)})


def _feature_set(
    task: Task,
    title: str,
    chunks: int,
    read: Callable[[int], Tensor],
    extractor: fidelity.Extractor,
) -> fidelity.FeatureSet | None:
    """On rank 0."""
    moments: list[fidelity.Moments] = []

    def work(number: int) -> tuple[Any, Any]:
        features, logits = (x.numpy() for x in extractor(read(number)))
        if not moments:
            moments.append(fidelity.Moments(features.shape[1]))
        moments[0].add(features)
        return features, logits

    parts = task.over(title, chunks, work)
    of_ranks = [m for found in task.collectives.collect(moments) for m in found]
    if not parts:
        return None
    for other in of_ranks[1:]:
        of_ranks[0].merge(other)
    features, logits = (np.concatenate(list(arrays)) for arrays in zip(*parts, strict=True))
    return fidelity.FeatureSet(of_ranks[0].mean, of_ranks[0].covariance, features, logits)


def _reference(task: Task, extractor: fidelity.Extractor) -> fidelity.FeatureSet | None:
    """Of the real images; made once and kept beside the sample sets. On rank 0."""
    crops = task.reference()
    key = f"{extractor.name}-{extractor.fingerprint[:12]}-{crops.fingerprint[:12]}".replace(
        " ", "_"
    )
    path = task.work.parent / "reference" / f"{key}.safetensors"
    if not task.collectives.broadcast_from_rank0(path.is_file):
        title = f"{extractor.name} of real images"
        made = _feature_set(task, title, crops.chunks, lambda n: crops.read(n).pixels, extractor)
        if made is not None:
            write_atomically(
                path, save({name: np.ascontiguousarray(a) for name, a in made._asdict().items()})
            )
    return fidelity.FeatureSet(**load_file(path)) if task.collectives.rank == 0 else None


def _fid(task: Task) -> Outcome:
    assert task.options.inception_weights is not None  # checked before
    return _quality(task, fidelity.Inception(task.options.inception_weights, task.device))


def _proxy(task: Task) -> Outcome:
    return _quality(task, fidelity.EfficientNet(task.device))


def _probe(task: Task, score: Callable[..., dict[str, float]]) -> Outcome:
    figures: dict[str, Any] = {}
    for name, extract in task.encoders().items():
        train, labels = task.features("train", name, extract)
        test, test_labels = task.features("val", name, extract)
        if task.collectives.rank == 0:
            prefix = "" if name == "trained" else f"{name}_"
            with task.progress(f"scores of {name} features", 1):
                found = score(train, labels, test, test_labels)
            figures |= {f"{prefix}{key}": value for key, value in found.items()}
            most = labels.bincount().argmax()
            figures["majority_class"] = float((test_labels == most).float().mean())
            figures["images"] = len(test_labels)
    return Outcome(figures)


def _knn(task: Task) -> Outcome:
    return _probe(task, partial(recognition.knn, device=task.device))


def _linear(task: Task) -> Outcome:
    return _probe(task, recognition.linear)


@torch.no_grad()
def _accuracy(task: Task) -> Outcome:
    network, crops = task.network, task.crops("val")
    assert isinstance(network, Classifier)

    unknown = [name for name in crops.classes if name not in network.config.classes]
    if unknown:
        raise ConfigError(
            f"the classifier knows no class {unknown[0]}; its classes: "
            f"{network.config.classes[:5]} ..."
        )
    label_of = torch.tensor([network.config.classes.index(name) for name in crops.classes])

    def work(number: int) -> tuple[int, int, int]:
        chunk = crops.read(number)
        logits = network.logits(chunk.pixels.to(task.device).float() / 255)
        best = logits.topk(min(5, logits.shape[1]), 1).indices.cpu()
        right = best == label_of[chunk.labels][:, None]
        return int(right[:, 0].sum()), int(right.sum()), len(right)

    parts = task.over("images", crops.chunks, work)
    if task.collectives.rank:
        return Outcome({})
    first, five, count = (sum(column) for column in zip(*parts, strict=True))
    return Outcome({"top1": first / count, "top5": five / count, "images": count})


class Part(NamedTuple):
    """network_kinds: of the networks that it measures. settings: the options that its result
    depends on. Those that name data count by their content."""

    run: Callable[[Task], Outcome]
    network_kinds: tuple[str, ...]
    settings: tuple[str, ...]


_SPLIT = ("train_images", "held_out")  # which images are held out
_DATA = ("images", *_SPLIT)
_SAMPLING = (
    "count",
    "seed",
    "steps",
    "schedule",
    "choice_temperature",
    "temperature",
    "top_p",
    "batch",
    "precision",
)
PARTS = {
    "held-out": Part(
        _held_out, ("tokenizer", "predictor", "addp"), ("tokens", "train_tokens", *_DATA)
    ),
    "samples": Part(_samples, ("addp",), _SAMPLING),
    "fid": Part(_fid, ("addp",), (*_SAMPLING, *_DATA, "reference", "inception_weights")),
    "proxy": Part(_proxy, ("addp",), (*_SAMPLING, *_DATA, "reference")),
    "knn": Part(_knn, ("addp",), (*_DATA, "baselines")),
    "linear": Part(_linear, ("addp",), (*_DATA, "baselines")),
    "accuracy": Part(_accuracy, ("classifier",), _DATA),
}


def settings_of(part: str, options: Options) -> tuple[str, ...]:
    """The options that a result of a part depends on."""
    names = PARTS[part].settings
    whole = "reference" in names and options.reference == "published"
    return tuple(name for name in names if not (whole and name in _SPLIT))
