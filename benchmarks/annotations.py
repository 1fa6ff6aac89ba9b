"""Measures what it takes to read COCO's annotations, and to make a training sample of them.

    python -m benchmarks.annotations
    python -m benchmarks.annotations --mib 450     # as many bytes as instances_train2017.json has

The document is made up: images of 640 x 480 pixels with seven annotations each, every one a polygon
of 20 corners with two decimals, and a crowd for every hundred images. It is written and read once,
in a process of its own, whose largest memory is compared with that of a process which reads a small
one. A sample is a decoded JPEG, jittered, with its masks drawn; its times are medians.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.instances import placed
from data_pipeline.annotations.recipes import DetectionRecipe, SegmentationRecipe
from data_pipeline.annotations.scale_jitter import jitter
from data_pipeline.annotations.segmentation_crop import random_crop
from data_pipeline.images.images import decode_image

WIDTH, HEIGHT, OF_AN_IMAGE, CORNERS = 640, 480, 7, 20


def write_document(root: Path, mib: float) -> tuple[int, int]:
    """Write annotations of about so many MiB, and an empty file for each image. Returns the numbers
    of images and annotations."""
    folder, file = root / "train2017", root / "annotations/instances_train2017.json"
    folder.mkdir()
    file.parent.mkdir()
    outlined = outlined_images()
    images: list[str] = []
    annotations = written = 0
    with file.open("w") as out:
        out.write('{"annotations": [')
        while written < mib * 2**20:
            number = len(images)
            for fields in outlined[number % len(outlined)]:
                comma = ", " if annotations else ""
                ids = f'"id": {annotations}, "image_id": {number}, "category_id": 1'
                written += out.write(f"{comma}{{{fields}, {ids}}}")
                annotations += 1
            name = f"{number:012d}.jpg"
            images.append(
                f'{{"id": {number}, "file_name": "{name}", "width": {WIDTH}, "height": {HEIGHT}}}'
            )
            (folder / name).touch()
        out.write('], "categories": [{"id": 1, "name": "thing"}], "images": [')
        out.write(f"{', '.join(images)}]}}")
    return len(images), annotations


def outlined_images() -> list[list[str]]:
    """A hundred images: of each of their annotations, the fields that are not its own, as JSON."""
    rng = np.random.default_rng(0)
    found: list[list[str]] = []
    for _ in range(100):
        corners = rng.uniform(0, (WIDTH - 100, HEIGHT - 100), (OF_AN_IMAGE, 2)).round(2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, (OF_AN_IMAGE, CORNERS)))
        around = np.stack([np.cos(angles), np.sin(angles)], -1)
        outlines = (corners[:, None] + 50 + 50 * around).round(2).reshape(OF_AN_IMAGE, -1)
        found.append(
            [
                _fields([outline], [*corner, 100, 100])
                for outline, corner in zip(outlines.tolist(), corners.tolist(), strict=True)
            ]
        )
    crowd = {"size": [HEIGHT, WIDTH], "counts": [4800, 4800, (WIDTH - 20) * HEIGHT]}
    found[0].append(_fields(crowd, [10, 0, 10, HEIGHT]))
    return found


def _fields(outline: object, box: list[float]) -> str:
    fields = {"segmentation": outline, "bbox": box, "area": box[2] * box[3] / 2}
    return json.dumps({**fields, "iscrowd": int(isinstance(outline, dict))})[1:-1]


def read_here(root: Path) -> None:
    """Read the annotations, and print what it took as JSON."""
    start, cpu = time.perf_counter(), time.process_time()
    index = read_coco(root, "train2017")
    spent = time.perf_counter() - start, time.process_time() - cpu
    assert index.shapes is not None and not index.problems.counts
    arrays = [index.ids, index.labels, index.boxes, index.areas, index.crowd, index.shape]
    held = sum(array.nbytes for array in [*arrays, *index.shapes])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": spent[0], "cpu": spent[1], "peak": peak, "arrays": held / 2**20}))


def measured(mib: float) -> dict[str, float]:
    """Read a document of so many MiB in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        images, annotations = write_document(Path(name), mib)
        command = [sys.executable, "-m", "benchmarks.annotations", "--read", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        size = (Path(name) / "annotations/instances_train2017.json").stat().st_size
    found = {key: round(value, 1) for key, value in json.loads(done.stdout).items()}
    return {"mib": round(size / 2**20), "images": images, "annotations": annotations, **found}


def milliseconds(work: Callable[[int], object], repeats: int = 40) -> float:
    """CPU time of a call, the median of the repeats."""
    spent = []
    for number in range(repeats):
        start = time.process_time()
        work(number)
        spent.append(1000 * (time.process_time() - start))
    return round(statistics.median(spent), 2)


def samples() -> dict[str, float]:
    """CPU milliseconds of the parts of a sample."""
    with tempfile.TemporaryDirectory() as name:
        write_document(Path(name), 0.1)
        annotated = read_coco(name, "train2017").annotated(1)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    labels = np.asarray(Image.fromarray(pixels[..., 0] // 64).resize((WIDTH, HEIGHT), 0))
    detection, segmentation = DetectionRecipe(), SegmentationRecipe()

    def jittered(number: int) -> object:
        placement = jitter(WIDTH, HEIGHT, detection, 0, number)
        return placement.padded(placement.cut(image, Image.Resampling.BILINEAR))

    return {
        "decode": milliseconds(lambda number: decode_image(file.getvalue())),
        "jitter to 1024": milliseconds(jittered),
        "seven masks": milliseconds(
            lambda number: placed(annotated, jitter(WIDTH, HEIGHT, detection, 0, number))
        ),
        "crop of 512 with labels": milliseconds(
            lambda number: random_crop(image, labels, segmentation, 0, number)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=float, default=64, help="size of the document")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_here(options.read)
        return
    print(
        json.dumps(
            {
                "python": platform.python_version(),
                "pillow": PIL.__version__,
                "processor": platform.processor() or platform.machine(),
                "load": os.getloadavg()[0],
                "small document": measured(0.1),
                "document": measured(options.mib),
                "CPU milliseconds of a sample": samples(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
