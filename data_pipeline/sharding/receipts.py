"""Receipts of finished shards, and `finalize`, which makes `dataset.json` of them.

    tokens-000123.tar    a shard; it is created, never replaced: the first worker wins
    parts/000123.json    its receipt, stored after it: rows, bytes, checksums, unreadable images

    worker A   encode 123 ... create tar ... create receipt            123 is done
    worker B      encode 123 ......... tar is taken: read it back,
                                       write its receipt if A died before it could

The state of a job is this listing and nothing else, so any number of workers may die, start and
race.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import xxhash

from data_pipeline.sharding.options import BAD_LIMIT
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
_RECEIPT = re.compile(r"parts/([0-9]{6,19})\.json")


class ShardReceipt(Record):
    """Vouches for one finished shard: its bytes, and the images that it lacks.

    plan: `Plan.identity` of the plan that the shard belongs to.
    """

    plan: Sha256
    shard: ShardEntry
    quarantined: tuple[Quarantined, ...] = ()


def shard_name(shard: int) -> str:
    return f"tokens-{shard:06d}.tar"


def receipt_name(shard: int) -> str:
    return f"parts/{shard:06d}.json"  # data sets on disk have this name


def layout_of(plan: Plan) -> Layout:
    """Return the byte layout of the plan's shards."""
    return Layout(plan.recipe.views.views, plan.recipe.tokens)


def shard_bytes(plan: Plan, rows: int) -> int:
    """Return the size in bytes of a shard of `rows` rows; a shard without rows has no file."""
    return rows * layout_of(plan).stride + len(END) if rows else 0


def rows_in(plan: Plan, size: int) -> int:
    """Return the number of rows in a shard of `size` bytes."""
    return max(0, size - len(END)) // layout_of(plan).stride


def sound_receipt_bytes(plan: Plan, shard: int) -> int:
    """Return the size in bytes of the shard's receipt if all of its images could be read.

    Every other receipt is longer, so a listing tells which shards lack images.
    """
    rows = plan.rows_of(shard)
    size = shard_bytes(plan, rows)
    entry = ShardEntry(
        name=shard_name(shard), rows=rows, bytes=size, sha256="0" * 64, xxh3="0" * 32
    )
    return len(ShardReceipt(plan=plan.identity, shard=entry).model_dump_json())


def commit(
    store: Store, plan: Plan, shard: int, content: bytes, bad: tuple[Quarantined, ...]
) -> ShardReceipt:
    """Store a shard and its receipt, and return the receipt that is stored in the end.

    What another worker stored before stands. content: the shard's bytes, empty if none of its
    images could be read. bad: its unreadable images. Raises DataError if the stored shard is not
    one of this plan.
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
    receipt = ShardReceipt(plan=plan.identity, shard=entry, quarantined=bad)
    if store.create(receipt_name(shard), receipt.model_dump_json().encode()):
        return receipt
    stored_receipt = read_receipt(store, plan, shard)
    if stored_receipt.shard != receipt.shard:
        raise DataError(
            f"{store.url}/{receipt_name(shard)} vouches for other bytes than {name} holds; remove "
            "both, and run again"
        )
    return stored_receipt


def _stored(store: Store, plan: Plan, shard: int) -> bytes:
    """Read what lies under a shard's name, up to one byte more than a shard may have.

    Raises DataError if it is no regular file.
    """
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
    """Return the quarantined images of a stored shard: the planned images that it lacks.

    bad: what we ourselves could not read; it gives the reasons. Raises DataError if `content` is no
    shard of this plan.
    """
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


def read_receipt(store: Store, plan: Plan, shard: int) -> ShardReceipt:
    """Read a shard's receipt. Raises DataError if it is damaged or belongs to another plan."""
    where = f"{store.url}/{receipt_name(shard)}"
    content = read_document(store, receipt_name(shard))
    receipt = parse_record(
        ShardReceipt, content, f"{where} is damaged (remove it, and run again)", DataError
    )
    if receipt.plan != plan.identity or receipt.shard.name != shard_name(shard):
        raise DataError(
            f"{where} was made for another plan (other images, views or tokenizer); remove it and "
            "its shard, and run again"
        )
    return receipt


def read_receipts(store: Store, plan: Plan, shards: Iterable[int]) -> Iterator[ShardReceipt]:
    """Read the receipts of `shards` in this order, many at a time; raises as `read_receipt`."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(lambda k: read_receipt(store, plan, k), shards)


class Survey(NamedTuple):
    """What a store holds of a plan.

    done: the receipts of the finished shards, by shard number. shards: the stored shards, by name.
    finalized: whether `dataset.json` is there.
    """

    done: dict[int, Entry]
    shards: dict[str, Entry]
    finalized: bool

    def missing(self, plan: Plan) -> list[int]:
        """Return the numbers of the shards that are not done, in order."""
        return [k for k in range(plan.shards) if k not in self.done]


def survey(store: Store, plan: Plan) -> Survey:
    """List the store once, and say what of the plan is done.

    A receipt whose shard is gone does not count. Raises DataError for receipts of another plan.
    """
    receipts: dict[int, Entry] = {}
    shards: dict[str, Entry] = {}
    finalized = False
    for entry in store.list():
        if (match := _RECEIPT.fullmatch(entry.name)) and entry.name == receipt_name(int(match[1])):
            receipts[int(match[1])] = entry
        elif entry.name.startswith("tokens-"):
            shards[entry.name] = entry
        finalized |= entry.name == MANIFEST
    strays = [k for k in receipts if k >= plan.shards]
    if strays:
        raise DataError(
            f"{store.url} holds receipts of another plan, as {receipt_name(strays[0])}; use a "
            "folder of its own"
        )
    alone = [k for k in receipts if shard_name(k) not in shards]
    empty = {
        k
        for k, receipt in zip(alone, read_receipts(store, plan, alone), strict=True)
        if receipt.shard.rows == 0
    }
    done = {k: entry for k, entry in receipts.items() if shard_name(k) in shards or k in empty}
    return Survey(done, shards, finalized)


def unclaimed(store: Store, shards: Sequence[int], start: int) -> Iterator[int]:
    """Yield those of `shards` that have no receipt when their turn comes.

    The turns begin at index `start` of `shards` and wrap around. Workers that know nothing of each
    other share the work by starting at different indices; where two meet, both make the same bytes.
    """
    for i in range(len(shards)):
        shard = shards[(start + i) % len(shards)]
        if not any(entry.name == receipt_name(shard) for entry in store.list(receipt_name(shard))):
            yield shard


def finalize(
    store: Store,
    plan: Plan,
    bad_limit: float = BAD_LIMIT,
    progress: Callable[[int], None] = lambda done: None,
) -> Manifest:
    """Merge the receipts into `dataset.json` without reading the shards again; then sweep away
    leftovers.

    bad_limit: share of unreadable images that may be missing. progress: called with the number of
    receipts read so far. Raises DataError for missing shards, sizes that no receipt vouches for,
    receipts of another plan, images that are neither in a shard nor quarantined, too many
    unreadable images, or another `dataset.json`.
    """
    state = survey(store, plan)
    if missing := state.missing(plan):
        raise DataError(
            f"{store.url}: {len(missing)} of {plan.shards} shards are missing "
            f"({_numbers(missing)}); make them with `addp tokenize run`"
        )
    entries: list[ShardEntry] = []
    bad: list[Quarantined] = []
    wrong: list[int] = []
    for k, receipt in enumerate(read_receipts(store, plan, range(plan.shards))):
        entry = receipt.shard
        size = state.shards[entry.name].size if entry.name in state.shards else 0
        if size == 0 and entry.rows:
            _stored(store, plan, k)  # raises if it is no regular file
        expected = shard_bytes(plan, entry.rows)
        if not size == entry.bytes == expected:
            raise DataError(
                f"{store.url}/{entry.name} has {size} bytes instead of {expected} for {entry.rows} "
                f"rows; remove it and {receipt_name(k)}, and run again"
            )
        if entry.rows + len(receipt.quarantined) != plan.rows_of(k):
            wrong.append(k)
        entries += [entry] if entry.rows else []
        bad += receipt.quarantined
        progress(k + 1)
    totals = Totals(plan.images, sum(entry.rows for entry in entries), len(bad))
    if wrong:
        raise DataError(
            f"{store.url} does not add up: {totals.text}; remove the files of shard "
            f"{_numbers(wrong)} ({receipt_name(wrong[0])}, {shard_name(wrong[0])}, ...), and run "
            "again"
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
