"""What `generate` does: it writes a set of generated images by all processes together, or one image
of a grid or of an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.images.image_grid import image_grid, rows_of_classes
from data_pipeline.progress import Progress
from model.addp import ADDP
from model.conditioning import ALL, NONE
from model.errors import ConfigError
from model.sampler import generate
from model.sampling_options import SamplingOptions
from trainer.distributed.collectives import own_device
from trainer.distributed.world import World
from trainer.evaluation.editing import Edit, open_edit
from trainer.evaluation.options import EditOptions, SetOptions
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_classes import SampleClasses
from trainer.evaluation.sample_set import SampleSet, denoising_grid, step_of_set
from trainer.evaluation.trained import Trained, in_precision
from trainer.formats import Weights
from trainer.run_folder import RunFolder, write_json

_IN_TRAIL = 8  # images whose denoising steps are shown

Load = Callable[[int | None], Trained]  # the networks of a run, by the step of a checkpoint


def write_set(
    load: Load,
    samples: SetOptions,
    sampling: SamplingOptions,
    editing: EditOptions,
    step: int | None,
    into: Path,
    world: World,
    asked: Sequence[str] = (),
) -> Path:
    """Write this process's share of a set into a folder, and return the folder. asked: the classes
    of the images, as in `_classes`."""

    def open_set(trained: Trained) -> SampleSet:
        edit = open_edit(editing, trained)
        options = samples if edit is None else edit.as_set(samples)
        classes = _classes(trained.network, asked, edit, sampling)
        return SampleSet(into, trained, options, sampling, edit, classes)

    _make_set(_same_step_for_all(load, open_set, step, into), world)
    return into


def write_image(
    loaded: Trained,
    samples: SetOptions,
    sampling: SamplingOptions,
    *,
    weights: Weights,
    editing: EditOptions,
    zoom: int,
    folder: str,
    out: Path | None,
    asked: Sequence[str] = (),
) -> Path:
    """Write a grid of samples, or of an edit, and its settings beside it. Returns its file.

    folder: of the run, whose samples/ takes the file where `out` names none. asked: as for
    `write_set`; each class has a row of the grid, where there are samples for all of them.
    """
    loaded = _on_device(loaded)
    edit = open_edit(editing, loaded)
    classes = _classes(loaded.network, asked, edit, sampling)
    trained = in_precision(loaded, samples.precision)
    name = "grid" if edit is None else edit.name
    name += ("" if trained.step is None else f"-step-{trained.step}") + suffix(weights)
    target = out or RunFolder(folder).samples / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if edit is None:
        rows = classes.names if classes and len(classes.names) <= samples.count else ()
        if rows:  # whole ones
            whole = samples.count - samples.count % len(rows)
            samples = samples.model_copy(update={"count": whole})
        settings: dict[str, Any] = {"count": samples.count}
        _make_grid(trained, samples, sampling, classes, rows, zoom, target)
    else:
        _make_edit(trained, edit, samples.seed, sampling, classes, zoom, target)
        settings = {"count": edit.chunks * edit.variants, **edit.settings}
    settings |= {
        "classes": classes and classes.settings,
        "seed": samples.seed,
        "weights": weights,
        "step": trained.step,
        "precision": samples.precision,
    }
    write_json(target.with_suffix(".json"), {**settings, **sampling.model_dump(mode="json")})
    return target


def _classes(
    network: ADDP, asked: Sequence[str], edit: Edit | None, sampling: SamplingOptions
) -> SampleClasses | None:
    """Return the classes that are asked for, by name or number. Where nothing is asked, these are
    all that the network knows; but none beside given pictures, which say what they show, nor where
    the network is not told its classes."""
    others = ALL if edit is None and sampling.class_guidance else NONE
    return SampleClasses.in_turn(network.classes, asked or others)


def _on_device(trained: Trained) -> Trained:
    device = own_device()
    trained.network.to(device)
    trained.tokenizer.to(device)
    return trained


def _same_step_for_all(
    load: Load, open_set: Callable[[Trained], SampleSet], step: int | None, into: Path
) -> SampleSet:
    """Open the set of a checkpoint, the same on all processes.

    Where no step was named, the first of all processes chooses it. A run that goes on has another
    newest checkpoint for the processes that come later, or that see its folder later: they take the
    step that the set in `into` has.
    """
    trained = load(step if step is not None else step_of_set(into))
    try:
        return open_set(_on_device(trained))
    except ConfigError:
        chosen = step_of_set(into)
        if step is not None or chosen == trained.step:
            raise
    return open_set(_on_device(load(chosen)))


def _make_set(samples: SampleSet, world: World) -> None:
    """Make this process's share of a set. No process waits for another: nothing is agreed upon."""
    mine = range(world.rank, samples.chunks, world.size)
    missing = [chunk for chunk in mine if not samples.is_made(chunk)]
    total, left = (sum(map(samples.size, chunks)) for chunks in (mine, missing))
    title = f"generating, process 0 of {world.size}" if world.size > 1 else "generating"
    shown = world.rank == 0
    with Progress(title, total, "images", done=total - left, shown=shown) as progress:
        for chunk in missing:
            samples.make_chunk(chunk)
            progress.advance(samples.size(chunk))


def _make_grid(
    trained: Trained,
    samples: SetOptions,
    sampling: SamplingOptions,
    classes: SampleClasses | None,
    rows: Sequence[str],
    zoom: int,
    target: Path,
) -> None:
    """Write a grid of all samples to `target`, and beside it a grid of the first ones' steps. rows:
    the classes that have a row each, or none."""
    finished: list[Tensor] = []
    trail: list[Tensor] = []
    title, steps = f"generating {samples.count} images", samples.count * sampling.steps
    with Progress(title, steps, "denoising steps") as progress:
        for start in range(0, samples.count, samples.batch):
            size = min(samples.batch, samples.count - start)
            states = generate(
                trained.network,
                trained.tokenizer,
                seed=samples.seed,
                start=start,
                count=size,
                sampling=sampling,
                classes=classes.of(samples.seed, start, size) if classes else None,
            )
            for state in states:
                if start == 0:
                    trail.append(state.image[:_IN_TRAIL].float().cpu())
                progress.advance(size)
            finished.append(state.image.float().cpu())
    if rows:
        grid = rows_of_classes(torch.cat(finished), rows, zoom)
    else:
        columns = max(1, round(samples.count**0.5))
        grid = image_grid(torch.cat(finished), columns=columns, zoom=zoom)
    grid.save(target)
    denoising_grid(trail, zoom).save(target.with_name(target.stem + "-steps.png"))


def _make_edit(
    trained: Trained,
    edit: Edit,
    seed: int,
    sampling: SamplingOptions,
    classes: SampleClasses | None,
    zoom: int,
    target: Path,
) -> None:
    """Write what an edit generates, beside what was given, to `target`."""
    made: list[Tensor] = []
    count = edit.chunks * edit.variants
    with Progress(f"generating {count} images", count, "images") as progress:
        for chunk in range(edit.chunks):
            images = edit.make(trained, chunk, seed=seed, sampling=sampling, classes=classes)
            made.append(images.float().cpu())
            progress.advance(edit.variants)
    edit.sheet(torch.cat(made), zoom).save(target)
