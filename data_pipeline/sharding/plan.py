"""The plan: which image goes to which shard and row, frozen before any work starts and stored
beside the data.

    plan.json                     all but the images, and where each shard's slice lies in ...
    plan-HASH.jsonl.gz            ... the list of images, one gzip member a shard, one image a line

    byte of the list   slices[0] = 0        slices[1]            slices[2]         slices[3] = end
                       | gzip member 0      | gzip member 1      | gzip member 2   |
    image (= key)        0 .. rows-1          rows .. 2 rows-1     2 rows .. images-1

    line of an image   ["cat/1.jpg",3,90210]                  a file: id, label, bytes
                       ["cat/1.jpg",3,90210,"a/cat/1.jpg"]    ... whose object is not called as it
                       ["cat/1.jpg",3,90210,0,1536]           in tar objects[0] at byte 1536

A worker reads its shard's slice by one ranged read, so a plan of ten million images costs it
nothing. Concatenated gzip members are a gzip file: `zcat` shows the whole list.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from json.encoder import encode_basestring_ascii
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards import MOST_ROWS
from data_pipeline.shards.format import CodeCount, Layout, TokenCount
from data_pipeline.shards.manifest import Classes, check_titles
from data_pipeline.storage import NoRegularFile, ObjectMissing, Store, read_document
from model.documents import (
    LARGEST_COUNT,
    Count,
    Positive,
    Record,
    RelativeName,
    Sha256,
    first_problem,
    parse_record,
    printable,
    show,
)
from model.errors import DataError
from model.precision import InferencePrecision

PLAN = "plan.json"
_LONGEST_LINE = 2**16  # bytes of an image in the list: its name, and that of its object
_WHERE = {"source", "versions", "list", "slices"}  # where images lie, and how the list does
_LARGEST_SLICE = 2**28  # bytes of a shard's slice of the list


class PlanRecipe(Record):
    """What the data set will be, but for its images. Plans that agree in this and in the images
    give equal bytes."""

    views: ViewRecipe
    tokenizer: Sha256  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    codebook_size: CodeCount
    tokens: TokenCount  # L
    # Of the encoder: tokens near a border between two codes depend on it.
    precision: InferencePrecision = "fp32"
    rows: Positive = 1024  # images a shard
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64, strict=True)] = 0  # of the shuffle

    @model_validator(mode="after")
    def _fits(self) -> Self:
        Layout(self.views.views, self.tokens).check()
        return self


class Plan(Record):
    """`plan.json`. Its keys on disk are the aliases, where a field has one."""

    format: Literal["addp-plan-2"] = "addp-plan-2"
    source: str  # where the images lie; `run --source` reads them elsewhere
    recipe: PlanRecipe
    classes: Classes
    class_titles: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()  # tars that images lie in
    # What each tar was at a url, as its server or a digest says; none for a folder and S3.
    versions: tuple[str, ...] = ()
    images: Positive = Field(alias="pictures")
    images_sha256: Sha256 = Field(alias="pictures_sha256")  # of the list, uncompressed
    list: RelativeName
    # Shard k's slice of the list is bytes slices[k] .. slices[k+1]-1.
    slices: Annotated[tuple[Count, ...], Field(min_length=2)]

    @field_validator("objects")
    @classmethod
    def _objects_inside(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(name) for name in names)

    @field_validator("source")
    @classmethod
    def _no_zero(cls, source: str) -> str:
        if "\0" in source:
            raise ValueError(f"{show(source)} names no source")
        return source

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Raise ValueError if numbers contradict each other, so that no reader has to look."""
        check_titles(self.classes, self.class_titles)
        if self.versions and len(self.versions) != len(self.objects):
            raise ValueError("versions: there must be one for each of the objects, or none")
        rows = min(self.recipe.rows, self.images)
        if rows > MOST_ROWS:
            raise ValueError(
                f"recipe.rows: shards of {rows:,} images; at most {MOST_ROWS:,} can be made"
            )
        if self.shards != -(-self.images // rows):
            raise ValueError(
                f"images: {self.images:,} do not make {self.shards:,} shards of {rows:,}"
            )
        if self.slices[0] != 0 or any(
            not 0 < b - a <= _LARGEST_SLICE for a, b in pairwise(self.slices)
        ):
            raise ValueError("slices: they must start at 0 and rise, each to the start of the next")
        return self

    @property
    def shards(self) -> int:
        return len(self.slices) - 1

    @cached_property
    def identity(self) -> str:
        """Return a hash that is the same for the same work, wherever the images lie and however the
        list was compressed."""
        content = self.model_dump(mode="json", exclude=_WHERE)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def rows_of(self, shard: int) -> int:
        """Return the number of images planned for a shard; the last one may have fewer."""
        return min(self.recipe.rows, self.images - shard * self.recipe.rows)


def make_plan(
    store: Store,
    source: str,
    images: Iterable[ImageEntry],
    recipe: PlanRecipe,
    classes: Callable[[], tuple[tuple[str, ...], tuple[str, ...]]],
    *,
    versions: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda count: None,
) -> Plan:
    """Freeze the work list in `store`. If a plan of the same images and recipe is there already, it
    is returned.

    The images are ordered by a keyed hash of their ids: a shuffle that does not depend on the order
    of the listing. classes: returns names and titles, and is called once all images were listed.
    versions: of the tars of the source, known once all images were listed. progress: called with
    the number of images listed so far. Raises DataError if there is no image, one is listed twice,
    or `store` holds another plan.
    """
    lines, keys, objects = _listed(images, recipe.seed, progress)
    if not lines:
        raise DataError(f"{source} has no images for this plan")
    order = _order(keys, lines)
    del keys
    digest, slices = hashlib.sha256(), [0]
    with tempfile.NamedTemporaryFile() as file:
        for start in range(0, len(lines), recipe.rows):
            content = b"\n".join([lines[i] for i in order[start : start + recipe.rows]]) + b"\n"
            digest.update(content)
            slices.append(slices[-1] + file.write(gzip.compress(content, 3, mtime=0)))
            progress(len(lines))
        file.flush()
        names, titles = classes()
        try:
            plan = Plan(
                source=source,
                recipe=recipe,
                classes=names,
                class_titles=titles,
                objects=tuple(objects),
                versions=tuple(versions.get(name, "") for name in objects) if versions else (),
                images=len(lines),
                images_sha256=digest.hexdigest(),
                list=f"plan-{digest.hexdigest()[:16]}.jsonl.gz",
                slices=tuple(slices),
            )
        except ValidationError as error:
            raise DataError(f"{source} makes no plan: {first_problem(error)}") from error
        if (existing := _existing(store)) is not None:
            return _agreed(store, existing, plan)
        # The list first: a plan never names a list that is not there.
        store.create(plan.list, Path(file.name))
    if not store.create(PLAN, plan.model_dump_json(indent=1).encode()):
        return _agreed(store, read_plan(store), plan)  # another planner was faster
    return plan


def _listed(
    images: Iterable[ImageEntry], seed: int, progress: Callable[[int], None]
) -> tuple[list[bytes], NDArray[np.uint64], dict[str, int]]:
    """Return (a line for each image, the keys that order them, tars by number)."""
    lines: list[bytes] = []
    keys = array("Q")
    objects: dict[str, int] = {}
    for p in images:
        fields = f"[{encode_basestring_ascii(p.id)},{p.label},{p.size}"
        if p.offset is not None:
            fields += f",{objects.setdefault(p.object, len(objects))},{p.offset}"
        elif p.object != p.id:
            fields += f",{encode_basestring_ascii(p.object)}"
        lines.append((fields + "]").encode())
        keys.append(xxhash.xxh3_64_intdigest(p.id.encode(), seed))
        if len(lines) % 10_000 == 0:
            progress(len(lines))
    return lines, np.frombuffer(keys, np.uint64), objects


def _order(keys: NDArray[np.uint64], lines: list[bytes]) -> NDArray[np.intp]:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    for at in np.nonzero(ordered[1:] == ordered[:-1])[0]:
        first, second = (json.loads(lines[order[at + i]])[0] for i in (0, 1))
        if first == second:
            raise DataError(f"the image {printable(first)} is listed twice")
        # Two ids with one hash (in about 1 of 400,000 plans of ten million images) go by name.
        if first > second:
            order[at], order[at + 1] = order[at + 1], order[at]
    return order


def _existing(store: Store) -> Plan | None:
    try:
        return read_plan(store)
    except ObjectMissing:
        return None


def _agreed(store: Store, existing: Plan, plan: Plan) -> Plan:
    if existing.identity == plan.identity:
        return existing
    old, new = (p.model_dump(mode="json", by_alias=False) for p in (existing, plan))
    old.update(old.pop("recipe"))
    new.update(new.pop("recipe"))
    different = [key for key in old if key not in _WHERE and old[key] != new[key]]
    raise DataError(
        f"{store.url} holds another plan: it differs in {', '.join(different)}; choose an empty "
        "folder, or plan with the same images, views and tokenizer"
    )


def read_plan(store: Store) -> Plan:
    """Read the plan of a data set. Raises ObjectMissing if there is none, DataError if it is not
    readable or cannot be true."""
    try:
        content = read_document(store, PLAN)
    except ObjectMissing as error:
        raise ObjectMissing(
            f"{store.url} holds no plan; make one with `addp tokenize plan`"
        ) from error
    return parse_record(
        Plan,
        content,
        f"{store.url}/{PLAN} is not readable as a plan (was it made by another version?)",
        DataError,
    )


def shard_images(store: Store, plan: Plan, shard: int) -> list[tuple[int, ImageEntry]]:
    """Return (index in the plan, image) of a shard's rows, in order. Raises DataError if the list
    is damaged."""
    start, end = plan.slices[shard], plan.slices[shard + 1]
    try:
        lines = _lines(store.read(plan.list, start, end - start), plan.rows_of(shard))
        images = [_parsed(from_json(line), len(plan.classes), plan.objects) for line in lines]
    except NoRegularFile as error:
        raise DataError(str(error)) from error
    except (EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{store.url}/{plan.list} is damaged in the slice of shard {shard}: {error}"
        ) from error
    if len(images) != plan.rows_of(shard):
        raise DataError(f"{store.url}/{plan.list} lists {len(images)} images for shard {shard}")
    return list(enumerate(images, shard * plan.recipe.rows))


def _lines(member: bytes, most: int) -> Iterator[bytes]:
    """Yield at most `most` lines, however large the gzip member would become. Raises ValueError,
    EOFError or zlib.error."""
    unpacker = zlib.decompressobj(wbits=31)
    begun = b""
    while not unpacker.eof:
        piece = unpacker.decompress(member, _LONGEST_LINE)
        member = unpacker.unconsumed_tail
        if not piece and not member and not unpacker.eof:
            raise EOFError("its end is missing")
        *whole, begun = (begun + piece).split(b"\n")
        most -= len(whole)
        if most < 0 or len(begun) > _LONGEST_LINE:
            raise ValueError(
                "more images than were planned" if most < 0 else "an image with an endless name"
            )
        yield from whole
    if begun or unpacker.unused_data:
        raise ValueError("something follows its last image")


def _parsed(fields: Any, classes: int, objects: tuple[str, ...]) -> ImageEntry:
    """Parse a line of the list. Raises ValueError."""
    if type(fields) is not list or not 3 <= len(fields) <= 5 or type(fields[0]) is not str:
        raise ValueError(f"{show(fields)} is no image")
    image_id, location = fields[0], fields[3:]
    label, size = _number(fields[1], classes), _number(fields[2], LARGEST_COUNT)
    if len(location) == 2:
        tar, offset = _number(location[0], len(objects)), _number(location[1], LARGEST_COUNT)
        return ImageEntry(image_id, label, objects[tar], size, offset)
    return ImageEntry(image_id, label, _inside(location[0] if location else image_id), size)


def _number(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{show(value)} is no number from 0 to {limit - 1}")
    return value


def _inside(name: Any) -> str:
    """Return the name of an object if it lies inside the source; else raise ValueError."""
    if (
        type(name) is not str
        or not name
        or name.startswith("/")
        or ".." in name.split("/")
        or "\0" in name
    ):
        raise ValueError(f"{show(name)} does not lie in the source")
    return name
