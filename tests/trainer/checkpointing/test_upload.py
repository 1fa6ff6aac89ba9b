"""Checkpoints on object storage: as valid or invisible there as at home, and good to go on from on
another machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, Store, open_store
from tests.patience import PATIENCE, until
from tests.s3_server import FaultProxy, environment
from tests.trainer.checkpointing.test_format import make
from tests.trainer.comparing import cut_back, incidents, same_end
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import World, finish, run_world
from trainer.checkpointing import admin, upload
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog, open_catalog
from trainer.checkpointing.format import MANIFEST, Damaged, manifest_name
from trainer.checkpointing.run_records import fetch_records
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import CheckpointSection
from trainer.run_folder import DONE, RunFolder

EMA = "ema_decay=0.9"


def test_another_machine_goes_on_from_the_store(
    undisturbed: Path, bucket: str, tokens: Path, tmp_path: Path
) -> None:
    """The first one dies after its second checkpoint is on S3, and its disk is lost."""
    url = f"{bucket}/runs/one"
    options = (
        *MAGE,
        f"data.tokens={tokens}",
        EMA,
        f"checkpoint.upload={url}",
        "checkpoint.permanent_every=4",
    )
    finish(tmp_path / "first", *options)
    copies = RemoteCatalog(open_store(url))
    assert copies.steps() == [12, 8, 4]
    copies.remove(12)
    output = finish(tmp_path / "second", *options)
    assert "resumed at step 8 of 12" in output
    assert same_end(tmp_path / "second", undisturbed)


def test_a_damaged_copy_is_gone_round(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """On the store as at home; the reasons are given."""
    store = tmp_path / "store"
    options = (
        *MAGE,
        f"data.tokens={tokens}",
        EMA,
        f"checkpoint.upload={store}",
        "checkpoint.permanent_every=4",
    )
    finish(tmp_path / "first", *options)
    assert RemoteCatalog(LocalStore(store)).steps() == [12, 8, 4]
    (newest,) = (store / "checkpoints" / "step-00000012").glob("rank-00001*")
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    (other,) = (store / "checkpoints" / "step-00000008").glob("rank-00000*")
    other.unlink()
    output = finish(tmp_path / "second", *options, processes=1)
    assert "step-00000012" in output and "rank-00001.safetensors is damaged" in output
    assert "refused a checkpoint" in output and "resumed at step 4 of 12" in output


@pytest.mark.parametrize(
    "point",
    [("os.link", ("rank-00001",)), ("os.rename", (MANIFEST, "store"))],
    ids=["file", "manifest"],
)
def test_killed_while_it_uploads(
    point: tuple[str, tuple[str, ...]], tokens: Path, tmp_path: Path
) -> None:
    """Nothing is visible there before its manifest, and the next start brings the rest."""
    store, run = tmp_path / "store", tmp_path / "run"
    options = (*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={store}")
    codes, _ = run_world(run, *options, sabotage=Sabotage(*point))
    assert codes[0] == -9 and not RemoteCatalog(LocalStore(store)).steps()
    finish(run, *options)
    rows = admin.verified(RemoteCatalog(LocalStore(store)), None)
    assert rows and all(row["state"] == "valid" for row in rows) and rows[0]["step"] == 12


def test_a_store_that_is_down_does_not_stop_training(
    undisturbed: Path,
    bucket: str,
    proxy: FaultProxy,
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It refuses connections from the restart to the last step; then it answers again, and the copy
    is complete. A run that has no checkpoint at hand does not start while it cannot ask the
    store."""
    for name, value in environment(proxy.port, AWS_MAX_ATTEMPTS="1").items():
        monkeypatch.setenv(name, value)
    run, url = cut_back(undisturbed, tmp_path / "run", 4), f"{bucket}/runs/two"
    proxy.refuse = True
    options = [
        *MAGE,
        f"data.tokens={tokens}",
        EMA,
        f"checkpoint.upload={url}",
        f"checkpoint.retry_seconds={PATIENCE}",
    ]
    codes, output = run_world(tmp_path / "fresh", *options, processes=1)
    assert codes == [74] and "no answer" in output
    world = World(run, options, 2, None)
    world.wait_for(run / "checkpoints" / "step-00000012" / MANIFEST)
    proxy.heal()
    codes, output = world.wait()
    assert codes == [0, 0] and "resumed at step 4" in output, output
    late, again = (
        output.index(words) for words in (f" is not on {url} yet: ", "the store answers again: ")
    )
    assert (
        late < output.index("step 12/12") < again and "no copy was made since this start" in output
    )
    assert (
        incidents(run, "store not asked")
        and incidents(run, "upload")
        and incidents(run, "upload recovered")
    )
    assert RemoteCatalog(open_store(url)).steps()[0] == 12
    assert same_end(run, undisturbed)


def test_a_store_that_stays_down_is_reported(
    undisturbed: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a checkpoint at hand ends without it; one without does not even start."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    blocked = tmp_path / "file"
    blocked.write_text("")  # no folder can be made below it
    run = cut_back(undisturbed, tmp_path / "run", 8)
    options = (
        *MAGE,
        f"data.tokens={tokens}",
        EMA,
        f"checkpoint.upload={blocked}/x",
        "checkpoint.retry_seconds=1",
    )
    codes, output = run_world(tmp_path / "fresh", *options, processes=1)
    assert codes == [74] and "cannot be made: Not a directory" in output, output
    output = finish(run, *options)
    assert (
        "the checkpoint of step 12 is not on" in output
        and RunFolder(run).is_done
        and incidents(run, "upload")
    )
    assert "does not call the run complete" in output
    blocked.unlink()
    finish(run, *options)  # brings what is missing, although nothing is left to train
    assert (
        RemoteCatalog(LocalStore(blocked / "x")).steps() == [12] and (blocked / "x" / DONE).exists()
    )


def test_an_end_is_withdrawn_before_the_run_ends_again(tmp_path: Path) -> None:
    """Also where it stops before it has a checkpoint to bring."""
    store = LocalStore(tmp_path / "store")
    store.create(DONE, b"{}")
    folder = RunFolder(tmp_path / "run")
    uploader = Uploader(folder, CheckpointSection(upload=store.url), lambda: time.sleep(0.2))
    uploader.withdraw_end()
    assert uploader.close(PATIENCE, lambda: None) == [] and not list(store.list())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow at once."""
    monkeypatch.setattr(upload, "_PAUSES", (0.02,))


def uploader_of(tmp_path: Path, store: Store) -> Uploader:
    """Of a run folder whose checkpoints are of one parameter."""
    section = CheckpointSection(upload=store.url, keep=1, permanent_every=0)
    return Uploader(RunFolder(tmp_path / "run"), section, lambda: None)


def brings(uploader: Uploader, step: int, run: Path) -> bool:
    make(RunFolder(run), [5], step)
    uploader.offer(step)
    return uploader.close(PATIENCE, lambda: None) == []


def test_what_is_no_checkpoint_on_the_store_is_left_alone(tmp_path: Path, quick: None) -> None:
    """Names that others put there, and a manifest of garbage: ours comes beside them, and what is
    expired goes."""
    store, run = LocalStore(tmp_path / "store"), tmp_path / "run"
    first = uploader_of(tmp_path, store)
    assert brings(first, 4, run)
    foreign = (
        "checkpoints/step-xyz/manifest.json",
        "checkpoints/manifest.json",
        "checkpoints/a/step-00000001/manifest.json",
        "checkpoints/step-7/manifest.json",
        "checkpoints/step-00000099/manifest.json",
        "checkpoints/step-00000008/rank-00009.bak",
        "step-00000003/manifest.json",
    )
    for name in foreign:
        assert store.create(name, b'{"progress": {"seen": "soon"}, "step": [')
    assert RemoteCatalog(store).steps() == [99, 4]
    assert brings(uploader_of(tmp_path, store), 8, run)
    assert RemoteCatalog(store).steps() == [99, 8]
    assert {entry.name for entry in store.list()} >= set(foreign)
    assert not RunFolder(run).read_incidents()


def test_a_store_that_becomes_a_file_is_tried_until_it_is_a_folder_again(
    tmp_path: Path, quick: None
) -> None:
    store, run = LocalStore(tmp_path / "store"), tmp_path / "run"
    uploader = uploader_of(tmp_path, store)
    store.root.write_text("no folder")
    make(RunFolder(run), [5], 4)
    uploader.withdraw_end()
    uploader.offer(4)
    until(RunFolder(run).read_incidents)
    store.root.unlink()
    assert uploader.close(PATIENCE, lambda: None) == [] and RemoteCatalog(store).steps() == [4]
    assert [record["event"] for record in RunFolder(run).read_incidents()] == [
        "upload",
        "upload recovered",
    ]


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), TypeError("no such luck")],
    ids=["EIO", "unforeseen"],
)
def test_an_error_of_any_kind_is_an_incident_and_another_try(
    error: Exception, tmp_path: Path, quick: None
) -> None:
    store, run, tries = LocalStore(tmp_path / "store"), tmp_path / "run", []

    def confirm() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise error

    uploader = Uploader(RunFolder(run), CheckpointSection(upload=store.url), confirm)
    assert brings(uploader, 4, run) and len(tries) == 4 and RemoteCatalog(store).steps() == [4]
    late, again = RunFolder(run).read_incidents()
    assert (
        late["event"] == "upload" and str(error.args[-1]) in late["error"] and again["tries"] == 4
    )


def test_another_s_bytes_under_the_name_of_ours_do_not_stay(tmp_path: Path, quick: None) -> None:
    store, run = LocalStore(tmp_path / "store"), tmp_path / "run"
    make(RunFolder(run), [5], 4)
    RemoteCatalog(store).add(LocalCatalog(RunFolder(run)), 4)
    (file, *_) = (entry.name for entry in store.list("checkpoints/") if "rank-00000" in entry.name)
    whole = store.read(file)
    store.remove(f"checkpoints/step-00000004/{MANIFEST}")
    store.replace(file, whole[:50])
    assert brings(uploader_of(tmp_path, store), 4, run) and store.read(file) == whole


def test_records_do_not_come_with_manifests_that_cannot_be_checked(tmp_path: Path) -> None:
    """They may be another run's."""
    store, folder = LocalStore(tmp_path / "store"), RunFolder(tmp_path / "run")
    store.create("metrics.jsonl", b"{}\n")
    store.create(manifest_name(4), b"garbage")
    fetch_records(RemoteCatalog(store), folder, lambda manifest, name: None)
    assert not folder.metrics.exists()
    with pytest.raises(Damaged):
        RemoteCatalog(store).manifest(4)


def test_incidents_of_before_come_in_front_of_those_that_a_start_met_already(
    tmp_path: Path,
) -> None:
    """Such as a run folder without locks: else the next upload would replace the store's history by
    that line."""
    store, before, now = (
        LocalStore(tmp_path / "store"),
        RunFolder(tmp_path / "before"),
        RunFolder(tmp_path / "now"),
    )
    make(before, [5], 4)
    RemoteCatalog(store).add(LocalCatalog(before), 4)
    before.incident({"event": "of before"})
    (name,) = before.incident_files()
    store.create(name, (before.path / name).read_bytes())
    now.incident({"event": "not locked"})
    for _ in range(2):
        fetch_records(RemoteCatalog(store), now, lambda manifest, name: None)
        assert [record["event"] for record in now.read_incidents()] == ["of before", "not locked"]


def test_admin(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    catalog = open_catalog(str(run))
    assert [row["step"] for row in admin.listed(catalog)] == [12, 8, 4]
    (run / "checkpoints" / "step-00000012" / "rank-00000.safetensors").unlink()
    assert [row["state"] for row in admin.verified(catalog, None)] == ["invalid", "valid", "valid"]
    from model.weights import load_network
    from trainer.export import export, open_network

    export(open_network(catalog.name, None, "ema"), "native", tmp_path / "out", "drop", None)
    assert load_network(tmp_path / "out" / "network.safetensors", "predictor").kind == "predictor"
    assert '"step": 8' in (tmp_path / "out" / "config.json").read_text()
    assert admin.pruned(catalog, 1, 0) == [4]
    assert [row["step"] for row in admin.listed(catalog)] == [12, 8]
