"""The plan: which image goes to which shard and row, frozen before any work starts and stored
beside the data.

    plan.json               everything but the images, and where each shard's list lies in ...
    plan-HASH.jsonl.gz      ... one gzip member a shard, one image a line; `zcat` shows it whole

A worker reads its shard's list by one ranged read, so a plan of ten million images costs it
nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.views import ViewRecipe
from data_pipeline.shards.format import MOST_ROWS, CodeCount, Layout, TokenCount
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
_LARGEST_SLICE = 2**28  # bytes of a shard's part of the list


def _no_name_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return names


Classes = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_no_name_twice)]


def check_titles(classes: tuple[str, ...], titles: tuple[str, ...]) -> None:
    """Raises ValueError."""
    if titles and len(titles) != len(classes):
        raise ValueError(f"class_titles: {len(titles)} for {len(classes)} classes")


class PlanRecipe(Record):
    """What the data set will be, but for its images. Plans that agree here and in the images give
    equal bytes."""

    views: ViewRecipe
    tokenizer: Sha256  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    codebook_size: CodeCount
    tokens: TokenCount  # L
    precision: InferencePrecision = (
        "fp32"  # of the encoder: tokens near a border between codes depend on it
    )
    rows: Positive = 1024  # images a shard
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64, strict=True)] = 0  # of the shuffle

    @model_validator(mode="after")
    def _fits(self) -> Self:
        Layout(self.views.views, self.tokens).check()
        return self


class Plan(Record):
    format: Literal["addp-plan-2"] = "addp-plan-2"
    source: str  # where the images lie; `run --source` reads the same ones from another place
    recipe: PlanRecipe
    classes: Classes
    class_titles: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()  # tars that images lie in
    images: Positive = Field(alias="pictures")
    images_sha256: Sha256 = Field(alias="pictures_sha256")  # of the list, uncompressed
    list: RelativeName
    slices: Annotated[
        tuple[Count, ...], Field(min_length=2)
    ]  # shard k's part of it: bytes slices[k] .. slices[k+1]-1

    @field_validator("objects")
    @classmethod
    def _objects_inside(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(name) for name in names)

    @field_validator("source")
    @classmethod
    def _a_place(cls, source: str) -> str:
        if "\0" in source:
            raise ValueError(f"{show(source)} is no place")
        return source

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Raises ValueError where numbers contradict each other, so that no reader has to look."""
        check_titles(self.classes, self.class_titles)
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
        """The same for the same work, wherever the images lie and however the list was
        compressed."""
        content = self.model_dump(mode="json", exclude={"source", "list", "slices"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def rows_of(self, shard: int) -> int:
        """Images planned for a shard; the last one may have fewer."""
        return min(self.recipe.rows, self.images - shard * self.recipe.rows)


def make_plan(
    store: Store,
    source: str,
    images: Iterable[ImageEntry],
    recipe: PlanRecipe,
    classes: Callable[[], tuple[tuple[str, ...], tuple[str, ...]]],
    progress: Callable[[int], None] = lambda count: None,
) -> Plan:
    """Freeze the work list in `store`. Made again with the same images and recipe, it is the plan
    that is there.

    The order is by a keyed hash of the images' ids: a shuffle that does not depend on how they were
    listed. classes: names and titles, asked for once all images were listed. progress: called with
    the number listed so far. Raises DataError where there is no image, one is listed twice, or
    `store` holds another plan.
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
                images=len(lines),
                images_sha256=digest.hexdigest(),
                list=f"plan-{digest.hexdigest()[:16]}.jsonl.gz",
                slices=tuple(slices),
            )
        except ValidationError as error:
            raise DataError(f"{source} makes no plan: {first_problem(error)}") from error
        if (existing := _existing(store)) is not None:
            return _agreed(store, existing, plan)
        store.create(
            plan.list, Path(file.name)
        )  # the list first: a plan never names a list that is not there
    if not store.create(PLAN, plan.model_dump_json(indent=1).encode()):
        return _agreed(store, read_plan(store), plan)  # another planner was faster
    return plan


def _listed(
    images: Iterable[ImageEntry], seed: int, progress: Callable[[int], None]
) -> tuple[list[bytes], NDArray[np.uint64], dict[str, int]]:
    """(a line for each image, the key that it is ordered by, tars by their numbers)."""
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
        if (
            first > second
        ):  # two ids with one hash (about 1 in 400,000 plans of ten millions): by name
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
    different = [
        key for key in old if key not in ("source", "list", "slices") and old[key] != new[key]
    ]
    raise DataError(
        f"{store.url} holds another plan: it differs in {', '.join(different)}; choose an empty "
        "folder, or plan with the same images, views and tokenizer"
    )


def read_plan(store: Store) -> Plan:
    """Raises ObjectMissing where there is none, DataError where it is not readable or cannot be
    true."""
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
    """(index in the plan, image) of a shard's rows, in order. Raises DataError where the list is
    damaged."""
    start, end = plan.slices[shard], plan.slices[shard + 1]
    try:
        lines = _lines(store.read(plan.list, start, end - start), plan.rows_of(shard))
        images = [_parsed(from_json(line), len(plan.classes), plan.objects) for line in lines]
    except NoRegularFile as error:
        raise DataError(str(error)) from error
    except (EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{store.url}/{plan.list} is damaged in the part of shard {shard}: {error}"
        ) from error
    if len(images) != plan.rows_of(shard):
        raise DataError(f"{store.url}/{plan.list} lists {len(images)} images for shard {shard}")
    return list(enumerate(images, shard * plan.recipe.rows))


def _lines(member: bytes, most: int) -> Iterator[bytes]:
    """At most so many lines, however large the gzip member would become. Raises ValueError,
    EOFError, zlib.error."""
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
    """Raises ValueError."""
    if type(fields) is not list or not 3 <= len(fields) <= 5 or type(fields[0]) is not str:
        raise ValueError(f"{show(fields)} is no image")
    image_id, place = fields[0], fields[3:]
    label, size = _number(fields[1], classes), _number(fields[2], LARGEST_COUNT)
    if len(place) == 2:
        tar, offset = _number(place[0], len(objects)), _number(place[1], LARGEST_COUNT)
        return ImageEntry(image_id, label, objects[tar], size, offset)
    return ImageEntry(image_id, label, _inside(place[0] if place else image_id), size)


def _number(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{show(value)} is no number from 0 to {limit - 1}")
    return value


def _inside(name: Any) -> str:
    """The name of an object of the source, which lies nowhere else. Raises ValueError."""
    if (
        type(name) is not str
        or not name
        or name.startswith("/")
        or ".." in name.split("/")
        or "\0" in name
    ):
        raise ValueError(f"{show(name)} does not lie in the source")
    return name
