"""`dataset.json`: what a token data set holds, byte for byte. Written last; a folder without it is no data set."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.shards import Layout
from data_pipeline.views import ViewRecipe
from model.errors import DataError

MANIFEST = "dataset.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Record):
    name: str
    rows: int
    bytes: int
    sha256: str
    xxh3: str


class Quarantined(_Record):
    """A picture that could not be read, and why."""

    id: str
    reason: str


class Manifest(_Record):
    format: Literal["addp-tokens-1"] = "addp-tokens-1"
    shards: tuple[ShardEntry, ...]
    stride: int
    fields: dict[str, dict[str, Any]]
    codebook_size: int
    tokens: int
    views: ViewRecipe
    tokenizer: str  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    classes: tuple[str, ...]
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def layout(self) -> Layout:
        return Layout(self.views.views, self.tokens)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 over the manifest's canonical JSON: two data sets with one fingerprint hold the same bytes."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {**manifest.model_dump(mode="json"), "fingerprint": manifest.fingerprint}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path | str) -> Manifest:
    """Raises DataError where there is no finished data set, or its manifest was altered."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text())
        fingerprint = content.pop("fingerprint")
        manifest = Manifest.model_validate(content)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no finished token data set: it has no {MANIFEST}; make it with `addp tokenize`"
        ) from error
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise DataError(f"{path} is not readable as a token data set: {str(error).splitlines()[0]}") from error
    if fingerprint != manifest.fingerprint:
        raise DataError(f"{path} was changed after it was written: its fingerprint does not match its content")
    return manifest


def write_atomically(path: Path, content: bytes) -> None:
    """Whole or not at all: a temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
