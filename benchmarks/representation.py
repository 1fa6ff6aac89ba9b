"""What the features of several encoders are worth on the same images, and what of them counts.

    python -m benchmarks.representation runs/demo/images ADDP=runs/demo/addp/network.safetensors \\
        MAE=runs/demo/pixels/network.safetensors

Each encoder, an untrained one and raw pixels are measured in the same ways: the patches each in its
place, as one vector, and their mean. `--blocks` also takes the features after each block of the
first encoder. Behind each share stands its 95 % interval, and how far the first encoder is ahead of
it, counted image by image.

- original: altered images find their originals (the benchmark `retrieval`)
- kNN: the vote of the 20 nearest training images (the benchmark `knn`)
- kNN, altered: the same, of altered held-out images; the training images stay as they are
- 1, 5, 10 labels: nearest mean of so many training images of each class, over 20 draws
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.demo.stages import config_of
from data_pipeline.images.sources import split_of
from data_pipeline.images.split import Split
from model.addp import ADDP
from model.encoder import Encoder
from model.networks import build
from model.randomness import orders
from model.weights import load_network
from trainer.distributed.collectives import Collectives
from trainer.distributed.meeting import join_ranks, leave_ranks
from trainer.evaluation.crops import Crops
from trainer.evaluation.measures.alterations import altered
from trainer.evaluation.measures.features import Block, Features, patches_of
from trainer.evaluation.measures.intervals import ENDS, MAIN, OVER, shares
from trainer.evaluation.measures.neighbours import knn

_BATCH, _NEIGHBOURS, _DRAWS = 256, 20, 20
_LABELS = (1, 5, 10)  # of each class

Patches = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> (B, L, D)
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "in place": lambda x: x.flatten(1),
    "mean": lambda x: x.mean(1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="class folders, those of the demo")
    parser.add_argument("encoders", nargs="+", metavar="NAME=FILE", help="networks of ADDP")
    parser.add_argument("--seed", type=int, default=0, help="of alterations and draws of labels")
    parser.add_argument("--blocks", action="store_true", help="also after each block of the first")
    options = parser.parse_args()
    train, labels = _images(options.images, "train")
    test, truth = _images(options.images, "val")
    copies = altered(test, options.seed)
    right: dict[str, dict[str, Tensor]] = {}
    few: dict[str, str] = {}
    join_ranks()  # a world of this process alone
    try:
        for number, (kind, patches) in enumerate(_kinds(options.encoders, options.blocks).items()):
            name = kind if number else MAIN
            seen = [_in_batches(patches, images) for images in (train, test, copies)]
            right[name] = {}
            for way, pool in POOLS.items():
                known, held_out, changed = (pool(some) for some in seen)
                votes = partial(_votes, known, labels, truth=truth)
                right[name] |= {
                    f"original, {way}": _found(changed, held_out),
                    f"kNN, {way}": votes(held_out),
                    f"kNN, altered, {way}": votes(changed),
                }
                for count in _LABELS:
                    found = _few_labels(known, labels, held_out, truth, count, options.seed)
                    few[f"{kind:14s} {count:2d} labels, {way}"] = found
    finally:
        leave_ranks()
    first = options.encoders[0].partition("=")[0]
    _show(right, first)
    print("\n".join(f"{name:38s} {value}" for name, value in few.items()))


def _images(folder: Path, split: Split) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W) in [0, 1], and their labels (N,)."""
    source, size = split_of(folder, split), config_of("addp").geometry.image_size
    crops = Crops(source.store, source.images, source.classes, size=size, chunk=len(source.images))
    chunk = crops.read(0)
    return chunk.on(torch.device("cpu")), chunk.labels


def _kinds(files: list[str], blocks: bool) -> dict[str, Patches]:
    config = config_of("addp")
    found: dict[str, Patches] = {}
    for name, _, file in (given.partition("=") for given in files):
        network = load_network(Path(file), "addp").eval()
        assert isinstance(network, ADDP)
        found[name] = partial(patches_of, network)
        if blocks and len(found) == 1:
            for number in range(1, len(network.blocks) + 1):
                found[f"block {number}"] = partial(_after, network, number)
    torch.manual_seed(config.seed)
    fresh = build("addp", config.addp.sizes, config.geometry).eval()
    assert isinstance(fresh, Encoder)
    side = config.geometry.patch_size
    return {
        **found,
        "untrained": partial(patches_of, fresh),
        "pixels": lambda images: F.unfold(images, side, stride=side).transpose(1, 2),
        "mean colour": lambda images: images.mean((2, 3))[:, None],
    }


def _after(network: Encoder, number: int, images: Tensor) -> Tensor:
    """Return the features of the patches after a block, counted from 1, without the last norm."""
    kept: list[Tensor] = []
    hook = network.blocks[number - 1].register_forward_hook(lambda _, __, x: kept.append(x))
    patches_of(network, images)
    hook.remove()
    return kept[0][:, 1:]


def _in_batches(patches: Patches, images: Tensor) -> Tensor:
    return torch.cat([patches(some) for some in torch.split(images, _BATCH)])


def _found(queries: Tensor, originals: Tensor) -> Tensor:
    """Which queries are nearest to the original in their row, (N,) bool."""
    cosine = F.normalize(queries, dim=1) @ F.normalize(originals, dim=1).T
    return (cosine >= cosine.diagonal()[:, None]).sum(1) == 1


def _votes(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> Tensor:
    ranks, device = Collectives(), torch.device("cpu")
    known, asked = (Features([Block(*b)], ranks, device) for b in ((train, labels), (test, truth)))
    return knn(known, asked)[f"top1_k{_NEIGHBOURS}"]


def _few_labels(
    train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, count: int, seed: int
) -> str:
    """Return the top-1 by the nearest mean of `count` images of each class: its mean over draws,
    and the least and the most of a draw."""
    classes, train, test = labels.unique(), F.normalize(train, dim=1), F.normalize(test, dim=1)
    accuracies = []
    for order in torch.from_numpy(orders(seed, "few-labels", 0, _DRAWS, len(labels))):
        means = [train[order[labels[order] == label][:count]].mean(0) for label in classes]
        guessed = classes[(test @ F.normalize(torch.stack(means), dim=1).T).argmax(1)]
        accuracies.append(100 * float((guessed == truth).float().mean()))
    mean = sum(accuracies) / _DRAWS
    return f"{mean:.1f} % ({min(accuracies):.1f} to {max(accuracies):.1f})"


def _show(right: dict[str, dict[str, Tensor]], first: str) -> None:
    found = shares(right)
    for name in right[MAIN]:
        for kind in right:
            key = name if kind == MAIN else f"{kind}_{name}"
            low, high = (100 * found[key + end] for end in ENDS)
            line = f"{name:22s} {first if kind == MAIN else kind:14s}"
            line += f" {100 * found[key]:5.1f} % [{low:.1f}, {high:.1f}]"
            if kind != MAIN:
                ahead = f"{name}{OVER}{kind}"
                low, high = (100 * found[ahead + end] for end in ENDS)
                line += f"  {first} is ahead by {100 * found[ahead]:+.1f} [{low:+.1f}, {high:+.1f}]"
            print(line)


if __name__ == "__main__":
    main()
