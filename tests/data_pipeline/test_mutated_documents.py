"""Valid documents with one value dropped, retyped, negated, enlarged or doubled: each is read as a
sound object, or refused in one line. The fingerprint is made anew, so that it is the value that is
looked at."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.sharding.job_status import job_status
from data_pipeline.sharding.plan import PLAN, read_plan, shard_images
from data_pipeline.sharding.receipts import finalize, survey
from data_pipeline.shards.manifest import MANIFEST, read_manifest
from data_pipeline.storage import LocalStore, StorageError
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from model.errors import DataError
from tests.hostile.tiny_job import RECEIPT, ROWS, copied, sealed

_OTHERS = (None, True, 0, -1, 1.5, "", "x", "../x", [], [1], {}, {"a": 1}, 2**63, 10**30)


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value inside a document."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*above, key)
        yield from _places(inner, (*above, key))


def _mutated(document: dict[str, Any], draw: st.DataObject) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *above, key = draw.draw(st.sampled_from(list(_places(document))))
    holder: Any = document
    for step in above:
        holder = holder[step]
    change = draw.draw(st.sampled_from(("drop", "other", "negate", "enlarge", "double")))
    value = holder[key]
    if change == "drop":
        del holder[key]
    elif change == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif change in ("negate", "enlarge") and type(value) in (int, float):
        holder[key] = (
            -value
            if change == "negate"
            else value * draw.draw(st.sampled_from((2, 1000, 2**40))) + 1
        )
    else:
        holder[key] = draw.draw(st.sampled_from(_OTHERS))
    return document


def _read_data_set(store: LocalStore) -> None:
    manifest = read_manifest(store)
    loader = TokenLoader(store.root, global_batch=ROWS, seed=0, options=LoaderOptions(window=2))
    try:
        for step in range(loader.schedule.steps_per_epoch):
            batch = loader.batch(step, 0, ROWS)
            assert batch.ids.max() < manifest.codebook_size and batch.labels.max() < len(
                manifest.classes
            )
    finally:
        loader.close()


def _read_plan(store: LocalStore) -> None:
    plan = read_plan(store)
    listed = [image for k in range(plan.shards) for _, image in shard_images(store, plan, k)]
    assert len(listed) == plan.images and all(0 <= p.label < len(plan.classes) for p in listed)


def _read_receipt(store: LocalStore) -> None:
    plan = read_plan(store)
    assert job_status(store, plan, survey(store, plan), {}).done <= plan.shards
    finalize(store, plan)


def _refusal(read: Callable[[LocalStore], None], store: LocalStore) -> str:
    try:
        read(store)
    except (DataError, StorageError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "read"),
    [(MANIFEST, _read_data_set), (PLAN, _read_plan), (RECEIPT, _read_receipt)],
    ids=[MANIFEST, PLAN, "receipt"],
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draw=st.data())
def test_is_sound_or_refused_in_one_line(
    name: str, read: Callable[[LocalStore], None], draw: st.DataObject, tmp_path: Path
) -> None:
    if not (tmp_path / "tokens").exists():
        copied(tmp_path)
        (tmp_path / "original").write_bytes((tmp_path / "tokens" / name).read_bytes())
    store = LocalStore(tmp_path / "tokens", closed=True)
    document = _mutated(json.loads((tmp_path / "original").read_bytes()), draw)
    (store.root / name).write_bytes(
        sealed(document) if name == MANIFEST else json.dumps(document).encode()
    )
    assert "\n" not in _refusal(read, store)
