"""`addp demo`: the whole road, once. Each stage leaves a marker, so an interrupted demo goes on
where it stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cluster.demo.targets import show_targets
from cluster.launch.launch import RunFailed, train
from data_pipeline.images.openmoji import render
from data_pipeline.images.sources import split_of
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.storage.output import check_apart, check_output
from model.errors import ConfigError
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_VIEWS = 16  # augmented views of each image in the token shards
_MIN_SCALE = 0.75  # emoji fill their image; smaller crops would no longer look like emoji
_SAMPLES = 128  # of each checkpoint
# A network trained for minutes is unsure of each token; its likelier ones make cleaner images.
_TOP_P = 0.6
_console = Console(stderr=True)


def run_demo(images: Path | None, out: Path, processes: int, scale: float) -> None:
    """All stages; raises ADDPError with what to do where one fails."""
    started = time.monotonic()
    image_folder = images or out / "images"
    check_output(out)
    if images is not None:
        check_apart(out, images, "--out")
    _remember_images(out, images)
    if images is None:
        _console.rule("images: OpenMoji, CC BY-SA 4.0")
        render(image_folder)
    source = split_of(image_folder)
    _console.print(f"{len(source.images)} images in {len(source.classes)} classes")
    tokens, tokenizer = out / "tokens", out / "tokenizer" / "network.safetensors"

    def training(name: str, *overrides: str) -> None:
        path = _CONFIGS / f"demo-{name}.yaml"
        arguments = [
            "--config",
            str(path),
            f"run={out / name}",
            *_length(load_config(path), scale),
            *overrides,
        ]
        stage(
            f"train the {name}",
            RunFolder(out / name).is_done,
            train,
            out / name,
            processes,
            arguments,
        )

    def tokenizing(split: str, *options: str) -> None:
        folder = str(tokens / split)
        weights = ("--tokenizer", str(tokenizer))

        def work() -> None:
            module(
                "cluster.cli",
                "tokenize",
                "plan",
                str(image_folder),
                folder,
                *weights,
                "--split",
                split,
                *options,
            )
            module("cluster.cli", "tokenize", "run", folder, *weights, "--finalize")

        stage(f"token shards: {split}", (tokens / split / MANIFEST).exists(), work)

    def evaluation(name: str, suite: str, *options: str) -> None:
        """Parts that are there are not done again."""
        measure = ("--suite", suite, "--images", str(image_folder), "--batch", "64", *options)
        stage(
            f"evaluate the {name}",
            False,
            module,
            "trainer.evaluation.evaluate",
            str(out / name),
            *measure,
        )

    training("tokenizer", f"data.images={image_folder}")
    evaluation("tokenizer", "held-out")
    tokenizing("train", "--views", str(_VIEWS), "--min-scale", str(_MIN_SCALE), "--rows", "512")
    tokenizing("val", "--center")
    held_out = ("--tokens", str(tokens / "val"), "--train-tokens", str(tokens / "train"))
    training("predictor", f"data.tokens={tokens / 'train'}")
    evaluation("predictor", "held-out", *held_out)
    weights = (
        f"tokenizer.weights={tokenizer}",
        f"predictor.weights={out / 'predictor' / 'network.safetensors'}",
    )
    training("addp", f"data.tokens={tokens / 'train'}", *weights)
    sampling = ("--count", str(_SAMPLES), "--top-p", str(_TOP_P), "--reference", "held-out")
    evaluation("addp", "samples,proxy,knn", *sampling, "--every", "1", "--baselines")
    evaluation("addp", "held-out,linear", *held_out, "--baselines")
    show_targets(out)
    runs = [str(out / name) for name in ("addp", "predictor", "tokenizer")]
    module("trainer.evaluation.report", *runs, "--out", str(out / "report.html"))
    _console.print(f"the demo took {(time.monotonic() - started) / 60:.1f} minutes in this call")


def stage(title: str, done: bool, work: Callable[..., bool | None], *arguments: object) -> None:
    """work: returns True where it was asked to stop, and nothing may follow. Raises RunFailed
    then."""
    if done:
        _console.print(f"[dim]{title}: done before")
        return
    _console.rule(title)
    began = time.monotonic()
    signalled = work(*arguments)
    _console.print(f"{title}: {time.monotonic() - began:.0f} s")
    if signalled:
        error = RunFailed("the demo was asked to stop; the same command goes on from here")
        error.exit_code = EXIT_PREEMPTED
        raise error


def module(name: str, *arguments: str) -> None:
    code = subprocess.run([sys.executable, "-m", name, *arguments], check=False).returncode
    if code:
        raise RunFailed(
            f"`python -m {name} {' '.join(arguments)}` failed with exit code {code}; the reason "
            "stands above"
        )


def _length(config: RunConfig, scale: float) -> Sequence[str]:
    """A shorter or longer run with the same shape of schedule."""
    if scale == 1.0:
        return ()
    total = max(4, round(config.schedule.total * scale))
    return (
        f"schedule.total={total}",
        f"schedule.warmup={max(1, round(config.schedule.warmup * scale))}",
    )


def _remember_images(out: Path, images: Path | None) -> None:
    """Refuse to go on with one set of images where another was begun. Raises ConfigError."""
    marker, name = out / "images.source", str(images.resolve()) if images else "openmoji"
    if marker.exists() and (before := marker.read_text()) != name:
        raise ConfigError(
            f"{out} holds a demo on {before}; remove that folder, or give another one with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(name)
