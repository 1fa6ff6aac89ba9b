"""The plan: which picture goes to which shard and row, frozen before any work starts and stored beside the data.

    plan.json               everything but the pictures, and where each shard's list lies in ...
    plan-HASH.jsonl.gz      ... one gzip member a shard, one picture a line; `zcat` shows it whole

A worker reads its shard's list by one ranged read, so a plan of ten million pictures costs it nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable
from functools import cached_property
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError, field_validator

from data_pipeline.pictures import Picture
from data_pipeline.records import Record
from data_pipeline.storage import ObjectMissing, Store
from data_pipeline.views import ViewRecipe
from model.errors import DataError

PLAN = "plan.json"
Precision = Literal["fp32", "bf16"]


class PlanRecipe(Record):
    """What the data set will be, but for its pictures. Plans that agree here and in the pictures give equal bytes."""

    views: ViewRecipe
    tokenizer: str  # fingerprint of the tokenizer's weights (model.weights.fingerprint)
    codebook_size: int
    tokens: int  # L
    precision: Precision = "fp32"  # of the encoder: tokens near a border between codes depend on it
    rows: int = 1024  # pictures a shard
    seed: int = 0  # of the shuffle


class Plan(Record):
    format: Literal["addp-plan-2"] = "addp-plan-2"
    source: str  # where the pictures lie; `run --source` reads the same ones from another place
    recipe: PlanRecipe
    classes: tuple[str, ...]
    class_titles: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()  # tars that pictures lie in
    pictures: int
    pictures_sha256: str  # of the list, uncompressed
    list: str  # name of the list
    slices: tuple[int, ...]  # shard k's part of it: bytes slices[k] .. slices[k+1]-1

    @field_validator("objects")
    @classmethod
    def _objects_inside(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(name) for name in names)

    @property
    def shards(self) -> int:
        return len(self.slices) - 1

    @cached_property
    def identity(self) -> str:
        """The same for the same work, wherever the pictures lie and however the list was compressed."""
        content = self.model_dump(mode="json", exclude={"source", "list", "slices"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def rows_of(self, shard: int) -> int:
        """Pictures planned for a shard; the last one may have fewer."""
        return min(self.recipe.rows, self.pictures - shard * self.recipe.rows)


def make_plan(
    store: Store, source: str, pictures: Iterable[Picture], recipe: PlanRecipe,
    classes: Callable[[], tuple[tuple[str, ...], tuple[str, ...]]],
    progress: Callable[[int], None] = lambda count: None,
) -> Plan:  # fmt: skip
    """Freeze the work list in `store`. Made again with the same pictures and recipe, it is the plan that is there.

    The order is by a keyed hash of the pictures' ids: a shuffle that does not depend on how they were listed.
    classes: names and titles, asked for once all pictures were listed. progress: called with the number listed so far.
    Raises DataError where there is no picture, one is listed twice, or `store` holds another plan.
    """
    lines, keys, objects = _listed(pictures, recipe.seed, progress)
    if not lines:
        raise DataError(f"{source} has no pictures for this plan")
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
        plan = Plan(
            source=source, recipe=recipe, classes=names, class_titles=titles, objects=tuple(objects),
            pictures=len(lines), pictures_sha256=digest.hexdigest(), list=f"plan-{digest.hexdigest()[:16]}.jsonl.gz",
            slices=tuple(slices),
        )  # fmt: skip
        if (existing := _existing(store)) is not None:
            return _agreed(store, existing, plan)
        store.create(plan.list, Path(file.name))  # the list first: a plan never names a list that is not there
    if not store.create(PLAN, plan.model_dump_json(indent=1).encode()):
        return _agreed(store, read_plan(store), plan)  # another planner was faster
    return plan


def _listed(
    pictures: Iterable[Picture], seed: int, progress: Callable[[int], None]
) -> tuple[list[bytes], NDArray[np.uint64], dict[str, int]]:
    """(a line for each picture, the key that it is ordered by, tars by their numbers)."""
    lines: list[bytes] = []
    keys = array("Q")
    objects: dict[str, int] = {}
    for p in pictures:
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
            raise DataError(f"the picture {first} is listed twice")
        if first > second:  # two ids with one hash (about 1 in 400,000 plans of ten millions): by name
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
    old, new = existing.model_dump(mode="json"), plan.model_dump(mode="json")
    old.update(old.pop("recipe"))
    new.update(new.pop("recipe"))
    different = [key for key in old if key not in ("source", "list", "slices") and old[key] != new[key]]
    raise DataError(
        f"{store.url} holds another plan: it differs in {', '.join(different)}; "
        "choose an empty folder, or plan with the same pictures, views and tokenizer"
    )


def read_plan(store: Store) -> Plan:
    """Raises ObjectMissing where there is none, DataError where it is not readable."""
    try:
        content = store.read(PLAN)
    except ObjectMissing as error:
        raise ObjectMissing(f"{store.url} holds no plan; make one with `addp tokenize plan`") from error
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        raise DataError(
            f"{store.url}/{PLAN} is not readable as a plan: {'.'.join(map(str, problem['loc']))} {problem['msg']}; "
            "was it made by another version?"
        ) from error


def shard_pictures(store: Store, plan: Plan, shard: int) -> list[tuple[int, Picture]]:
    """(index in the plan, picture) of a shard's rows, in order. Raises DataError where the list is damaged."""
    start, end = plan.slices[shard], plan.slices[shard + 1]
    try:
        lines = gzip.decompress(store.read(plan.list, start, end - start)).splitlines()
        pictures = [_parsed(json.loads(line), plan.objects) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{store.url}/{plan.list} is damaged in the part of shard {shard}: {error}") from error
    if len(pictures) != plan.rows_of(shard):
        raise DataError(f"{store.url}/{plan.list} lists {len(pictures)} pictures for shard {shard}")
    return list(enumerate(pictures, shard * plan.recipe.rows))


def _parsed(fields: list[Any], objects: tuple[str, ...]) -> Picture:
    picture_id, label, size, *place = fields
    if len(place) == 2:
        return Picture(picture_id, label, objects[place[0]], size, place[1])
    return Picture(picture_id, label, _inside(place[0] if place else picture_id), size)


def _inside(name: str) -> str:
    """The name of an object of the source, which lies nowhere else. Raises ValueError."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name!r} does not lie in the source")
    return name
