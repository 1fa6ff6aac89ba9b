"""A finished sharding job of eight images, made once; each case harms a copy of it."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards.manifest import MANIFEST
from model.weights import save_network
from tests.conftest import fresh_tokenizer
from tests.datasets import tokenize
from tests.tars import jpeg

Change = Callable[[dict[str, Any]], object]
ROWS = 4  # a shard, of which there are two
SHARD = "tokens-000000.tar"
RECEIPT = "parts/000000.json"
_RUN = {
    "objective": "mage",
    "run": "run",
    "data": {"tokens": "tokens"},
    "tokenizer": {"sizes": {"size": "tiny"}},
    "predictor": {"sizes": {"size": "tiny"}},
    "batch": {"global_batch": 4, "micro": 4},
    "precision": "fp32",
    "schedule": {"unit": "steps", "total": 1, "warmup": 0},
}


@cache
def template() -> Path:
    """Make a folder, once, with images/, tokens/ (plan, receipts, shards, dataset.json),
    tokenizer.safetensors and run.yaml."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for i in range(2 * ROWS):
        path = folder / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    network = fresh_tokenizer()
    save_network(network, folder / "tokenizer.safetensors")
    tokenize(folder / "images", folder / "tokens", network, ViewRecipe(size=16, views=2), rows=ROWS)
    (folder / "run.yaml").write_text(yaml.safe_dump(_RUN))
    return folder


def copied(folder: Path) -> Path:
    """Copy the job into `folder`, and return the folder of its data set."""
    shutil.copytree(template(), folder, dirs_exist_ok=True)
    return folder / "tokens"


def sealed(content: dict[str, Any]) -> bytes:
    """A `dataset.json` whose fingerprint is right, whatever else is not, so that the rest is looked
    at."""
    rest = {key: value for key, value in content.items() if key != "fingerprint"}
    return json.dumps({**rest, "fingerprint": fingerprint_of(rest)}).encode()


def fingerprint_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(sealed(content) if path.name == MANIFEST else json.dumps(content).encode())


def rewrite_shard(data: Path, change: Callable[[np.ndarray], object]) -> None:
    """Change the bytes (uint8) of the first shard, and let dataset.json and the receipt vouch for
    what it now holds."""
    content = np.frombuffer((data / SHARD).read_bytes(), np.uint8).copy()
    change(content)
    (data / SHARD).write_bytes(content.tobytes())
    sums = {
        "sha256": hashlib.sha256(content.tobytes()).hexdigest(),
        "xxh3": xxhash.xxh3_128_hexdigest(content.tobytes()),
    }
    edit(data / MANIFEST, lambda c: c["shards"][0].update(sums))
    edit(data / RECEIPT, lambda c: c["shard"].update(sums))
