"""`addp demo`: the whole road, once, from images to a report.

    images -> tokenizer -> token shards -> predictor -> ADDP -> samples and probes -> report

Each stage leaves a marker in the demo's folder, so that an interrupted demo goes on where it
stopped.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster.demo.targets import show_targets
from cluster.launch.hosts import this_machine
from cluster.launch.launch import RunFailed, train
from data_pipeline.images.openmoji import render
from data_pipeline.images.sources import split_of
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.storage.output import check_apart, check_output
from model.errors import ConfigError
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.recipes import recipe
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

# How the images become token shards. Emoji fill their image, so that smaller crops would no longer
# look like emoji.
_TRAIN_SHARDS = ("--views", "16", "--min-scale", "0.75", "--rows", "512")
_VAL_SHARDS = ("--center",)
# How ADDP is sampled at each of its checkpoints. A network trained for minutes is unsure of each
# token; its likelier ones make cleaner images.
_SAMPLING = ("--count", "128", "--top-p", "0.6", "--reference", "held-out", "--every", "1")

_MARKER = "images.source"  # says which images the demo was begun on

_console = Console(stderr=True)


def run_demo(images: Path | None, out: Path, processes: int, scale: float) -> None:
    """Go through all stages that are not done yet.

    images: class folders; None renders the OpenMoji set.
    out: the demo's folder, with a run folder for each training.
    processes: ranks of each training.
    scale: the length of the trainings, over that in the README.

    Raises ADDPError with what to do where a stage fails.
    """
    started = time.monotonic()
    demo = Demo(_take_images(images, out), out, processes, scale)
    tokens, tokenizer = f"data.tokens={demo.tokens('train')}", demo.network("tokenizer")
    on_tokens = ("--tokens", str(demo.tokens("val")), "--train-tokens", str(demo.tokens("train")))

    demo.train("tokenizer", f"data.images={demo.images}")
    demo.evaluate("tokenizer", "held-out")

    demo.tokenize("train", *_TRAIN_SHARDS)
    demo.tokenize("val", *_VAL_SHARDS)

    demo.train("predictor", tokens)
    demo.evaluate("predictor", "held-out", *on_tokens)

    predictor = demo.network("predictor")
    demo.train("addp", tokens, f"tokenizer.weights={tokenizer}", f"predictor.weights={predictor}")
    demo.evaluate("addp", _sample_suite(), *_SAMPLING, "--baselines")
    demo.evaluate("addp", "held-out,linear", *on_tokens, "--baselines")

    show_targets(out)
    runs = [str(out / name) for name in ("addp", "predictor", "tokenizer")]
    _run_module("trainer.evaluation.report", *runs, "--out", str(out / "report.html"))
    _console.print(f"the demo took {(time.monotonic() - started) / 60:.1f} minutes in this call")


@dataclass(frozen=True)
class Demo:
    """A demo in one folder. The fields are those of `run_demo`."""

    images: Path
    out: Path
    processes: int
    scale: float

    def network(self, name: str) -> Path:
        """Return the file of a trained network."""
        return RunFolder(self.out / name).network

    def tokens(self, split: str) -> Path:
        """Return the folder of a token data set."""
        return self.out / "tokens" / split

    def train(self, name: str, *overrides: str) -> None:
        """Train a network by its recipe. A run that is done is not trained again."""
        run, file = self.out / name, recipe(f"demo-{name}")
        assert file is not None
        arguments = ["--config", str(file), f"run={run}"]
        arguments += [*_length(load_config(file), self.scale), *overrides]
        hosts = this_machine(self.processes)
        _stage(
            f"train the {name}",
            done=RunFolder(run).is_done,
            work=lambda: train(run, arguments, hosts),
        )

    def tokenize(self, split: str, *options: str) -> None:
        """Make the token shards of a split. A data set that is finished is not made again."""
        out = self.tokens(split)
        weights = ("--tokenizer", str(self.network("tokenizer")))

        def work() -> None:
            plan = (str(self.images), str(out), *weights, "--split", split, *options)
            _run_module("cluster.cli", "tokenize", "plan", *plan)
            _run_module("cluster.cli", "tokenize", "run", str(out), *weights, "--finalize")

        _stage(f"token shards: {split}", done=(out / MANIFEST).exists(), work=work)

    def evaluate(self, name: str, suite: str, *options: str) -> None:
        """Measure a run. The evaluation itself leaves out what it measured before."""
        arguments = (str(self.out / name), "--suite", suite, "--images", str(self.images))
        _stage(
            f"evaluate the {name}",
            done=False,
            work=lambda: _run_module(
                "trainer.evaluation.evaluate", *arguments, "--batch", "64", *options
            ),
        )


def _sample_suite() -> str:
    """Return the benchmarks of samples and features.

    The Fréchet distance is left out, and that is said, where torch-fidelity is not installed: `pip
    install .` does not bring it, because it states a torchvision that it does not need here.
    """
    if importlib.util.find_spec("torch_fidelity") is not None:
        return "samples,proxy,knn"
    _console.print(
        "The Fréchet distance of the samples is left out: it needs "
        "`pip install --no-deps torch-fidelity`."
    )
    return "samples,knn"


def _take_images(images: Path | None, out: Path) -> Path:
    """Return the folder of images, and render it where none is given.

    Raises ConfigError where the demo's folder cannot be written, or lies within the images, or
    holds a demo on other images.
    """
    check_output(out)
    if images is not None:
        check_apart(out, images, "--out")
    _remember_images(out, images)
    if images is None:
        _console.rule("images: OpenMoji, CC BY-SA 4.0")
        render(out / "images")
    folder = images or out / "images"
    source = split_of(folder)
    _console.print(f"{len(source.images)} images in {len(source.classes)} classes")
    return folder


def _remember_images(out: Path, images: Path | None) -> None:
    """Leave a marker of the images. Raises ConfigError where the demo was begun on other ones."""
    name = str(images.resolve()) if images else "openmoji"
    for marker in (out / _MARKER, out / "pictures.source"):  # the latter is of version 0.1.0
        if marker.exists() and (before := marker.read_text()) != name:
            raise ConfigError(
                f"{out} holds a demo on {before}; remove that folder, or give another one with "
                "--out"
            )
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text(name)


def _stage(title: str, *, done: bool, work: Callable[[], bool | None]) -> None:
    """Do the work of a stage that is not done yet.

    work: returns True where it was asked to stop meanwhile. Nothing may follow then: raises
    RunFailed.
    """
    if done:
        _console.print(f"[dim]{title}: done before")
        return
    _console.rule(title)
    began = time.monotonic()
    asked_to_stop = work()
    _console.print(f"{title}: {time.monotonic() - began:.0f} s")
    if asked_to_stop:
        error = RunFailed("the demo was asked to stop; the same command goes on from here")
        error.exit_code = EXIT_PREEMPTED
        raise error


def _run_module(name: str, *arguments: str) -> None:
    """Run `python -m NAME ARGUMENTS`. Raises RunFailed where it fails."""
    code = subprocess.run([sys.executable, "-m", name, *arguments], check=False).returncode
    if code:
        raise RunFailed(
            f"`python -m {name} {' '.join(arguments)}` failed with exit code {code}; the reason "
            "stands above"
        )


def _length(config: RunConfig, scale: float) -> list[str]:
    """Return the overrides that make a run shorter or longer with the same shape of schedule."""
    if scale == 1.0:
        return []
    total = max(4, round(config.schedule.total * scale))
    warmup = max(1, round(config.schedule.warmup * scale))
    return [f"schedule.total={total}", f"schedule.warmup={warmup}"]
