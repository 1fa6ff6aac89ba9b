"""The stages of the demo: what each does, when it is done, and what it costs. Those of dense
transfer, which may follow, are in dense.py.

Trainings are launched, as those of a user are. All else happens in this process, which loads
PyTorch once: to load it takes longer than some of the stages.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from cluster.launch.hosts import this_machine
from cluster.launch.launch import train
from data_pipeline.images.sources import split_of
from data_pipeline.images.split import Split
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.storage import LocalStore
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.evaluation.options import EvaluationOptions
from trainer.evaluation.results import read_results
from trainer.recipes import recipe
from trainer.run_folder import RunFolder

if TYPE_CHECKING:  # it loads torch, as what a stage does may
    from cluster.demo.speed import Speed

TRAININGS = ("tokenizer", "predictor", "addp")
# How the images become token shards. Emoji fill their image, so that smaller crops would no longer
# look like emoji.
_VIEWS, _QUICK_VIEWS = 16, 4
_CROPS = (0.75, 1.0)
# How a demo that starts from the network that ships goes on: with a few steps of the recipe that
# made it, at a rate at which it does not forget.
_FURTHER = ("schedule.total=150", "schedule.warmup=15", "optimizer.base_lr=0.003")
# How ADDP is sampled at each of its checkpoints. A network trained for minutes is unsure of each
# token; its likelier ones make cleaner images.
_COUNT, _DENOISING = 128, 20  # samples, and the steps of each
_SAMPLING: dict[str, Any] = {"count": _COUNT, "top_p": 0.6, "reference": "held-out"}
_BATCH = 64  # images that are computed together
_MASK_DRAWS = 8  # of the benchmark `held-out`, for each image
# Seconds of what is not timed beforehand, on the machine that `Speed.slowness` is counted from.
_LAUNCH = 12.0  # from the launch of a training to its first step, and from its last one to its end
_FORMULAS = 4.0  # the Fréchet distance and its relatives
_REGRESSION = 6.0  # the linear probe, on three kinds of features
_OTHERS = 1.5  # a short stage

_console = Console(stderr=True)


class Stage(NamedTuple):
    """One stage.

    work: does it, and returns True where it was asked to stop meanwhile.
    cost: its seconds on a machine of a given speed.
    """

    title: str
    is_done: Callable[[], bool]
    work: Callable[[], bool | None]
    cost: Callable[[Speed], float]


@dataclass(frozen=True)
class Demo:
    """A demo in one folder.

    images: class folders. processes: ranks of each training. scale: the length of the trainings,
    over that of the recipes. quick: whether nothing is measured but samples are made. start: the
    folder of the networks that ship, if it starts from them; else it trains from nothing.
    """

    images: Path
    out: Path
    processes: int
    scale: float
    quick: bool
    start: Path | None = None

    @property
    def trainings(self) -> tuple[str, ...]:
        """Return the names of the trainings, in their order."""
        return TRAININGS if self.start is None else TRAININGS[-1:]

    def run(self, name: str) -> Path:
        """Return the folder of a training."""
        return self.out / name

    def tokens(self, split: str) -> Path:
        """Return the folder of a token data set."""
        return self.out / "tokens" / split

    def network(self, name: str) -> Path:
        """Return the file of a trained network."""
        if name not in self.trainings and self.start is not None:
            return self.start / f"{name}.safetensors"
        return RunFolder(self.run(name)).network

    def words(self, name: str) -> tuple[str, ...]:
        """Return the run file of a training, and the keys in which it differs."""
        if self.start is not None and name == "addp":
            return str(recipe("emoji-addp")), *_FURTHER
        return (str(recipe(f"demo-{name}")),)

    def config(self, name: str) -> RunConfig:
        """Return the configuration of a training, before the demo's paths and scale."""
        file, *overrides = self.words(name)
        return load_config(file, overrides)

    def length(self, name: str) -> tuple[int, int]:
        """Return the steps of a training and of its warm-up: the recipe's schedule, scaled."""
        schedule = self.config(name).schedule
        if self.scale == 1.0:
            return int(schedule.total), int(schedule.warmup)
        return max(4, round(schedule.total * self.scale)), max(
            1, round(schedule.warmup * self.scale)
        )

    def checkpoints(self, name: str) -> list[int]:
        """Return the steps of the checkpoints that a training leaves."""
        (total, _), saves = self.length(name), self.config(name).checkpoint
        return [*range(saves.every, total, saves.every), total][-saves.keep :]


def config_of(name: str) -> RunConfig:
    """Return the recipe of a training."""
    file = recipe(f"demo-{name}")
    assert file is not None
    return load_config(file)


def stages(demo: Demo) -> list[Stage]:
    """Return all stages, in their order."""
    tokens = f"data.tokens={demo.tokens('train')}"
    frozen = [f"{name}.weights={demo.network(name)}" for name in ("tokenizer", "predictor")]
    start = [f"addp.weights={demo.start / 'model.safetensors'}"] if demo.start else []
    size = demo.config("addp").geometry.image_size
    if demo.start is not None:
        views = ViewRecipe.center(size)  # the network that ships has seen no other views
    else:
        views = ViewRecipe(size=size, views=_QUICK_VIEWS if demo.quick else _VIEWS, scale=_CROPS)
    road = [
        training(demo, "tokenizer", f"data.images={demo.images}"),
        _evaluation(demo, "tokenizer"),
        _sharding(demo, "train", views),
        _sharding(demo, "val", ViewRecipe.center(size)),
        training(demo, "predictor", tokens),
        _evaluation(demo, "predictor"),
        training(demo, "addp", tokens, *frozen, *start),
        _evaluation(demo, "addp"),
    ]
    needless = {f"train the {name}" for name in TRAININGS if name not in demo.trainings}
    if demo.quick:
        needless |= {"evaluate the tokenizer", "token shards: val", "evaluate the predictor"}
    return [stage for stage in road if stage.title not in needless]


def training(demo: Demo, name: str, *overrides: str, title: str | None = None) -> Stage:
    """Return the stage that trains a network by its recipe. title: else it is the recipe's name."""
    run, (total, warmup) = demo.run(name), demo.length(name)
    arguments = ["--config", *demo.words(name), f"run={run}", *overrides]
    if demo.scale != 1.0:
        arguments += [f"schedule.total={total}", f"schedule.warmup={warmup}"]

    def cost(speed: Speed) -> float:
        left = total - (RunFolder(run).newest_checkpoint() or 0)
        return left * speed.steps[name] + _LAUNCH * speed.slowness

    return Stage(
        title or f"train the {name}",
        lambda: RunFolder(run).is_done,
        lambda: train(run, arguments, this_machine(demo.processes)),
        cost,
    )


def _sharding(demo: Demo, split: Split, views: ViewRecipe) -> Stage:
    """Make the token shards of a split."""
    out = demo.tokens(split)

    def work() -> None:
        from cluster.demo.shards import make_shards

        make_shards(demo.images, out, demo.network("tokenizer"), split, views)

    def cost(speed: Speed) -> float:
        images = len(split_of(demo.images, split).images)
        return images * views.views * speed.view + _OTHERS * speed.slowness

    return Stage(f"token shards: {split}", (out / MANIFEST).exists, work, cost)


def _evaluation(demo: Demo, name: str) -> Stage:
    """Measure a run. What was measured before is left out."""
    run = demo.run(name)
    missing = partial(_missing, demo, name)

    def work() -> None:
        if name == "addp" and not demo.quick and not _fidelity():
            _console.print(
                "The Fréchet distance of the samples is left out: it needs "
                "`pip install --no-deps torch-fidelity`."
            )
        from cluster.demo.measuring import measure

        measure(run, ((step, suite, _options(demo, name, step)) for step, suite in missing()))

    def cost(speed: Speed) -> float:
        held_out = len(split_of(demo.images, "val").images)
        every = held_out + len(split_of(demo.images, "train").images)
        seconds = {
            "held-out": _MASK_DRAWS * held_out * speed.denoising * (2 if name == "addp" else 0.5),
            "samples": _COUNT * _DENOISING * speed.denoising,
            "proxy": (_COUNT + held_out / 4) * speed.fidelity + _FORMULAS * speed.slowness,
            "knn": every * speed.feature,
            "linear": 2 * every * speed.feature + _REGRESSION * speed.slowness,
            "retrieval": 4 * held_out * speed.feature,
        }
        if name == "tokenizer":
            seconds["held-out"] = 2 * held_out * speed.denoising
        found = [benchmark for _, suite in missing() for benchmark in suite]
        return sum(seconds[benchmark] for benchmark in found) + _OTHERS * speed.slowness

    return Stage(f"evaluate the {name}", lambda: not any(missing()), work, cost)


def _options(demo: Demo, name: str, step: int) -> EvaluationOptions:
    """Return what a checkpoint is measured on, and how. Baselines do not depend on it: they are
    measured once, beside the last one."""
    measured: dict[str, Any] = {"images": str(demo.images), "batch": _BATCH}
    if name != "tokenizer" and not demo.quick:
        measured["tokens"] = str(demo.tokens("val"))
        measured["train_tokens"] = str(demo.tokens("train"))
    if name == "addp":
        measured |= {**_SAMPLING, "baselines": step == demo.checkpoints(name)[-1]}
    return EvaluationOptions(**measured)


def _missing(demo: Demo, name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the steps of checkpoints that lack results, and the benchmarks that they lack."""
    steps = demo.checkpoints(name)
    each: tuple[str, ...] = ("samples", *_fidelity(), "knn") if name == "addp" else ()
    last: tuple[str, ...] = ("held-out",)
    if name == "addp":
        last = (*each, "held-out", "linear", "retrieval")
    if demo.quick:
        steps, last = steps[-1:], ("samples",)
    there = {(result.step, result.benchmark) for result in read_results(LocalStore(demo.run(name)))}
    for step in steps:
        wanted = last if step == steps[-1] else each
        if lacking := tuple(b for b in wanted if (step, b) not in there):
            yield step, lacking


def _fidelity() -> tuple[str, ...]:
    """Return the benchmark of the Fréchet distance, where torch-fidelity is installed: `pip install
    .` does not bring it, because it states a torchvision that it does not need here."""
    return ("proxy",) if importlib.util.find_spec("torch_fidelity") is not None else ()
