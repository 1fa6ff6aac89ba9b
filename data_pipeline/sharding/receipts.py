"""What is done of a data set, and its end: each finished shard has a part, and `finalize` makes
`dataset.json` of them.

    tokens-000123.tar    a shard. It is created, never replaced: the first worker wins.
    parts/000123.json    its receipt, stored after it: rows, bytes, checksums, unreadable images

A job's state is this listing and nothing else, so any number of workers may die, start and race.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import xxhash

from data_pipeline.sharding.plan import Plan, shard_images
from data_pipeline.sharding.quarantine import UNREADABLE, Totals, check_bad
from data_pipeline.shards.format import END, Layout, image_indices
from data_pipeline.shards.manifest import (
    MANIFEST,
    Manifest,
    Quarantined,
    ShardEntry,
    manifest_bytes,
    read_manifest,
)
from data_pipeline.storage import Entry, NoRegularFile, Store, TooShort, read_document
from model.documents import Record, Sha256, parse_record
from model.errors import DataError

_READERS = 32  # small objects read at a time: on S3 each costs a round trip
_PART = re.compile(r"parts/([0-9]{6,19})\.json")


class Part(Record):
    """One finished shard. plan: identity of the plan that it belongs to."""

    plan: Sha256
    shard: ShardEntry
    quarantined: tuple[Quarantined, ...] = ()


def shard_name(shard: int) -> str:
    return f"tokens-{shard:06d}.tar"


def part_name(shard: int) -> str:
    return f"parts/{shard:06d}.json"


def layout_of(plan: Plan) -> Layout:
    return Layout(plan.recipe.views.views, plan.recipe.tokens)


def shard_bytes(plan: Plan, rows: int) -> int:
    """Size of a shard of so many rows; one of none has no file."""
    return rows * layout_of(plan).stride + len(END) if rows else 0


def rows_in(plan: Plan, size: int) -> int:
    """Rows of a shard of so many bytes."""
    return max(0, size - len(END)) // layout_of(plan).stride


def sound_part_bytes(plan: Plan, shard: int) -> int:
    """Size of the part of a shard all of whose images could be read; any other part is longer. So a
    listing tells."""
    rows = plan.rows_of(shard)
    size = shard_bytes(plan, rows)
    entry = ShardEntry(
        name=shard_name(shard), rows=rows, bytes=size, sha256="0" * 64, xxh3="0" * 32
    )
    return len(Part(plan=plan.identity, shard=entry).model_dump_json())


def commit(
    store: Store, plan: Plan, shard: int, content: bytes, bad: tuple[Quarantined, ...]
) -> Part:
    """Store a made shard and its part; what another worker stored before stands.

    content: the shard's bytes, empty where none of its images could be read. Raises DataError where
    the stored shard is not one of this plan.
    """
    name = shard_name(shard)
    if content and not store.create(name, content):
        stored = _stored(store, plan, shard)
        if stored != content:  # made on a machine that rounds differently, or not by us at all
            content, bad = stored, _checked(store, plan, shard, stored, bad)
    entry = ShardEntry(
        name=name,
        rows=rows_in(plan, len(content)),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        xxh3=xxhash.xxh3_128_hexdigest(content),
    )
    part = Part(plan=plan.identity, shard=entry, quarantined=bad)
    if store.create(part_name(shard), part.model_dump_json().encode()):
        return part
    stored_part = read_part(store, plan, shard)
    if stored_part.shard != part.shard:
        raise DataError(
            f"{store.url}/{part_name(shard)} vouches for other bytes than {name} holds; remove "
            "both, and run again"
        )
    return stored_part


def _stored(store: Store, plan: Plan, shard: int) -> bytes:
    """What lies under a shard's name, up to a byte more than a shard may have. Raises DataError for
    no regular file."""
    name = shard_name(shard)
    try:
        return store.read(name, 0, shard_bytes(plan, plan.rows_of(shard)) + 1)
    except TooShort as short:
        return short.content
    except NoRegularFile as error:
        raise DataError(f"{error}, so no shard of this plan; remove it, and run again") from error


def _checked(
    store: Store, plan: Plan, shard: int, content: bytes, bad: tuple[Quarantined, ...]
) -> tuple[Quarantined, ...]:
    """The quarantined images of a stored shard: those planned that it lacks. Raises DataError where
    it is no shard of this plan."""
    planned = dict(shard_images(store, plan, shard))
    try:
        present = image_indices(content, layout_of(plan))
    except ValueError:
        present = [-1]
    if present != sorted(set(present)) or not set(present) <= set(planned):
        raise DataError(
            f"{store.url}/{shard_name(shard)} is no shard of this plan; remove it, and run again"
        )
    reasons = {q.id: q.reason for q in bad}
    missing = (planned[i].id for i in planned if i not in set(present))
    return tuple(Quarantined(id=i, reason=reasons.get(i, UNREADABLE)) for i in missing)


def read_part(store: Store, plan: Plan, shard: int) -> Part:
    """Raises DataError for a part that is damaged or belongs to another plan."""
    where = f"{store.url}/{part_name(shard)}"
    content = read_document(store, part_name(shard))
    part = parse_record(Part, content, f"{where} is damaged (remove it, and run again)", DataError)
    if part.plan != plan.identity or part.shard.name != shard_name(shard):
        raise DataError(
            f"{where} was made for another plan (other images, views or tokenizer); remove it and "
            "its shard, and run again"
        )
    return part


def read_parts(store: Store, plan: Plan, shards: Iterable[int]) -> Iterator[Part]:
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(lambda k: read_part(store, plan, k), shards)


class Survey(NamedTuple):
    """What a store holds of a plan. done: shards by number, with the listing of their parts."""

    done: dict[int, Entry]
    shards: dict[str, Entry]
    finalized: bool

    def missing(self, plan: Plan) -> list[int]:
        return [k for k in range(plan.shards) if k not in self.done]


def survey(store: Store, plan: Plan) -> Survey:
    """One listing. A part whose shard is gone does not count."""
    parts: dict[int, Entry] = {}
    shards: dict[str, Entry] = {}
    finalized = False
    for entry in store.list():
        if (match := _PART.fullmatch(entry.name)) and entry.name == part_name(int(match[1])):
            parts[int(match[1])] = entry
        elif entry.name.startswith("tokens-"):
            shards[entry.name] = entry
        finalized |= entry.name == MANIFEST
    strays = [k for k in parts if k >= plan.shards]
    if strays:
        raise DataError(
            f"{store.url} holds parts of another plan, as {part_name(strays[0])}; use a folder of "
            "its own"
        )
    alone = [k for k in parts if shard_name(k) not in shards]
    empty = {
        k
        for k, part in zip(alone, read_parts(store, plan, alone), strict=True)
        if part.shard.rows == 0
    }
    done = {k: entry for k, entry in parts.items() if shard_name(k) in shards or k in empty}
    return Survey(done, shards, finalized)


def unclaimed(store: Store, shards: Sequence[int], start: int) -> Iterator[int]:
    """Those of `shards` that have no part when their turn comes, from place `start` on, round to
    it.

    Workers that know nothing of each other share the work by starting at different places; where
    two meet, both make the same bytes.
    """
    for i in range(len(shards)):
        shard = shards[(start + i) % len(shards)]
        if not any(entry.name == part_name(shard) for entry in store.list(part_name(shard))):
            yield shard


def finalize(
    store: Store,
    plan: Plan,
    bad_limit: float = 0.01,
    progress: Callable[[int], None] = lambda done: None,
) -> Manifest:
    """Merge the parts into `dataset.json`, without reading the shards again; then sweep away
    leftovers.

    Raises DataError for missing shards, sizes that are not as vouched for, parts of another plan,
    images that are neither in a shard nor quarantined, too many unreadable ones, or another
    `dataset.json`.
    """
    found = survey(store, plan)
    if missing := found.missing(plan):
        raise DataError(
            f"{store.url}: {len(missing)} of {plan.shards} shards are missing "
            f"({_numbers(missing)}); make them with `addp tokenize run`"
        )
    entries: list[ShardEntry] = []
    bad: list[Quarantined] = []
    wrong: list[int] = []
    for k, part in enumerate(read_parts(store, plan, range(plan.shards))):
        entry = part.shard
        size = found.shards[entry.name].size if entry.name in found.shards else 0
        if size == 0 and entry.rows:
            _stored(store, plan, k)  # says so where it is no regular file
        expected = shard_bytes(plan, entry.rows)
        if not size == entry.bytes == expected:
            raise DataError(
                f"{store.url}/{entry.name} has {size} bytes instead of {expected} for {entry.rows} "
                f"rows; remove it and {part_name(k)}, and run again"
            )
        if entry.rows + len(part.quarantined) != plan.rows_of(k):
            wrong.append(k)
        entries += [entry] if entry.rows else []
        bad += part.quarantined
        progress(k + 1)
    totals = Totals(plan.images, sum(entry.rows for entry in entries), len(bad))
    if wrong:
        raise DataError(
            f"{store.url} does not add up: {totals.text}; remove the files of shard "
            f"{_numbers(wrong)} ({part_name(wrong[0])}, {shard_name(wrong[0])}, ...), and run again"
        )
    assert not totals.lost
    check_bad(plan, len(bad), bad, bad_limit)
    if not entries:
        raise DataError(
            f"none of the {plan.images} images can be read: {bad[0].id}: {bad[0].reason}"
        )
    recipe, layout = plan.recipe, layout_of(plan)
    manifest = Manifest(
        shards=tuple(entries),
        stride=layout.stride,
        fields=layout.fields(),
        codebook_size=recipe.codebook_size,
        tokens=recipe.tokens,
        views=recipe.views,
        tokenizer=recipe.tokenizer,
        precision=recipe.precision,
        classes=plan.classes,
        class_titles=plan.class_titles,
        quarantined=tuple(bad),
    )
    if not store.create(MANIFEST, manifest_bytes(manifest)) and read_manifest(store) != manifest:
        raise DataError(
            f"{store.url} holds a {MANIFEST} of other shards; remove it, and finalize again"
        )
    store.sweep()
    return manifest


def _numbers(shards: list[int]) -> str:
    return ", ".join(map(str, shards[:8])) + (", ..." if len(shards) > 8 else "")
