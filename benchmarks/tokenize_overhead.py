"""Measures what a sharding job costs beside the encoder: its images/s against those of a bare loop
of the encoder on ready tensors.

    python -m benchmarks.tokenize_overhead      # small and full-size tokenizer, CPU or CUDA
    python -m benchmarks.tokenize_overhead --sizes small --shards 50    # memory over 50 shards
    python -m benchmarks.tokenize_overhead --sizes full --batch 128 --images 256 --precision bf16

Job and bare loop have the same batch, dtype and threads, and alternate in one process; the results
are medians of the repeats. Images are JPEGs of 500 x 375 pixels, about 75 kB.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from data_pipeline.images.sources import open_source
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.encoder import TokenEncoder
from data_pipeline.sharding.plan import make_plan
from data_pipeline.sharding.tokenize import TokenizeJob, plan_recipe
from data_pipeline.storage import open_store
from model.config import TokenizerConfig
from model.vq import VQTokenizer

# image size, tokenizer, batch, views an image, images
SIZES = {
    "small": (
        TokenizerConfig(
            image_size=64,
            channels=64,
            channel_multipliers=(1, 1, 2, 2),
            residual_blocks=1,
            code_dim=64,
        ),
        64,
        10,
        96,
    ),
    "full": (TokenizerConfig(), 8, 10, 4),
}


def photograph(rng: np.random.Generator) -> bytes:
    """Make a JPEG as large as an average ImageNet image: soft shapes under some grain."""
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
        (500, 375), Image.BICUBIC
    )
    grain = rng.normal(0, 14, (375, 500, 3))
    data = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(
        data, "JPEG", quality=88
    )
    return data.getvalue()


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    config, batch, views, images = SIZES[name]
    batch, images, shards = options.batch or batch, options.images or images, options.shards
    rows = images if shards == 1 else max(1, images // 24)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(config).eval()
    torch.nn.init.normal_(tokenizer.codebook)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images" / "class").mkdir(parents=True)
        content = [photograph(rng) for _ in range(min(images, 64))]
        for i in range(rows * shards):
            (root / "images" / "class" / f"{i:05d}.jpg").write_bytes(content[i % len(content)])
        source = open_source(root / "images")
        recipe = plan_recipe(
            tokenizer,
            ViewRecipe(size=config.image_size, views=views),
            rows=rows,
            precision=options.precision,
        )
        encoder = TokenEncoder(
            tokenizer,
            device=options.device,
            batch=batch,
            precision=options.precision,
            compiled=options.compile,
        )
        shape = (batch, config.image_size, config.image_size, 3)
        ready = torch.randint(0, 256, shape, dtype=torch.uint8, device=options.device)

        @torch.inference_mode()
        def bare() -> float:
            """Return images/s of the encoder alone, over as many views as the job has, padding
            included."""
            batches = -(-rows * views // batch) * shards
            started = time.perf_counter()
            for _ in range(batches):
                ids = encoder._ids(ready)
            ids.cpu()
            return rows * shards / (time.perf_counter() - started)

        memory: list[float] = []

        def job(number: int) -> float:
            out = open_store(root / f"out-{number}")
            plan = make_plan(
                out,
                str(root / "images"),
                source.images(),
                recipe,
                lambda: (source.classes.names, ()),
            )
            work = TokenizeJob(out, plan, source.store, encoder)
            started = time.perf_counter()
            for _ in work.run(range(plan.shards)):
                memory.append(rss_mib())
            return plan.images / (time.perf_counter() - started)

        bare(), job(-1)  # warm-up
        memory.clear()
        pairs = [(bare(), job(i)) for i in range(options.repeats)]
    result: dict[str, object] = {
        "tokenizer": name,
        "image_size": config.image_size,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "batch": batch,
        "precision": options.precision,
        "compiled": options.compile,
        "views": views,
        "images": rows * shards,
        "jpeg_bytes": round(statistics.mean(map(len, content))),
        "bare_images_per_second": round(statistics.median(b for b, _ in pairs), 2),
        "job_images_per_second": round(statistics.median(j for _, j in pairs), 2),
        "ratio": round(statistics.median(j / b for b, j in pairs), 3),
        "ratios": [round(j / b, 3) for b, j in pairs],
    }
    if shards > 1:
        # Of all repeats, one after the other.
        result["rss_mib_every_5th_shard"] = [round(m) for m in memory[4::5]]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--batch", type=int, help="views of a batch, else the size's own")
    parser.add_argument("--images", type=int, help="else the size's own")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the encoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    environment = {
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
    }
    print(json.dumps(environment))
    for name in options.sizes:
        print(json.dumps(measure(name, options)), flush=True)
    print(
        json.dumps(
            {"peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
        )
    )


if __name__ == "__main__":
    main()
