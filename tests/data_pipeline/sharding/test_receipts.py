"""Commit, survey, finalize: what workers leave behind, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.job_status import count, job_status
from data_pipeline.sharding.plan import Plan
from data_pipeline.sharding.quarantine import Totals
from data_pipeline.sharding.receipts import (
    commit,
    finalize,
    layout_of,
    read_receipt,
    receipt_name,
    shard_name,
    sound_receipt_bytes,
    survey,
    unclaimed,
)
from data_pipeline.sharding.verify import verify
from data_pipeline.shards.manifest import MANIFEST, read_manifest
from data_pipeline.storage import LocalStore, open_store
from model.errors import DataError
from model.vq import VQTokenizer
from tests.datasets import job, plan

RECIPE = ViewRecipe(size=16, views=2)


@pytest.fixture
def made(images: Path, tokenizer: VQTokenizer, tmp_path: Path) -> tuple[LocalStore, Plan]:
    """Make all four shards of a plan, and do not finalize it."""
    planned = plan(images, tmp_path / "out", tokenizer, RECIPE, rows=32)
    assert len(list(job(planned, tmp_path / "out", tokenizer).run(range(4)))) == 4
    return LocalStore(tmp_path / "out"), planned


def test_a_survey_is_one_listing(made: tuple[LocalStore, Plan]) -> None:
    store, planned = made
    state = survey(store, planned)
    assert sorted(state.done) == [0, 1, 2, 3] and not state.missing(planned) and not state.finalized
    assert {entry.size for k, entry in state.done.items()} == {
        sound_receipt_bytes(planned, k) for k in range(4)
    }
    (store.root / shard_name(2)).unlink()
    (store.root / receipt_name(3)).unlink()
    assert survey(store, planned).missing(planned) == [2, 3]
    assert list(unclaimed(store, [0, 1, 3], 1)) == [3] and list(unclaimed(store, [3, 7], 1)) == [
        7,
        3,
    ]
    store.replace(receipt_name(9), b"{}")
    with pytest.raises(DataError, match=r"receipts of another plan, as parts/000009\.json"):
        survey(store, planned)


def test_a_second_worker_changes_nothing(
    made: tuple[LocalStore, Plan], tokenizer: VQTokenizer
) -> None:
    store, planned = made
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    receipts = list(job(planned, store.root, tokenizer).run(range(4)))
    assert [r.shard.name for r in receipts] == [shard_name(k) for k in range(4)]
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


def test_a_shard_of_a_machine_that_rounds_differently_stands(made: tuple[LocalStore, Plan]) -> None:
    store, planned = made
    stored = store.read(shard_name(1))
    # Any token: the stored bytes win, and the receipt describes them.
    layout = planned.recipe.tokens
    ours = bytearray(stored)
    ours[512 + 128] ^= 1
    assert layout and commit(store, planned, 1, bytes(ours), ()) == read_receipt(store, planned, 1)
    assert store.read(shard_name(1)) == stored
    (store.root / receipt_name(1)).unlink()  # its maker died before vouching for it
    receipt = commit(store, planned, 1, bytes(ours), ())
    assert receipt.shard.bytes == len(stored) and not list(finalize_problems(store, planned))


def finalize_problems(store: LocalStore, planned: Plan) -> list[str]:
    manifest = finalize(store, planned)
    return [problem for check in verify(store, manifest) for problem in check.problems]


def test_something_else_under_a_shards_name_is_refused(made: tuple[LocalStore, Plan]) -> None:
    store, planned = made
    content = store.read(shard_name(1))
    for strange in (b"not a shard", store.read(shard_name(2))):
        (store.root / shard_name(1)).write_bytes(strange)
        with pytest.raises(
            DataError, match=r"tokens-000001\.tar is no shard of this plan; remove it"
        ):
            commit(store, planned, 1, content, ())
    (store.root / shard_name(1)).unlink()
    damaged = bytearray(content)
    damaged[512 + 130] ^= 1
    with pytest.raises(DataError, match="vouches for other bytes"):
        commit(store, planned, 1, bytes(damaged), ())


Damage = Callable[[LocalStore], object]


def edit(name: str, change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    def apply(store: LocalStore) -> None:
        content = json.loads(store.read(name))
        change(content)
        store.replace(name, json.dumps(content).encode())

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: (s.root / receipt_name(1)).unlink(), r"1 of 4 shards are missing \(1\)"),
        (lambda s: (s.root / shard_name(0)).unlink(), r"1 of 4 shards are missing \(0\)"),
        (lambda s: s.replace(shard_name(2), s.read(shard_name(2))[:-512]), "bytes instead of"),
        (lambda s: s.replace(receipt_name(2), b"{"), r"parts/000002\.json is damaged"),
        (edit(receipt_name(2), lambda c: c.update(plan="0" * 64)), "made for another plan"),
        (lambda s: s.replace(receipt_name(2), s.read(receipt_name(1))), "made for another plan"),
        (
            edit(receipt_name(2), lambda c: c["shard"].update(rows=31)),
            "instead of 64512 for 31 rows",
        ),
        (lambda s: s.create(MANIFEST, b"{}"), "not readable as a token data set"),
    ],
)
def test_finalize_refuses(made: tuple[LocalStore, Plan], damage: Damage, words: str) -> None:
    store, planned = made
    damage(store)
    with pytest.raises(DataError, match=words):
        finalize(store, planned)


def test_an_image_that_is_neither_stored_nor_quarantined(made: tuple[LocalStore, Plan]) -> None:
    """Shard and receipt agree with each other, and not with the plan: the list of quarantined
    images was lost."""
    store, planned = made
    content = store.read(shard_name(2))
    for name in (shard_name(2), receipt_name(2)):
        store.remove(name)
    commit(store, planned, 2, content[2 * layout_of(planned).stride :], ())
    totals = count(store, planned, survey(store, planned), {})
    assert totals == Totals(120, 118, 0) and totals.lost == 2
    assert (
        job_status(store, planned, survey(store, planned), {}).text.splitlines()[1] == totals.text
    )
    with pytest.raises(
        DataError,
        match=r"120 images planned, 118 stored, 0 quarantined, 2 UNACCOUNTED FOR; remove the "
        r"files of shard 2 "
        r"\(parts/000002\.json, tokens-000002\.tar, \.\.\.\), and run again",
    ):
        finalize(store, planned)


def test_finalize_twice_and_verify(made: tuple[LocalStore, Plan]) -> None:
    store, planned = made
    manifest = finalize(store, planned)
    assert finalize(store, planned) == manifest == read_manifest(store.root)
    assert manifest.rows == 120 and [c.problems for c in verify(store, manifest)] == [[]] * 4
    flipped = bytearray(store.read(shard_name(1)))
    flipped[700] ^= 64
    store.replace(shard_name(1), bytes(flipped))
    store.replace(shard_name(2), store.read(shard_name(2))[:-1])
    (store.root / shard_name(3)).unlink()
    problems = {c.name: " ".join(c.problems) for c in verify(store, manifest)}
    assert (
        not problems[shard_name(0)]
        and "sha256" in problems[shard_name(1)]
        and "xxh3" in problems[shard_name(1)]
    )
    assert "bytes instead of" in problems[shard_name(2)] and problems[shard_name(3)] == "is missing"


def test_swapped_shards_are_found(made: tuple[LocalStore, Plan]) -> None:
    store, planned = made
    manifest = finalize(store, planned)
    swapped = manifest.model_copy(
        update={"shards": (manifest.shards[1], manifest.shards[0], *manifest.shards[2:])}
    )
    assert ["repeats images of an earlier shard"] in [
        c.problems for c in verify(open_store(store.root), swapped)
    ]
