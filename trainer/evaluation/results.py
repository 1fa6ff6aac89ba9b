"""What evaluations leave: `RUN/evaluation/step-N/BENCHMARK.json`, whole and once, and the images
that belong to it.

They are the same below a run folder and on the store that a run uploads to. On disk the keys of
earlier versions stay; `Result` maps them. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data_pipeline.storage import BucketMissing, Store
from model.documents import parse_json
from model.errors import DataError
from trainer.config.renamed import RESULT_KEYS
from trainer.formats import Weights
from trainer.run_folder import step_folder

FOLDER = "evaluation"
CLASSES = "classes"  # a metric that is none: the metrics of each class, by its name
_STEPS = 2**53


class Result(BaseModel):
    """What a benchmark found on one checkpoint.

    metrics: by name; under `CLASSES` those of each class, {class: {name: value}}. images: file
    names of PNGs beside the result, by name. checkpoint: its fingerprint. left_out: the data that
    it was trained without. settings: the options that the result depends on, data by their content;
    locations: where these data lay, for people, None in results of versions that knew data by their
    path. made: by whom, and when.
    """

    model_config = ConfigDict(strict=True, frozen=True, populate_by_name=True)

    step: int = Field(ge=0, lt=_STEPS)
    benchmark: str = Field(alias="part", max_length=100)
    weights: Weights
    metrics: dict[str, Any] = Field(alias="figures")
    images: dict[str, str] = Field({}, alias="pictures")
    checkpoint: str | None = None
    left_out: list[dict[str, int]] | None = None
    settings: dict[str, Any] = {}
    locations: dict[str, str | None] | None = Field(None, alias="places")
    made: dict[str, Any] = {}

    @field_validator("metrics", "settings", "locations", mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {RESULT_KEYS.get(name, name): value for name, value in values.items()}

    @property
    def numbers(self) -> Iterator[tuple[str, float]]:
        """The metrics that are numbers."""
        for name, value in self.metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name, value

    def document(self) -> dict[str, Any]:
        """The content of its file."""
        return self.model_dump(by_alias=True)


def suffix(weights: str) -> str:
    """The end of the names of files that are about the EMA of the weights."""
    return "-ema" if weights == "ema" else ""


def result_name(step: int, benchmark: str, weights: Weights) -> str:
    """The name of a result's file, below the run's folder or on its store."""
    return f"{FOLDER}/{step_folder(step)}/{benchmark}{suffix(weights)}.json"


def publish(store: Store, result: Result, images: dict[str, bytes]) -> bool:
    """Write a result and its images, the images first.

    result: of a checkpoint that is the run's now. images: PNGs by name; their files take the name
    of the benchmark before it. Returns False where a result of the same checkpoint is there
    already: it stays. Raises StorageError.
    """
    name = result_name(result.step, result.benchmark, result.weights)
    stem = name.removesuffix(".json")
    files = {key: f"{stem}-{key}.png" if key else f"{stem}.png" for key in images}
    for key, content in images.items():
        store.replace(files[key], content)
    names = {key: file.rpartition("/")[2] for key, file in files.items()}
    document = result.model_copy(update={"images": names}).document()
    content = (json.dumps(document, indent=1) + "\n").encode()
    if store.create(name, content):
        return True
    if json.loads(store.read(name)).get("checkpoint") == result.checkpoint:
        return False
    store.replace(name, content)  # over that of what stood under this step before a rewind
    return True


def read_results(store: Store, step: int | None = None) -> list[Result]:
    """All results, or those of a step, by step. Raises StorageError, and DataError for one that is
    broken."""
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


def _read(store: Store, name: str) -> Result:
    where = f"{store.url}/{name} (remove it, and it is measured again)"
    try:
        return Result.model_validate(parse_json(store.read(name), where, DataError))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise DataError(f"{where}: {key}: {fault['msg']}") from error
