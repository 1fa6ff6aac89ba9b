"""What a run wrote, for its report: read from its folder or its store, and trusted in nothing.

A broken record is left out and counted, whatever is wrong with it: a report is wanted most where a
run went wrong. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from data_pipeline.storage import LocalStore, ObjectMissing, StorageError, open_store
from model.documents import parse_json
from model.errors import ADDPError, ConfigError, DataError
from model.yaml_documents import parse_yaml
from trainer.config.renamed import with_new_keys
from trainer.evaluation.course import Course
from trainer.evaluation.reporting.files import Files, Unfit
from trainer.evaluation.results import CLASSES, FOLDER, Result
from trainer.formats import Weights
from trainer.run_folder import DONE, INCIDENTS, TARGETS, in_time_order, incident_names

_MOST_OF_RESULT = 2**24  # bytes
_LARGEST = 1e30  # what a number may be, to be drawn
_STEPS = 2**53
T = TypeVar("T", bound=BaseModel)
Parse = Callable[..., Any]  # of documents: (text, where, error)
_NUMBERS = (  # what the report takes of a metric line
    "loss",
    "lr",
    "grad_norm",
    "images_per_second",
    "seconds_per_step",
    "train_seconds",
    "lost_seconds",
    "starts",
    "skipped_steps",
    "time",
)


class ReportedResult(NamedTuple):
    """What a benchmark found on one checkpoint.

    metrics: those that are finite numbers. classes: the same of each class, by its name. images:
    file names, by name, in `folder` of `files`.
    """

    step: int
    benchmark: str
    weights: Weights
    metrics: dict[str, float]
    images: dict[str, str]
    files: Files
    folder: str
    classes: dict[str, dict[str, float]]


class _Rewind(BaseModel):
    """An entry of rewinds.json."""

    step: int = Field(ge=0, lt=_STEPS)
    length: int = Field(ge=0, lt=_STEPS)


class Ending(BaseModel):
    """exit.json: how the run ended."""

    code: int
    reason: str = ""
    time: float | None = Field(None, allow_inf_nan=False)


class Done(BaseModel):
    """done.json: the run has finished."""

    step: int = Field(ge=0, lt=_STEPS)


class Sign(BaseModel):
    """A heartbeat of a rank."""

    time: float = Field(allow_inf_nan=False)
    section: str = ""


class Goal(BaseModel):
    """An entry of targets.json: a value, and what it was to be."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None


@dataclass
class RunRecord:
    """What a run wrote.

    metrics: the lines of its training, by step, with NaN where a number was not finite. incidents:
    by time. left_steps: steps whose results are not shown, since the run has left the checkpoint
    that they measured. left_out: how often each fault was met.
    """

    name: str
    on_store: bool
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    results: list[ReportedResult] = field(default_factory=list)
    rewinds: list[dict[str, int]] = field(default_factory=list)
    left_steps: set[int] = field(default_factory=set)
    targets: list[Goal] = field(default_factory=list)
    done: Done | None = None
    ending: Ending | None = None
    last_sign: Sign | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def objective(self) -> str:
        """The name of its objective; empty where the configuration does not say."""
        name = self.setting("objective")
        return name if isinstance(name, str) else ""

    def setting(self, *keys: str) -> Any:
        """A value of the configuration; None where it has no such key."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def steps(self) -> int:
        """How many steps are recorded."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0


def number(value: Any) -> float | None:
    """The value as a float; None for what is no finite number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return float(value)


def _is_not_finite(value: Any) -> bool:
    """Whether a value stands for a number that is not finite, as the trainer or Python's JSON
    writes it."""
    return value in ("nan", "inf", "-inf") or (
        isinstance(value, float) and not math.isfinite(value)
    )


def read_run(run: str) -> RunRecord:
    """Read what a run wrote.

    Raises ConfigError where there is no such run, StorageError where its store does not answer.
    """
    store = open_store(run)
    files = Files(store)
    record = RunRecord(
        run.rstrip("/").rpartition("/")[2] or run, on_store=not isinstance(store, LocalStore)
    )

    def read(name: str) -> str:
        try:
            return files.read(name).decode(errors="replace")
        except ObjectMissing:
            return ""
        except Unfit as error:
            record.left_out[f"{name}: {error}"] += 1
            return ""

    record.config, metrics = read("config.resolved.yaml"), read("metrics.jsonl")
    if not (record.config or metrics or record.left_out):
        raise ConfigError(
            f"{run} is no run folder: it has no config.resolved.yaml; give the folder that `run=` "
            "named"
        )
    settings = _mapping(record, "config.resolved.yaml", record.config, parse_yaml)
    record.settings = with_new_keys(settings)
    if not record.config:
        record.left_out["config.resolved.yaml: not there"] += 1
    record.environment = _mapping(record, "environment.json", read("environment.json"))
    for line in _json_lines(record, "metrics.jsonl", metrics):
        _take_metrics(record, line)
    record.metrics.sort(key=lambda row: row["step"])
    record.incidents = in_time_order(
        row
        for name in incident_names(files.below(INCIDENTS))
        for row in _json_lines(record, name, read(name))
    )
    record.done = _one(record, Done, DONE, read(DONE))
    record.ending = _one(record, Ending, "exit.json", read("exit.json"))
    name = f"{FOLDER}/{TARGETS}"
    for goal in _parsed(record, name, read(name), parse_json, list) or []:
        if (valid := _valid(record, Goal, name, goal)) is not None:
            record.targets.append(valid)
    if isinstance(store, LocalStore):
        signs = [n for n in files.below("heartbeats/rank-") if n.endswith(".json")]
        alive = [sign for name in signs if (sign := _one(record, Sign, name, read(name)))]
        record.last_sign = max(alive, key=lambda sign: sign.time, default=None)
    for rewind in _parsed(record, "rewinds.json", read("rewinds.json"), parse_json, list) or []:
        if (known := _valid(record, _Rewind, "rewinds.json", rewind)) is not None:
            record.rewinds.append(known.model_dump())
    _take_results(record, files)
    upload = record.setting("checkpoint", "upload")
    if isinstance(store, LocalStore) and isinstance(upload, str) and upload:
        _take_uploaded(record, upload)
    record.results.sort(key=lambda result: result.step)
    return record


def _take_metrics(record: RunRecord, line: dict[str, Any]) -> None:
    step = line.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < _STEPS:
        record.left_out["metrics.jsonl: a line without a step"] += 1
        return
    row: dict[str, float] = {"step": step}
    for key in _NUMBERS:
        value = line.get(key)
        if (finite := number(value)) is not None:
            row[key] = finite
        elif _is_not_finite(value):
            row[key] = math.nan
        elif value is not None or key == "loss":
            record.left_out[f"metrics.jsonl: a line whose {key} is no number"] += 1
    record.metrics.append(row)


def _take_results(record: RunRecord, files: Files) -> None:
    """Add the results that are not known yet. Raises StorageError where they cannot be listed."""
    there = {(r.step, r.benchmark, r.weights) for r in record.results}
    course = Course(record.rewinds, files.plain)
    for name in files.results():
        try:
            text = files.read(name, _MOST_OF_RESULT).decode(errors="replace")
        except (Unfit, StorageError) as error:
            record.left_out[f"{name}: {error}"] += 1
            continue
        stated = _one(record, Result, name, text)
        if stated is None or (stated.step, stated.benchmark, stated.weights) in there:
            continue
        if not course.is_current(stated):
            record.left_steps.add(stated.step)
            continue
        totals = {key: value for key, value in stated.metrics.items() if key != CLASSES}
        metrics = _finite(record, name, totals)
        classes = _of_classes(record, name, stated.metrics.get(CLASSES, {}))
        record.results.append(
            ReportedResult(
                step=stated.step,
                benchmark=stated.benchmark,
                weights=stated.weights,
                metrics=metrics,
                images=stated.images,
                files=files,
                folder=name.rpartition("/")[0],
                classes=classes,
            )
        )


def _of_classes(record: RunRecord, name: str, stated: Any) -> dict[str, dict[str, float]]:
    """Take the metrics of each class, by its name."""
    classes: dict[str, dict[str, float]] = {}
    if not isinstance(stated, dict):
        record.left_out[f"{name}: the metrics of classes are no mapping"] += 1
        return classes
    for label, of_class in stated.items():
        if isinstance(of_class, dict):
            classes[str(label)] = _finite(record, name, of_class)
        else:
            record.left_out[f"{name}: the metrics of a class are no mapping"] += 1
    return classes


def _finite(record: RunRecord, name: str, stated: dict[str, Any]) -> dict[str, float]:
    """Take the metrics that are finite numbers."""
    metrics: dict[str, float] = {}
    for key, value in stated.items():
        if (finite := number(value)) is not None:
            metrics[key] = finite
        else:
            what = "not finite" if _is_not_finite(value) else "no number"
            record.left_out[f"{name}: the metric {key} is {what}"] += 1
    return metrics


def _take_uploaded(record: RunRecord, upload: str) -> None:
    """Add the results that evaluators elsewhere left on the store."""
    try:
        _take_results(record, Files(open_store(upload)))
    except ADDPError as error:
        record.left_out[f"the results on {upload}: {error}"] += 1


def _parsed(
    record: RunRecord, name: str, text: str, parse: Parse = parse_json, wanted: type = dict
) -> Any:
    """Parse a document. Returns None where there is no text, or content of another type, which is
    counted."""
    if not text.strip():
        return None
    try:
        value = (
            parse(text, name, DataError, object)
            if parse is parse_json
            else parse(text, name, DataError)
        )
    except DataError:
        record.left_out[f"{name}: cannot be parsed"] += 1
        return None
    if not isinstance(value, wanted):
        record.left_out[f"{name}: holds a {type(value).__name__}"] += 1
        return None
    return value


def _mapping(record: RunRecord, name: str, text: str, parse: Parse = parse_json) -> dict[str, Any]:
    return _parsed(record, name, text, parse, dict) or {}


def _json_lines(record: RunRecord, name: str, text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        content = _parsed(record, f"{name}: a line", line)
        if content is not None:
            yield content


def _valid(record: RunRecord, model: type[T], name: str, content: Any) -> T | None:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        record.left_out[f"{name}: {key}{': ' if key else ''}{fault['msg']}"] += 1
        return None


def _one(record: RunRecord, model: type[T], name: str, text: str) -> T | None:
    content = _parsed(record, name, text)
    return None if content is None else _valid(record, model, name, content)
