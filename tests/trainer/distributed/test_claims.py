"""Claims: one winner, kept while it is renewed, free once its holder is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, Store, open_store
from tests.patience import PATIENCE, until
from trainer.distributed.claims import FOLDER, Claim, Claims


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "run").mkdir()
        return LocalStore(tmp_path / "run")
    return open_store(f"{request.getfixturevalue('bucket')}/run")


def as_of(store: Store, **owner: object) -> bytes:
    (entry,) = store.list(f"{FOLDER}/step-1.")
    return json.dumps({**json.loads(store.read(entry.name)), **owner}).encode()


def test_one_of_many_wins(store: Store) -> None:
    won: list[Claim] = []

    def want() -> None:
        claim = Claims(store, 5).take("step-1")
        if claim is not None:
            won.append(claim)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and Claims(store, 5).take("step-1") is None
    other = Claims(store, 5).take("step-1-ema")  # the EMA is another piece of work
    assert other is not None
    other.release()
    won[0].release()
    again = Claims(store, 5).take("step-1")
    assert again is not None
    again.release()
    assert not list(store.list(FOLDER))


def test_a_claim_outlives_its_lease_while_it_is_renewed(store: Store) -> None:
    claim = Claims(store, 0.4).take("step-1")
    assert claim is not None
    watcher, patient = Claims(store, 0.4), Claims(store, PATIENCE)
    target = f"{FOLDER}/step-1.1"

    def is_renewed(before: bytes) -> bool:
        assert patient.take("step-1") is None  # also while a renewal is on its way
        return store.read(target) != before

    for _ in range(6):  # four renewals take as long as the lease
        until(partial(is_renewed, store.read(target)))
        assert watcher.take("step-1") is None
    claim.release()


def test_a_holder_on_another_machine_is_waited_for(store: Store) -> None:
    holder = Claims(store, 60).take("step-1")
    assert holder is not None
    store.replace(f"{FOLDER}/step-1.1", as_of(store, host="elsewhere"))
    watcher, started = Claims(store, 0.5), time.monotonic()
    claim = until(partial(watcher.take, "step-1"))
    assert time.monotonic() - started > 0.5
    assert [e.name for e in store.list(FOLDER)] == [f"{FOLDER}/step-1.2"]
    holder.release()  # it was only asleep: what it removes is its own
    assert [e.name for e in store.list(FOLDER)] == [f"{FOLDER}/step-1.2"]
    claim.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(store: Store) -> None:
    holder = Claims(store, 60).take("step-1")
    assert holder is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    store.replace(f"{FOLDER}/step-1.1", as_of(store, process=gone.pid))
    claim = Claims(store, 60).take("step-1")
    assert claim is not None
    claim.release()
    holder.release()


def test_what_is_no_claim_is_waited_for_and_then_replaced(store: Store) -> None:
    """As a foreign write leaves it behind."""
    for content in (b"not JSON", b"[1]", b"{}"):
        store.replace(f"{FOLDER}/step-1.1", content)
        claims = Claims(store, 0.05)
        assert claims.take("step-1") is None and claims.holder("step-1") is None
        until(partial(claims.take, "step-1")).release()
        assert not list(store.list(FOLDER))
