"""The frozen work list: a function of the images and the recipe, however they were listed."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.plan import PLAN, Plan, PlanRecipe, make_plan, read_plan, shard_images
from data_pipeline.storage import LocalStore, ObjectMissing, Store
from model.errors import DataError

RECIPE = PlanRecipe(
    views=ViewRecipe(size=16, views=2), tokenizer="7" * 64, codebook_size=16, tokens=16, rows=10
)
CLASSES = ("cat", "dog")


def images(count: int) -> list[ImageEntry]:
    """List images, of which some are files of their own and some lie in tars."""
    makers = (
        lambda i: ImageEntry(f"cat/{i}.png", 0, f"cat/{i}.png", 100 + i),
        lambda i: ImageEntry(f"dog/{i}.jpg", 1, f"tar-{i % 3}.tar", 100 + i, 512 * i),
        lambda i: ImageEntry(f'dog/"{i}" ü.jpg', 1, f"other/{i}", 100 + i),
    )
    return [makers[i % 3](i) for i in range(count)]


def make(
    store: Store, listed: list[ImageEntry], recipe: PlanRecipe = RECIPE, source: str = "somewhere"
) -> Plan:
    return make_plan(store, source, listed, recipe, lambda: (CLASSES, ()))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 64), rows=st.integers(1, 20), order=st.randoms(use_true_random=False))
def test_every_image_lies_in_one_row(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows: int, order: random.Random
) -> None:
    listed = images(count)
    order.shuffle(listed)
    store = LocalStore(tmp_path_factory.mktemp("plan"))
    plan = make(store, listed, RECIPE.model_copy(update={"rows": rows}))
    planned = [item for k in range(plan.shards) for item in shard_images(store, plan, k)]
    assert [index for index, _ in planned] == list(range(count)) and plan.images == count
    assert sorted(p for _, p in planned) == sorted(listed)
    assert [plan.rows_of(k) for k in range(plan.shards)] == [
        len(shard_images(store, plan, k)) for k in range(plan.shards)
    ]


def test_the_order_does_not_depend_on_the_listing(tmp_path: Path) -> None:
    listed = images(40)
    first, second = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    a, b = make(first, listed), make(second, listed[::-1], source="elsewhere")
    ids = [
        [p.id for k in range(4) for _, p in shard_images(s, p_, k)]
        for s, p_ in ((first, a), (second, b))
    ]
    assert ids[0] == ids[1] != [p.id for p in listed]
    assert a.identity == b.identity
    other = make(LocalStore(tmp_path / "c"), listed, RECIPE.model_copy(update={"seed": 1}))
    assert other.images_sha256 != a.images_sha256
    lines = gzip.decompress(first.read(a.list)).splitlines()  # readable with zcat
    assert len(lines) == 40 and json.loads(lines[0])[0] == ids[0][0]


def test_made_again_it_must_be_the_same(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan = make(store, images(30))
    assert make(store, images(30), source="moved") == plan == read_plan(store)
    with pytest.raises(DataError, match="another plan: it differs in images, images_sha256"):
        make(store, images(31))
    with pytest.raises(
        DataError, match="another plan: it differs in tokenizer, precision; choose an empty folder"
    ):
        make(
            store,
            images(30),
            RECIPE.model_copy(update={"tokenizer": "8" * 64, "precision": "bf16"}),
        )


def test_refusals(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(DataError, match="no images"):
        make(store, [])
    with pytest.raises(DataError, match=r"cat/0\.png is listed twice"):
        make(store, images(9) + images(1))
    with pytest.raises(ObjectMissing, match="addp tokenize plan"):
        read_plan(store)
    plan = make(store, images(30))
    content = bytearray(store.read(plan.list))
    content[plan.slices[1] + 30] ^= 1
    store.replace(plan.list, bytes(content))
    assert len(shard_images(store, plan, 0)) == 10
    with pytest.raises(DataError, match="damaged in the slice of shard 1"):
        shard_images(store, plan, 1)
    store.replace(PLAN, b'{"format": "addp-plan-1"}')
    with pytest.raises(DataError, match="not readable as a plan"):
        read_plan(store)


@pytest.mark.parametrize("name", ["/etc/x.jpg", "a/../../x.jpg", ".."])
def test_a_plan_names_nothing_outside_its_source(tmp_path: Path, name: str) -> None:
    store = LocalStore(tmp_path)
    plan = make(store, [ImageEntry("x.jpg", 0, name, 5)])
    with pytest.raises(
        DataError, match=r"is damaged in the slice of shard 0: '.*' does not lie in the source"
    ):
        shard_images(store, plan, 0)
    content = json.loads(store.read(PLAN))
    store.replace(PLAN, json.dumps({**content, "objects": [name]}).encode())
    with pytest.raises(
        DataError, match=r"not readable as a plan .*objects: .* does not lie in the source"
    ):
        read_plan(store)
