"""The small files of a run, and the end of its metrics: what of them a snapshot shows. Nothing here
raises, and no file is read whole that may be large."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from cluster.status import fields
from cluster.status.snapshot import Checkpoint, Start
from cluster.status.source import Piece, Source
from cluster.status.state import Ended
from model.errors import DataError
from model.yaml_documents import parse_yaml
from trainer.run_folder import DONE, RUN, START, step_folder

_METRICS = 192 << 10  # bytes of its end: some 250 lines
_RECORD = 64 << 10  # of a small file
_PARTS = 20  # of a start that are shown


def record(source: Source, name: str) -> dict[str, Any]:
    """Return a small file of JSON; {} where there is none."""
    piece = source.end(name, _RECORD)
    return fields.json_mapping(piece.content) if piece and piece.whole else {}


def is_done(source: Source) -> bool:
    """Whether the run is marked as complete."""
    return fields.count(record(source, DONE), "step") is not None


def identity(source: Source) -> str | None:
    """Return the id of the run."""
    return fields.text(record(source, RUN), "run", 64)


def metric_rows(source: Source) -> list[dict[str, Any]]:
    """Return the latest metric lines, oldest first."""
    piece = source.end("metrics.jsonl", _METRICS)
    rows = fields.json_rows(piece.lines) if piece else ()
    return [row for row in rows if fields.count(row, "step") is not None]


class Settings(NamedTuple):
    """What a run's configuration and environment say that matters here."""

    upload: str | None
    lease: float
    total: int | None
    ranks: int | None


def configuration(config: Piece) -> dict[str, Any]:
    """Return the mapping of config.resolved.yaml; {} where it holds none."""
    try:
        tree = parse_yaml(config.content if config.whole else b"", "", DataError)
    except DataError:
        return {}
    return tree if isinstance(tree, dict) else {}


def settings(tree: dict[str, Any] | None, environment: dict[str, Any]) -> Settings:
    """Return them. tree: the configuration."""
    checkpoint, schedule = _section(tree, "checkpoint"), _section(tree, "schedule")
    total = fields.count(environment, "total_steps")
    if total is None and schedule.get("unit") == "steps":  # earlier versions did not write it
        steps = fields.number(schedule, "total", 0)
        total = None if steps is None else max(1, round(steps))
    return Settings(
        upload=fields.text(checkpoint, "upload", 4096),
        lease=fields.number(checkpoint, "lease", 0) or 60.0,
        total=total or None,
        ranks=fields.count(environment, "world_size") or None,
    )


def _section(tree: dict[str, Any] | None, name: str) -> dict[str, Any]:
    section = tree.get(name) if tree else None
    return section if isinstance(section, dict) else {}


def exit_record(source: Source) -> Ended | None:
    """Return how the last attempt ended; None where it runs, or was killed."""
    found = record(source, "exit.json")
    code = found.get("code")
    if isinstance(code, bool) or not isinstance(code, int) or not -255 <= code <= 255:
        return None
    return Ended(code, fields.text(found, "reason") or "it left no reason", fields.moment(found))


def start(source: Source) -> Start | None:
    """Return how long the last start took; None where none has come to its first step."""
    found = record(source, START)
    seconds, parts = fields.number(found, "seconds", 0), found.get("parts")
    if seconds is None or not isinstance(parts, dict):
        return None
    known = {fields.one_line(name, 40): fields.number(parts, name) for name in list(parts)[:_PARTS]}
    return Start(seconds=seconds, parts={n: s for n, s in known.items() if s is not None})


def newest_checkpoint(source: Source, now: float) -> Checkpoint | None:
    """Return the newest committed checkpoint. Its files are not verified."""
    names = (re.fullmatch(r"step-([0-9]{8,15})", name) for name in source.folders("checkpoints"))
    for step in sorted((int(name[1]) for name in names if name), reverse=True):
        manifest = f"checkpoints/{step_folder(step)}/manifest.json"
        entry = next((e for e in source.files(manifest) if e.name == manifest), None)
        if entry is not None:
            saved = entry.modified
            return Checkpoint(step=step, saved=saved, age=max(0.0, now - saved))
    return None
