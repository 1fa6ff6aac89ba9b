"""What evaluations leave: `RUN/evaluation/step-N/PART.json`, whole and once, and the images that
belong to it.

The same below a run folder and on the store that a run uploads to. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from data_pipeline.storage import BucketMissing, Store
from model.documents import parse_json
from model.errors import DataError
from trainer.config.renamed import with_new_result_keys
from trainer.run_folder import Weights, step_folder

FOLDER = "evaluation"


def suffix(weights: str) -> str:
    """Of the names of files about an average."""
    return "-ema" if weights == "ema" else ""


def result_name(step: int, part: str, weights: Weights) -> str:
    return f"{FOLDER}/{step_folder(step)}/{part}{suffix(weights)}.json"


def flattened(figures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among the figures."""
    for name, value in figures.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def publish(store: Store, result: dict[str, Any], images: dict[str, bytes]) -> bool:
    """Images first. False where there is a result of the same checkpoint already: it stays. Raises
    StorageError.

    result: of a checkpoint that is the run's now; with "step", "part" and "weights". images: PNGs
    by their names, whose files take the part's name before them.
    """
    name = result_name(result["step"], result["part"], result["weights"])
    stem = name.removesuffix(".json")
    files = {key: f"{stem}-{key}.png" if key else f"{stem}.png" for key in images}
    for key, content in images.items():
        store.replace(files[key], content)
    result = {**result, "images": {key: file.rpartition("/")[2] for key, file in files.items()}}
    content = (json.dumps(result, indent=1) + "\n").encode()
    if store.create(name, content):
        return True
    if json.loads(store.read(name)).get("checkpoint") == result.get("checkpoint"):
        return False
    store.replace(name, content)  # of what stood under this step before a rewind
    return True


def read_results(store: Store, step: int | None = None) -> list[dict[str, Any]]:
    """All there are, or those of a step, by step. Raises StorageError."""
    prefix = f"{FOLDER}/step-" if step is None else f"{FOLDER}/{step_folder(step)}/"
    try:
        names = [
            e.name
            for e in store.list(prefix)
            if e.name.count("/") == 2 and e.name.endswith(".json")
        ]
    except BucketMissing:
        return []
    return [_read(store, name) for name in sorted(names)]


def _read(store: Store, name: str) -> dict[str, Any]:
    where = f"{store.url}/{name} (remove it, and it is measured again)"
    found = with_new_result_keys(parse_json(store.read(name), where, DataError))
    if not (
        isinstance(found.get("part"), str)
        and isinstance(found.get("figures"), dict)
        and isinstance(found.get("step"), int)
        and found.get("weights") in get_args(Weights)
    ):
        raise DataError(f"{where} lacks its step, part, weights or figures")
    return found
