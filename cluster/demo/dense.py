"""The demo's dense transfer: a segmenter and a detector on its encoder, trained on composed scenes.

scenes -> segmenter -> mIoU, detector -> AP
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.demo.stages import Demo, Stage, training
from data_pipeline.scenes.making import SHEET, make_scenes
from data_pipeline.scenes.settings import SPLITS, SceneSettings, chosen_classes
from data_pipeline.storage import LocalStore
from model.errors import ConfigError
from trainer.evaluation.options import EvaluationOptions
from trainer.evaluation.results import read_results
from trainer.objectives.registry import OBJECTIVES

if TYPE_CHECKING:  # it loads torch, as what a stage does may
    from cluster.demo.speed import Speed

DENSE_TRAININGS = ("segment", "detect")
BENCHMARKS = {"segment": "segmentation", "detect": "detection"}
# Four groups whose emoji look alike within the group. An emoji takes 16 to 43 pixels of a scene.
# The demo's encoder was trained on emoji that fill 32.
SCENES = SceneSettings(
    training=800,
    validation=200,
    size=64,
    seed=0,
    classes=chosen_classes("flags,food-drink,people-body,smileys-emotion"),
)
_PACKAGES = ("transformers", "torchvision", "pycocotools")
_FEWEST = 8  # scenes of a split of a very short demo: a global batch of its trainings
LAYOUTS = {"segment": "ade20k", "detect": "coco"}
# What an evaluation takes, in steps of its training.
_EVALUATION = {"segment": 40, "detect": 40}
_COMPOSING = 0.02  # seconds of a scene in one process, as `Speed.slowness` counts


def check_packages() -> None:
    """Raise ConfigError where a package that these stages need is not installed: now, and not after
    the stages before them."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--dense needs {', '.join(missing)}: `make environment` installs them in a clone, and "
            "elsewhere `pip install transformers pycocotools` and `pip install --no-deps "
            "torchvision`, of the release that fits your PyTorch"
        )


def dense_stages(demo: Demo) -> list[Stage]:
    """Return the stages of dense transfer, in their order. They need the encoder of the demo."""
    encoder, scenes = f"addp.weights={demo.network('addp')}", demo.out / "scenes"
    road = [_composing(demo, scenes)]
    for name in DENSE_TRAININGS:
        label = OBJECTIVES[name].label
        data = f"data.images={scenes / LAYOUTS[name]}"
        road.append(training(demo, name, encoder, data, title=f"train the {label}"))
        road.append(_evaluation(demo, name, label))
    return road


def _composing(demo: Demo, scenes: Path) -> Stage:
    """Compose the scenes: fewer for a shorter demo."""
    share = min(1.0, demo.scale)
    counts: dict[str, int] = {
        split: max(_FEWEST, round(share * SCENES.scenes(split))) for split in SPLITS
    }
    settings, processes = SCENES.model_copy(update=counts), len(os.sched_getaffinity(0))

    def work() -> None:
        make_scenes(scenes, settings, processes)

    def cost(speed: Speed) -> float:
        return sum(counts.values()) * _COMPOSING * speed.slowness / processes

    return Stage("compose scenes", (scenes / SHEET).exists, work, cost)


def _evaluation(demo: Demo, name: str, label: str) -> Stage:
    """Measure the last checkpoint of a training on the held-out scenes."""
    run, benchmark = demo.run(name), BENCHMARKS[name]
    step = demo.checkpoints(name)[-1]

    def is_done() -> bool:
        results = read_results(LocalStore(run))
        return any((result.step, result.benchmark) == (step, benchmark) for result in results)

    def work() -> None:
        from cluster.demo.measuring import measure

        measure(run, [(step, (benchmark,), EvaluationOptions())])

    def cost(speed: Speed) -> float:
        return _EVALUATION[name] * speed.steps[name]

    return Stage(f"evaluate the {label}", is_done, work, cost)
