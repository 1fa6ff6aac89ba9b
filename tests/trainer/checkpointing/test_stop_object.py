"""A STOP on the store stops the run that uploads there, and lies there no longer than the run
needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, ObjectMissing, Store, open_store
from tests.patience import until
from tests.s3_server import FaultProxy, environment
from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import Ranks, finish
from trainer.checkpointing import stop_object
from trainer.checkpointing.stop_object import StopObject
from trainer.pretrain import run_and_leave
from trainer.resilience.stopping import StopCause, StopRequest
from trainer.run_folder import STOP, RunFolder


class Asked(StopRequest):
    """A request that takes no signals."""

    def __init__(self) -> None:
        self._cause = None
        self._settled = True

    def await_cause(self) -> StopCause:
        return until(lambda: self._cause)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stop_object, "_PAUSE", 0.05)
    monkeypatch.setattr(stop_object, "_PARTING", 0.5)
    return


def looking_often(arguments: list[str]) -> None:
    stop_object._PAUSE = 0.2
    run_and_leave(arguments)


def threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("stop object")


def has_stop(store: Store) -> bool:
    return any(entry.name == STOP for entry in store.list(STOP))


def test_an_object_on_s3_stops_a_run(bucket: str, tokens: Path, tmp_path: Path) -> None:
    """It is removed then, and the run goes on later."""
    run, url = tmp_path / "run", f"{bucket}/runs/one"
    options = (*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={url}", "schedule.total=4000")
    arguments = [f"run={run}", *SMALL, *options]
    ranks = Ranks(looking_often, arguments, 2, tmp_path / "log")
    store = open_store(url)
    ranks.wait_for(RunFolder(run).metrics)
    store.create(f"{STOP}PED", b"another object")
    assert store.create(STOP, b"")  # an empty one, as `touch` makes it
    codes, output = ranks.wait()
    assert codes == [75, 75] and "stopped: at step " in output and f"{url}/{STOP}" in output
    last = RunFolder(run).read_exit()
    assert last is not None and last["stop"] == "file" and not has_stop(store)
    (record,) = incidents(run, "stopped")
    assert record["step"] > 0

    store.create(STOP, b"asked while nothing ran")
    codes, output = Ranks(looking_often, arguments, 2, tmp_path / "log").wait()
    assert codes == [75, 75] and f"resumed at step {record['step']}" in output, output
    assert not has_stop(store)
    shorter = f"schedule.total={record['step'] + 8}"
    finish(run, *options, shorter, "resume.allow=[schedule.total]")


@pytest.mark.usefixtures("quick")
def test_it_is_looked_for_until_it_is_there(tmp_path: Path) -> None:
    """Also where the store is not there yet, or has a folder of that name."""
    stop, root = Asked(), tmp_path / "store"
    StopObject(LocalStore(root), stop)
    time.sleep(0.2)
    (root / STOP).mkdir(parents=True)
    time.sleep(0.2)
    assert stop._cause is None
    (root / STOP).rmdir()
    LocalStore(root).create(STOP, b"x")
    assert stop.await_cause() == StopCause("file", f"{LocalStore(root).url}/{STOP} exists")


@pytest.mark.usefixtures("quick")
def test_a_store_that_does_not_answer_holds_up_nothing(
    bucket: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its client would wait for an answer for a day."""
    for name, value in environment(proxy.port, ADDP_STORAGE_TIMEOUT="86400").items():
        monkeypatch.setenv(name, value)
    store, stop = open_store(bucket), Asked()
    proxy.black_hole = True
    watch = StopObject(store, stop)
    watch.remove()
    assert f"if there is an object {STOP}, it will stop the next start" in capsys.readouterr().err
    proxy.heal()
    until(lambda: threads() == 1)  # the store has the request to remove it now
    store.create(STOP, b"")
    assert stop.await_cause().kind == "file"
    watch.remove()
    with pytest.raises(ObjectMissing):
        store.read(STOP)
    assert not capsys.readouterr().err
