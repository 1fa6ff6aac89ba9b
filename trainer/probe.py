"""kNN and linear probe of the frozen encoder on held-out pictures, beside the same encoder untrained and raw pixels.

python -m trainer.probe RUN --pictures PICTURES
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from model.addp import ADDP
from model.weights import load_network
from trainer.evaluate import completed_run, held_out_pictures, suffix
from trainer.run_folder import Weights, write_json

NEIGHBOURS = 10
_INVERSE_PENALTY = 0.01  # of the logistic regression; fixed beforehand, the same for every kind of feature

Features = NDArray[np.float32]


@torch.no_grad()
def encoder_features(network: ADDP, pixels: Tensor) -> Features:
    """Mean of the patch tokens, (N, D)."""
    device = network.pos_embed.device
    parts = [network.encode(batch.to(device))[:, 1:].mean(1).float().cpu() for batch in torch.split(pixels, 64)]
    return torch.cat(parts).numpy()


def accuracies(train: Features, train_labels: Tensor, test: Features, test_labels: Tensor) -> dict[str, float]:
    """Top-1 of a cosine kNN and of logistic regression on standardised features."""
    knn = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance")
    knn.fit(normalize(train), train_labels.numpy())
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000))
    linear.fit(train, train_labels.numpy())
    return {
        "knn": float(knn.score(normalize(test), test_labels.numpy())),
        "linear": float(linear.score(test, test_labels.numpy())),
    }


def main(
    run: Annotated[Path, typer.Argument(help="run folder of a completed ADDP run")],
    pictures: Annotated[Path, typer.Option(help="folder of class folders")],
    held_out: Annotated[float, typer.Option(help="share of held-out pictures")] = 0.1,
    weights: Annotated[Weights, typer.Option(help="the trained weights, or their average")] = "raw",
) -> None:
    """Probe the encoder. Prints JSON, and writes it to RUN/evaluation/probe.json (of an average: probe-ema.json)."""
    folder, config = completed_run(run)
    network = load_network(folder.trained(weights), "addp").eval()
    assert isinstance(network, ADDP)
    torch.manual_seed(config.seed)
    untrained = ADDP(network.geometry, network.config).eval()
    size = network.geometry.image_size
    train, train_labels, classes = held_out_pictures(pictures, size, held_out, "train")
    test, test_labels, _ = held_out_pictures(pictures, size, held_out, "val")
    encoders = {"trained": network, "untrained": untrained}
    figures: dict[str, object] = {
        name: accuracies(encoder_features(n, train), train_labels, encoder_features(n, test), test_labels)
        for name, n in encoders.items()
    }
    figures["pixels"] = accuracies(train.flatten(1).numpy(), train_labels, test.flatten(1).numpy(), test_labels)
    most_common = Counter(train_labels.tolist()).most_common(1)[0][0]
    figures["majority_class"] = float((test_labels == most_common).float().mean())
    figures["classes"], figures["pictures"] = len(classes), {"train": len(train), "held_out": len(test)}
    write_json(folder.evaluation / f"probe{suffix(weights)}.json", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
