"""Runs are told apart: in their folders, in their manifests and on their stores, whoever lives,
dies or is configured anew."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.storage import LocalStore, ObjectMissing, StorageError, Store, open_store
from tests.patience import until
from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE
from tests.trainer.worlds import World, finish, run_world
from trainer.checkpointing import ownership
from trainer.checkpointing.catalog import RemoteCatalog
from trainer.checkpointing.ownership import OtherOwner, Ownership, new_identity
from trainer.export import open_network
from trainer.run_folder import DONE, RUN, RunFolder, write_json

SHORT = "schedule.total=4"
ENDLESS = ("schedule.total=100000", "checkpoint.every=10")


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"{bucket}/run")


def owner_of(store: Store, path: Path, lease: float = 60) -> Ownership:
    return Ownership(RunFolder(path), store, lease, "start")


def seat(store: Store) -> str:
    """Name of the lock object."""
    (entry,) = store.list("owner/")
    return entry.name


def as_elsewhere(store: Store, beat: int) -> None:
    """As if the holder lived on another machine, and had renewed so often."""
    name = seat(store)
    store.replace(
        name,
        json.dumps({**json.loads(store.read(name)), "host": "elsewhere", "beat": beat}).encode(),
    )


def has(store: Store, name: str) -> bool:
    try:
        store.read(name)
    except ObjectMissing:
        return False
    return True


def trains(run: Path, world: World) -> None:
    """Wait until it has made a step of its own."""
    before = len(RunFolder(run).read_metrics())
    until(
        lambda: len(RunFolder(run).read_metrics()) > before,
        alive=world.alive,
        said=world.log.read_text,
    )


def test_an_extended_run_is_done_no_more(tokens: Path, store: Store, tmp_path: Path) -> None:
    """Neither at home nor on the store; what generates or exports takes the newest checkpoint, and
    the network of before is named after its step. A start that is refused changes nothing."""
    run, options = (
        tmp_path / "run",
        [*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={store.url}"],
    )
    output = finish(run, *options, SHORT, processes=1)
    folder = RunFolder(run)
    assert (
        f"done at step 4: {folder.network}. Next: `addp evaluate {run} --suite held-out --tokens "
        in output
    )
    assert folder.is_done and has(store, DONE)
    codes, output = run_world(run, *options, *ENDLESS, processes=1)
    assert codes == [78] and "schedule.total: 4.0 -> 100000.0" in output, output
    assert "add 'resume.allow=[schedule.total]'" in output
    assert folder.is_done and has(store, DONE) and folder.network.exists()

    world = World(run, [*options, *ENDLESS, "resume.allow=[schedule.total]"], 1, None)
    trains(run, world)
    assert not folder.is_done and not folder.network.exists()
    assert (run / "network-step-00000004.safetensors").exists()
    folder.stop.touch()
    codes, output = world.wait()
    assert codes == [75] and not folder.is_done and not has(store, DONE), output
    assert re.search(rf"from {run}/checkpoints/step-00000004, saved \d+ (s|min) ago \(", output), (
        output
    )
    assert "changed since that checkpoint: schedule.total: 4.0 -> 100000.0" in output
    step = open_network(str(run), None, "raw").step
    assert step is not None and step > 4 and RemoteCatalog(store).steps()[0] == step
    assert not list(store.list("owner/"))  # who stops lets go


def test_an_empty_folder_takes_the_run_of_its_store(
    tokens: Path, store: Store, tmp_path: Path
) -> None:
    """With the same configuration only: another one is refused before anything of the run comes
    into the folder."""
    options = [*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={store.url}", SHORT]
    finish(tmp_path / "first", *options, processes=1)
    identity = RunFolder(tmp_path / "first").read_identity()
    assert identity is not None and json.loads(store.read(RUN))["run"] == identity["run"]
    assert RemoteCatalog(store).manifest(4).run == identity["run"]

    second = tmp_path / "second"
    codes, output = run_world(second, *options, "optimizer.base_lr=0.2", processes=1)
    assert (
        codes == [78] and "optimizer.base_lr: 0.03 -> 0.2" in output and "resumed" not in output
    ), output
    assert not (second / "metrics.jsonl").exists() and not (second / RUN).exists()
    output = finish(
        second, *options, "optimizer.base_lr=0.2", "resume.allow=[optimizer.base_lr]", processes=1
    )
    assert f"resumed at step 4 of 4 on 1 ranks from {store.url}/checkpoints/step-00000004" in output
    assert RunFolder(second).read_identity()["run"] == identity["run"]  # type: ignore[index]


def test_two_runs_with_one_store(tokens: Path, store: Store, tmp_path: Path) -> None:
    """The second to come is refused while the first one lives; a first one that was taken over
    ends, and says who has taken it."""
    options = [*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={store.url}", *ENDLESS]
    first = World(tmp_path / "first", options, 1, None)
    trains(tmp_path / "first", first)
    identity = RunFolder(tmp_path / "first").read_identity()
    assert identity is not None
    codes, output = World(tmp_path / "second", options, 1, None).wait()
    pid = first.ranks[0].pid
    assert codes == [78] and f"is in use by process {pid} on " in output, output
    assert f"(run {identity['run']} in {tmp_path / 'first'}, started 20" in output
    assert first.alive()

    mine = json.loads(store.read(seat(store)))
    other = {**mine, "host": "elsewhere", "process": 7, "holder": "another"}
    store.create("owner/run.2", json.dumps(other).encode())
    codes, output = first.wait()
    assert codes == [78] and "was taken over by process 7 on elsewhere" in output, output
    (record,) = incidents(tmp_path / "first", "uploads ended")
    assert (
        "process 7 on elsewhere" in record["error"]
        and RunFolder(tmp_path / "first").read_exit()["code"] == 78
    )  # type: ignore[index]


def test_a_live_holder_is_never_taken_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = owner_of(store, tmp_path / "a"), owner_of(store, tmp_path / "b")
    assert first.enter()
    assert not second.enter()  # a process that was just killed may still be ending
    monkeypatch.setattr(ownership, "_ENDING", 0.0)
    with pytest.raises(OtherOwner, match="is in use by process"):
        second.enter()
    as_elsewhere(store, 7)
    third = owner_of(store, tmp_path / "c", lease=0.2)
    assert not third.enter()
    as_elsewhere(store, 8)  # its next sign of life
    with pytest.raises(OtherOwner, match=r"is in use by process \d+ on elsewhere"):
        third.enter()
    first.release()
    assert third.enter()
    third.release()


def test_a_silent_holder_elsewhere_is_taken_over_and_finds_out(
    store: Store, tmp_path: Path
) -> None:
    first, second = owner_of(store, tmp_path / "a"), owner_of(store, tmp_path / "b", lease=0.3)
    assert first.enter()
    first.confirm()
    as_elsewhere(store, 7)
    started = time.monotonic()
    until(second.enter)
    assert time.monotonic() - started > 0.3 and second.run == first.run
    second.confirm()
    with pytest.raises(OtherOwner, match="was taken over by process"):
        first.confirm()
    first.release()
    assert seat(store) == "owner/run.2"
    second.release()


def test_a_holder_that_slept_while_others_came_and_went_holds_nothing(
    store: Store, tmp_path: Path
) -> None:
    first, second, third = (owner_of(store, tmp_path / name, lease=0.2) for name in "abc")
    assert first.enter() and first._claim is not None
    first.confirm()
    first._claim._ended.set()  # asleep: it renews no more
    first._claim._thread.join()
    as_elsewhere(store, 7)
    until(second.enter)
    second.release()
    assert third.enter() and seat(store) == "owner/run.1"  # under the first one's own name
    first._claim.renew()
    third.confirm()
    with pytest.raises(OtherOwner, match="was taken over by process"):
        first.confirm()
    first.release()
    assert seat(store) == "owner/run.1"
    third.release()
    with pytest.raises(OtherOwner):  # nor now that nobody holds it
        first.confirm()


class Failing(LocalStore):
    """Every method fails once, at its `nth` call of all: before it does anything, or after it (an
    answer is lost)."""

    def __init__(self, root: Path, nth: int, after: bool) -> None:
        super().__init__(root)
        self._left, self._after = nth, after

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in ("list", "read", "create", "replace", "remove"):
            return value

        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise StorageError("no answer")
            result = value(*arguments)
            result = list(result) if name == "list" else result
            if self._left == 0:
                raise StorageError("no answer")
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_fails_at_any_moment(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try succeeds: what the first one left there is not taken for another's."""
    monkeypatch.setattr(ownership, "_ENDING", 0.0)
    for nth in range(1, 25):
        store = Failing(tmp_path / str(nth), nth, after)
        owner = owner_of(store, tmp_path / "run")
        failures = 0
        for _ in range(3):
            try:
                owner.confirm()
            except StorageError:
                failures += 1
        assert failures <= 1 and json.loads(LocalStore(store.root).read(RUN))["run"] == owner.run
        owner.release()
        if failures:  # else it failed while it was released, or not at all
            assert not list(LocalStore(store.root).list("owner/"))


def as_run(path: Path, run: str) -> Path:
    write_json(RunFolder(path).identity, new_identity(run))
    return path


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        (None, None, "new"),
        (None, "mine", "mine"),
        ("theirs", None, "theirs"),
        ("theirs", "theirs", "theirs"),
        ("theirs", "mine", "refused"),
        ("theirs", "checkpoints without an id", "refused"),
        ("[1]", "mine", "refused"),
    ],
)
def test_which_run_it_is(
    there: str | None, here: str | None, expected: str, tmp_path: Path
) -> None:
    store, path = LocalStore(tmp_path / "store"), tmp_path / "run"
    if there:
        store.create(
            RUN, there.encode() if there == "[1]" else json.dumps(new_identity(there)).encode()
        )
    if here in ("mine", "theirs"):
        as_run(path, str(here))
    elif here:
        (path / "checkpoints" / "step-00000004").mkdir(parents=True)
    owner = owner_of(store, path)
    if expected == "refused":
        with pytest.raises(OtherOwner, match=r"holds run theirs|does not name a run"):
            owner.enter()
        assert not list(store.list("owner/"))
        return
    assert owner.enter()
    owner.confirm()
    identity: dict[str, Any] = json.loads(store.read(RUN))
    assert identity["run"] == owner.run and (
        owner.run == expected or (expected == "new" and len(owner.run) == 12)
    )
    owner.release()
