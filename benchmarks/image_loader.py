"""Measures what feeds fine-tuning: the loader's images/s by its number of threads, and what it
costs to decode, crop and augment an image.

    python -m benchmarks.image_loader
    python -m benchmarks.image_loader --threads 1,4,16 --images 2048 --batch 128

Images are JPEGs of 500 x 375 pixels, about 75 kB, as ImageNet's are. Each run of the loader reads
all of them once, with nothing in its cache; numbers of threads alternate, and results are medians
of the repeats. Augmentation is that of `finetune-base`, on this machine's device; beside it stands
RandAugment as kornia applies it, to four images at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from kornia.augmentation.auto import RandAugment

from benchmarks.tokenize_overhead import photograph
from data_pipeline.images.images import decode_image
from data_pipeline.images.sources import split_of
from data_pipeline.images.views import ViewRecipe, make_view
from data_pipeline.streaming.image_loader import ImageLoader
from model.device import staging
from trainer.config.schema import AugmentationSection
from trainer.distributed.collectives import own_device
from trainer.objectives.augmentation import Augmentation


def loader_rate(folder: Path, size: int, batch: int, threads: int) -> tuple[float, float]:
    """Images a second of wall time, and of CPU time, over one epoch."""
    source = split_of(folder)
    loader = ImageLoader(
        source, ViewRecipe(size=size), global_batch=batch, seed=0, threads=threads, buffer=staging
    )
    steps = loader.schedule.steps_per_epoch
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        loader.batch(step, 0, batch)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    loader.close()
    return steps * batch / spent[0], steps * batch / spent[1]


def cpu_milliseconds(work: Callable[[], object], images: int, repeats: int) -> float:
    """Of CPU time for an image; the median of the repeats, after one more."""
    spent = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append((time.process_time() - start) / images * 1000)
    return round(statistics.median(spent[1:]), 3)


def stages(size: int, batch: int, repeats: int) -> dict[str, float]:
    """CPU milliseconds for an image. On a GPU those of augmentation are of the host alone."""
    data = photograph(np.random.default_rng(0))
    image, recipe = decode_image(data), ViewRecipe(size=size)
    section, device = AugmentationSection(erasing=0.25, mixup=0.8, cutmix=1.0), own_device()
    augment = Augmentation(section, 1000)
    alone = Augmentation(section.model_copy(update={"erasing": 0, "mixup": 0, "cutmix": 0}), 1000)
    kornia = RandAugment(section.operations, section.randaugment)
    pixels = torch.rand(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device)
    views = range(16)
    return {
        "decode": cpu_milliseconds(lambda: decode_image(data), 1, 8 * repeats),
        "crop": cpu_milliseconds(
            lambda: [make_view(image, "image", view, recipe) for view in views], 16, repeats
        ),
        "augment": cpu_milliseconds(lambda: augment(pixels, labels), batch, repeats),
        "randaugment": cpu_milliseconds(lambda: alone(pixels, labels), batch, repeats),
        "randaugment of four at a time": cpu_milliseconds(
            lambda: torch.cat([kornia(few) for few in pixels.split(4)]).clamp(0, 1), batch, repeats
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=f"1,2,{cores}", help="numbers, separated by commas")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    numbers = sorted({int(number) for number in options.threads.split(",")})
    rates: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        for number in range(options.images):
            file = Path(name) / f"class{number % 4}" / f"{number:06d}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(photograph(rng))
        for _ in range(options.repeats):
            for number in numbers:
                rates[number].append(loader_rate(Path(name), options.size, options.batch, number))
    wall, cpu = (
        {n: round(statistics.median(pair[i] for pair in rates[n]), 1) for n in numbers}
        for i in (0, 1)
    )
    print(
        json.dumps(
            {
                "pillow": PIL.__version__,
                "torch": torch.__version__,
                "processor": platform.processor() or platform.machine(),
                "cores": cores,
                "load": os.getloadavg()[0],
                "images a second, by threads": wall,
                "images a CPU-second, by threads": cpu,
                "CPU milliseconds an image": stages(options.size, options.batch, options.repeats),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
