"""`dataset.json`: what a token data set holds, byte for byte. It is written last, so a folder
without it is no data set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards.format import END, CodeCount, Layout, Rows, TokenCount
from data_pipeline.storage import BucketMissing, ObjectMissing, Store, open_store, read_document
from model.documents import (
    Count,
    Positive,
    Record,
    RelativeName,
    Sha256,
    parse_json,
    parse_record,
    show,
)
from model.errors import DataError
from model.precision import InferencePrecision

MANIFEST = "dataset.json"


def _no_name_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return names


Classes = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_no_name_twice)]


def check_titles(classes: tuple[str, ...], titles: tuple[str, ...]) -> None:
    """Raise ValueError if there are titles, but not one for each class."""
    if titles and len(titles) != len(classes):
        raise ValueError(f"class_titles: {len(titles)} for {len(classes)} classes")


class ShardEntry(Record):
    """A shard of the data set, and the checksums of its bytes."""

    name: RelativeName
    rows: Rows
    bytes: Count
    sha256: Sha256
    xxh3: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Quarantined(Record):
    """An image that could not be read. reason: as `BadImage` gives it."""

    id: str
    reason: str


class Manifest(Record):
    """`dataset.json`. Two manifests with one fingerprint describe the same bytes."""

    format: Literal["addp-tokens-1"] = "addp-tokens-1"
    shards: Annotated[tuple[ShardEntry, ...], Field(min_length=1)]
    stride: Positive
    fields: dict[str, dict[str, Any]]
    codebook_size: CodeCount
    tokens: TokenCount
    views: ViewRecipe
    tokenizer: Sha256  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    precision: InferencePrecision = "fp32"  # of the encoder
    classes: Classes
    class_titles: tuple[str, ...] = ()  # what people call them, or empty
    quarantined: tuple[Quarantined, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Raise ValueError if sizes contradict each other, so that no reader has to look."""
        layout = self.layout
        layout.check()
        if (self.stride, self.fields) != (layout.stride, layout.fields()):
            raise ValueError(
                f"stride and fields are not those of {layout.views} views of {layout.tokens} tokens"
            )
        check_titles(self.classes, self.class_titles)
        names = set()
        for k, shard in enumerate(self.shards):
            if not shard.rows or shard.bytes != shard.rows * layout.stride + len(END):
                raise ValueError(
                    f"shards.{k}: {shard.bytes} bytes are not those of {shard.rows} rows of "
                    f"{layout.stride} each"
                )
            if shard.name in names:
                raise ValueError(f"shards.{k}: the name {show(shard.name)} stands twice")
            names.add(shard.name)
        return self

    @property
    def layout(self) -> Layout:
        return Layout(self.views.views, self.tokens)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the manifest's canonical JSON."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the content of `dataset.json`, with the fingerprint."""
    content = {**manifest.model_dump(mode="json"), "fingerprint": manifest.fingerprint}
    return json.dumps(content, indent=1).encode()


def read_manifest(data: Store | Path | str) -> Manifest:
    """Read the manifest of a data set (its store, folder or url). Raises DataError if it is not
    finished, or its manifest was altered or cannot be true."""
    return read_fingerprinted(data)[0]


def read_fingerprinted(data: Store | Path | str) -> tuple[Manifest, str]:
    """Read the manifest as `read_manifest` does, and return its fingerprint, too, which takes long
    to compute for a hundred thousand shards."""
    store = open_store(data, closed=True) if isinstance(data, Path | str) else data
    where = f"{store.url}/{MANIFEST}"
    try:
        document = read_document(store, MANIFEST)
    except (ObjectMissing, BucketMissing) as error:
        raise DataError(
            f"{store.url} is no finished token data set: it has no {MANIFEST}; make it with `addp "
            "tokenize`"
        ) from error
    unreadable = f"{where} is not readable as a token data set"
    content = parse_json(document, unreadable, DataError)
    fingerprint = content.pop("fingerprint", None)
    if not isinstance(fingerprint, str):
        raise DataError(f"{unreadable}: it has no fingerprint")
    manifest = parse_record(Manifest, content, unreadable, DataError)
    if fingerprint != manifest.fingerprint:
        raise DataError(
            f"{where} was changed after it was written: its fingerprint does not match its content"
        )
    return manifest, fingerprint
