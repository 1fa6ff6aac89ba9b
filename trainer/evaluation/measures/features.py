"""Features of images, the mean of their patch tokens, spread over the ranks: none holds those of a
whole data set.

Blocks of some thousand images are dealt out to the ranks. A block is the same on any number of
ranks, so what is computed from one is the same, too, and sums over blocks differ by the rounding
of float64 alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.images.split import Split
from model.encoder import Encoder
from model.errors import DataError
from model.networks import build
from trainer.distributed.collectives import Collectives
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.intervals import MAIN
from trainer.evaluation.task import Task

_BLOCK = 4096  # images: enough to keep a GPU busy
_LEAST_BLOCKS = 64  # where there are as many chunks, so that many ranks share the work evenly

Extract = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> float32 (B, D), on one device


class Block(NamedTuple):
    """Some images: features float32 (N, D), labels int64 (N,)."""

    features: Tensor
    labels: Tensor


class Features:
    """The features of a split, of which each rank holds some blocks.

    device: where they are computed with. count: how many images all ranks have. width: D.
    of_label: how many images have each label, int64 (L,). rounds: how many blocks the rank has that
    has most.
    """

    def __init__(self, blocks: list[Block], collectives: Collectives, device: torch.device) -> None:
        """Called on all ranks together. blocks: of this rank, none of them empty, on the device or
        in host memory. Raises DataError where no rank has one."""
        self.collectives, self.device = collectives, device
        self._blocks = blocks
        shapes = [tuple(block.features.shape) for block in blocks]
        of_label = [block.labels.bincount().tolist() for block in blocks]
        told = collectives.all_gather((shapes, of_label))
        if not any(shapes for shapes, _ in told):
            raise DataError("none of the images can be read")
        self.rounds = max(len(shapes) for shapes, _ in told)
        self.count = sum(count for shapes, _ in told for count, _ in shapes)
        (self.width,) = {width for shapes, _ in told for _, width in shapes}
        counts = [torch.tensor(counts) for _, of_blocks in told for counts in of_blocks]
        self.of_label = pad_sequence(counts).sum(1)

    def __iter__(self) -> Iterator[Block]:
        """The blocks of this rank, on the device."""
        for block in self._blocks:
            yield Block(*(part.to(self.device, non_blocking=True) for part in block))


def extractors(task: Task) -> dict[str, Extract]:
    """What features are taken from: the trained encoder; with `baselines` also an untrained one,
    and the pixels themselves."""
    found: dict[str, Extract] = {
        name: _mean_of_patches(network) for name, network in encoders(task).items()
    }
    if task.options.baselines:
        found["pixels"] = lambda images: images.flatten(1)
    return found


def encoders(task: Task) -> dict[str, Encoder]:
    """The trained encoder; with `baselines` also an untrained one."""
    assert isinstance(task.network, Encoder)
    found: dict[str, Encoder] = {MAIN: task.network}
    if task.options.baselines:
        torch.manual_seed(task.config.seed)
        fresh = build("addp", task.config.addp.sizes, task.config.geometry).to(task.device).eval()
        assert isinstance(fresh, Encoder)
        found["untrained"] = fresh
    return found


@torch.no_grad()
def patches_of(network: Encoder, images: Tensor) -> Tensor:
    """The features of the patches of images (B, 3, H, W): float32 (B, L, D), without the class
    slot."""
    return network.encode(images)[:, 1:].float()


def _mean_of_patches(network: Encoder) -> Extract:
    return lambda images: patches_of(network, images).mean(1)


def features_of(task: Task, split: Split, name: str, extract: Extract) -> Features:
    """Extract the features of a split, by all ranks together, and once for a checkpoint, whichever
    benchmark asks first. Labels index the classes of the training images. Raises ADDPError, also
    for a held-out image of a class that these lack."""
    return task.once(("features", split, name), lambda: _extracted(task, split, extract))


def _extracted(task: Task, split: Split, extract: Extract) -> Features:
    crops, batch = task.crops(split), task.options.batch
    # Training images that stand apart may have their classes in another order.
    known = task.crops("train").classes
    label_of = torch.tensor(labels_in(known, crops.classes, "the training images have"))
    size = max(1, min(_BLOCK // batch, crops.chunks // _LEAST_BLOCKS))  # of a block, in chunks
    borders = range(0, crops.chunks, size)
    own = [range(crops.chunks)[borders[n] :][:size] for n in task.own(len(borders))]
    numbers = [number for chunks in own for number in chunks]
    reading, blocks = crops.each(numbers), []
    with task.progress(f"features of {split}", len(numbers)) as progress:
        for chunks in own:
            parts = []
            for chunk in itertools.islice(reading, len(chunks)):
                if len(chunk.labels):
                    parts.append((extract(chunk.on(task.device)), label_of[chunk.labels]))
                progress.advance()
            if parts:
                features, labels = (torch.cat(some) for some in zip(*parts, strict=True))
                blocks.append(_kept(features, labels))
    return Features(blocks, task.collectives, task.device)


def _kept(features: Tensor, labels: Tensor) -> Block:
    """A block where its features are, as long as half of a GPU's memory is free; else in host
    memory that the GPU copies from while it computes."""
    if features.is_cuda:
        free, total = torch.cuda.mem_get_info(features.device)
        if 2 * free < total:
            return Block(features.cpu().pin_memory(), labels.pin_memory())
    return Block(features, labels.to(features.device))
