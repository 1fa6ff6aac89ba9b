"""A checkpoint's first samples, the steps by which some came about, and real images beside them."""

from __future__ import annotations

import torch
from PIL import Image

from data_pipeline.images.image_grid import image_grid, rows_of_classes
from model.addp import ADDP
from model.sampler import generate, generated
from trainer.evaluation.measures.grids import png, zoom_of
from trainer.evaluation.sample_set import denoising_grid, read_chunk
from trainer.evaluation.task import Task

_SHOWN = 64  # samples of a grid
_ROWS = 8  # of the grid of denoising steps
_CLASSES, _OF_CLASS = 12, 8  # classes of a grid, and samples of each


def sample_grids(task: Task) -> dict[str, bytes]:
    """Make the whole set of samples, and grids of the first ones, by all ranks together.

    Returns the grids' PNGs by name on rank 0, and none on the other ranks. Raises ADDPError.
    """
    options, samples = task.options, task.samples
    crops = task.crops("val") if options.images is not None else None
    first = min(samples.chunks, -(-_SHOWN // options.batch))
    # Each chunk is read by the rank that made it: it may lie on that host's own disk.
    chunks = task.collectives.divide(first, lambda number: read_chunk(samples.file(number)))
    if task.collectives.rank:
        return {}
    shown = torch.cat(chunks)[:_SHOWN].float() / 255
    assert isinstance(task.network, ADDP)
    classes, rows = task.sample_classes, min(_ROWS, len(shown))
    steps = generate(
        task.network,
        task.tokenizer,
        seed=options.seed,
        start=0,
        count=rows,
        sampling=options.sampling,
        classes=classes.of(options.seed, 0, rows) if classes else None,
    )
    trail = [state.image.cpu() for state in steps]
    zoom, columns = zoom_of(task.image_size), max(1, round(len(shown) ** 0.5))
    grids = {"": png(image_grid(shown, columns, zoom)), "steps": png(denoising_grid(trail, zoom))}
    if crops is not None:
        real = crops.spread(len(shown)).pixels.float() / 255
        if len(real):
            grids["real"] = png(image_grid(real, columns, zoom))
    if classes is not None:
        grids["classes"] = png(_of_each_class(task, zoom))
    return grids


def _of_each_class(task: Task, zoom: int) -> Image.Image:
    """Generate a row of samples for each class of the network, or for some that are spread evenly
    over all of them."""
    assert isinstance(task.network, ADDP)
    known = task.network.classes
    step = -(-len(known) // _CLASSES)
    labels = range(len(known))[::step]
    columns = [
        generated(
            task.network,
            task.tokenizer,
            seed=task.options.seed,
            start=column * len(labels),
            count=len(labels),
            sampling=task.options.sampling,
            classes=torch.tensor(labels),
        ).cpu()
        for column in range(_OF_CLASS)
    ]
    return rows_of_classes(torch.cat(columns), [known[label] for label in labels], zoom)
