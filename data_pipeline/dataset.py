"""`dataset.json`: what a token data set holds, byte for byte. Written last; a folder without it is no data set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from data_pipeline.plan import Precision
from data_pipeline.records import Record
from data_pipeline.shards import Layout
from data_pipeline.storage import BucketMissing, ObjectMissing, Store, open_store
from data_pipeline.views import ViewRecipe
from model.errors import DataError

MANIFEST = "dataset.json"


class ShardEntry(Record):
    name: str
    rows: int
    bytes: int
    sha256: str
    xxh3: str


class Quarantined(Record):
    """A picture that could not be read, and why."""

    id: str
    reason: str


class Manifest(Record):
    format: Literal["addp-tokens-1"] = "addp-tokens-1"
    shards: tuple[ShardEntry, ...]
    stride: int
    fields: dict[str, dict[str, Any]]
    codebook_size: int
    tokens: int
    views: ViewRecipe
    tokenizer: str  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    precision: Precision = "fp32"  # of the encoder
    classes: tuple[str, ...]
    class_titles: tuple[str, ...] = ()  # what people call them, or empty
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


def manifest_bytes(manifest: Manifest) -> bytes:
    content = {**manifest.model_dump(mode="json"), "fingerprint": manifest.fingerprint}
    return json.dumps(content, indent=1).encode()


def read_manifest(place: Store | Path | str) -> Manifest:
    """Raises DataError where there is no finished data set, or its manifest was altered."""
    return read_fingerprinted(place)[0]


def read_fingerprinted(place: Store | Path | str) -> tuple[Manifest, str]:
    """As `read_manifest`, with the fingerprint, which takes long to take of a hundred thousand shards."""
    store = open_store(place) if isinstance(place, Path | str) else place
    where = f"{store.url}/{MANIFEST}"
    try:
        content = json.loads(store.read(MANIFEST))
        fingerprint = content.pop("fingerprint")
        manifest = Manifest.model_validate(content)
    except (ObjectMissing, BucketMissing) as error:
        raise DataError(
            f"{store.url} is no finished token data set: it has no {MANIFEST}; make it with `addp tokenize`"
        ) from error
    except (ValueError, KeyError, ValidationError) as error:
        raise DataError(f"{where} is not readable as a token data set: {str(error).splitlines()[0]}") from error
    if fingerprint != manifest.fingerprint:
        raise DataError(f"{where} was changed after it was written: its fingerprint does not match its content")
    return manifest, fingerprint
