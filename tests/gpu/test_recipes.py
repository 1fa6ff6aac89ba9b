"""The first steps of every recipe in trainer/recipes/ at its own sizes: that they run, their
memory, how fast they are.

Data are made here: tokens of known content, small images in a thousand classes, frozen networks
with random weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.scenes.making import make_scenes
from data_pipeline.scenes.settings import SceneSettings
from data_pipeline.storage import LocalStore
from model.addp import ADDP
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import fingerprint, save_network
from tests.gpu.processes import processes
from tests.token_sets import write_tokens
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig

pytestmark = pytest.mark.gpu

CONFIGS = Path(__file__).parents[2] / "trainer" / "recipes"
RECIPES = sorted(
    p.stem for p in CONFIGS.glob("*.yaml") if not p.stem.startswith(("defaults", "demo-", "emoji-"))
)
NETWORKS = {  # whose sizes an objective uses
    "tokenizer": ("tokenizer",),
    "mage": ("tokenizer", "predictor"),
    "addp": ("tokenizer", "predictor", "addp"),
    "classify": ("tokenizer", "addp"),
    "segment": ("tokenizer", "addp"),
    "detect": ("tokenizer", "addp"),
}
LAYOUT = {"segment": "ade20k", "detect": "coco"}
# What else is small where there is no GPU.
SMALL = {
    "tokenizer": ["data.views.size=16"],
    "classify": ["data.views.size=16"],
    "segment": [
        "segmenter.blocks=[0, 0, 1, 1]",
        "segmenter.channels=16",
        "segmenter.crops.size=32",
        "segmenter.crops.short_side=32",
    ],
    "detect": [
        "detector.global_blocks=[1]",
        "detector.channels=16",
        "detector.regions_per_image=16",
        "detector.proposals=40",
        "detector.jitter.size=32",
    ],
}


def small(objective: str) -> list[str]:
    """Sizes and batches in place of the recipe's, where there is no GPU."""
    sizes = [f"{name}.sizes.size=tiny" for name in NETWORKS[objective]]
    return [*sizes, *SMALL.get(objective, []), "batch.micro=4"]


class Material:
    """What recipes need and do not bring, made once each."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device

    def overrides(self, config: RunConfig) -> list[str]:
        found = [f"batch.global_batch={config.batch.micro}", f"run={self._folder / 'run'}"]
        if config.objective in ("tokenizer", "classify"):
            found.append(f"data.images={self._images()}")
        elif config.objective in LAYOUT:
            found.append(f"data.images={self._scenes() / LAYOUT[config.objective]}")
        else:
            found.append(f"data.tokens={self._tokens(config)}")
        if config.objective == "addp":
            found += [
                f"tokenizer.weights={self._weights('tokenizer', config)}",
                f"predictor.weights={self._weights('predictor', config)}",
            ]
        if config.objective == "classify" and config.classifier.method == "linear":
            found.append(f"addp.weights={self._weights('addp', config)}")
        return found

    def _images(self) -> Path:
        root = self._folder / "images"
        if not root.exists():
            colors = np.random.default_rng(0).integers(0, 256, (1000, 3, 3, 3), dtype=np.uint8)
            for number, color in enumerate(colors):
                (root / f"class-{number:03d}").mkdir(parents=True)
                Image.fromarray(color).resize((64, 48)).save(root / f"class-{number:03d}" / "0.png")
        return root

    def _scenes(self) -> Path:
        root = self._folder / "scenes"
        if not root.exists():
            classes = ("flags", "people-body", "smileys-emotion")
            settings = SceneSettings(training=8, validation=1, size=256, classes=classes)
            make_scenes(root, settings, processes=1)
        return root

    def _tokens(self, config: RunConfig) -> Path:
        root = self._folder / f"tokens-{config.objective}"
        if not root.exists():
            weights = self._weights("tokenizer", config)
            made_by = weights.with_suffix(".txt").read_text()
            sizes = config.tokenizer.sizes
            write_tokens(
                LocalStore(root),
                [512],
                length=config.geometry.tokens,
                tokenizer=made_by,
                codes=sizes.codebook_size,
            )
        return root

    def _weights(self, kind: str, config: RunConfig) -> Path:
        sizes = {"tokenizer": config.tokenizer, "predictor": config.predictor, "addp": config.addp}[
            kind
        ].sizes
        path = self._folder / f"{kind}-{getattr(sizes, 'dim', '')}.safetensors"
        if not path.exists():
            with self._device:  # random numbers come fast there
                if kind == "tokenizer":
                    network: Any = VQTokenizer(config.tokenizer.sizes)
                else:
                    network = (ADDP if kind == "addp" else TokenPredictor)(config.geometry, sizes)  # type: ignore[arg-type]
            network = network.cpu()
            save_network(network, path)
            if kind == "tokenizer":
                path.with_suffix(".txt").write_text(fingerprint(network))
        return path


@pytest.fixture(scope="module")
def material(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("recipes"), device)


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_steps(
    recipe: str, material: Material, device: torch.device, say: Callable[[str], None]
) -> None:
    """Finite losses and gradients, applied updates, and memory for the recipe's micro batch, or, on
    a smaller GPU than the recipe names, for a half of it, a quarter, ..."""
    file = str(CONFIGS / f"{recipe}.yaml")
    sizes = small(load_config(file).objective) if device.type == "cpu" else []
    micro = load_config(file, sizes).batch.micro
    while True:
        overrides = [*sizes, f"batch.micro={micro}"]
        overrides += material.overrides(load_config(file, overrides))
        (done,) = processes([["-m", "tests.gpu.first_steps", file, *overrides]])
        assert done.code == 0, done.output
        report = next(json.loads(line) for line in done.output.splitlines() if line.startswith("{"))
        if report["fits"]:
            break
        assert micro > 1, "not even one image fits"
        say(f"{recipe}: batch.micro {micro} does not fit into this GPU")
        micro //= 2
    assert (
        all(map(math.isfinite, report["losses"]))
        and math.isfinite(report["norm"])
        and report["applied"]
    )
    memory = "no GPU"
    if report["gib"]:
        memory = f"{report['gib']:.1f} GiB at most (addp plan: {report['estimated_gib']:.1f})"
    share = f", {report['mfu']:.0%} of the GPU's bf16 peak" if report["mfu"] else ""
    say(
        f"{recipe}: micro {micro}, {memory}, {report['images_per_second']:.0f} images/s, "
        f"{report['tflops']:.1f} TFLOP/s{share}; loss {report['losses'][0]:.3f}; attention "
        f"{', '.join(report['attention']) or 'none'}"
    )
