"""Checkpoints on object storage: as valid or invisible there as at home, and good to go on from on another machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, open_store
from tests.s3_server import FaultProxy, environment
from tests.trainer.comparing import cut_back, incidents, same_end
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import World, finish, run_world
from trainer import checkpoint_admin as admin
from trainer import upload
from trainer.checkpoint import MANIFEST
from trainer.config import CheckpointSection
from trainer.run_folder import DONE, RunFolder
from trainer.upload import Uploader, remote_steps

EMA = "ema_decay=0.9"


def test_another_machine_goes_on_from_the_store(undisturbed: Path, bucket: str, tokens: Path, tmp_path: Path) -> None:
    """The first one dies after its second checkpoint is on S3, and its disk is lost."""
    url = f"{bucket}/runs/one"
    options = (*MAGE, f"data.tokens={tokens}", EMA, f"checkpoint.upload={url}", "checkpoint.permanent_every=4")
    finish(tmp_path / "first", *options)
    store = open_store(url)
    assert remote_steps(store) == [12, 8, 4]
    upload.remove(store, 12)
    output = finish(tmp_path / "second", *options)
    assert "resumed at step 8 of 12" in output
    assert same_end(tmp_path / "second", undisturbed)


def test_a_damaged_copy_is_gone_round(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """On the store as at home; the reasons are given."""
    store = tmp_path / "store"
    options = (*MAGE, f"data.tokens={tokens}", EMA, f"checkpoint.upload={store}", "checkpoint.permanent_every=4")
    finish(tmp_path / "first", *options)
    assert remote_steps(LocalStore(store)) == [12, 8, 4]
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
    "point", [("os.link", ("rank-00001",)), ("os.rename", (MANIFEST, "store"))], ids=["file", "manifest"]
)
def test_killed_while_it_uploads(point: tuple[str, tuple[str, ...]], tokens: Path, tmp_path: Path) -> None:
    """Nothing is visible there before its manifest, and the next start brings the rest."""
    store, run = tmp_path / "store", tmp_path / "run"
    options = (*MAGE, f"data.tokens={tokens}", f"checkpoint.upload={store}")
    codes, _ = run_world(run, *options, sabotage=Sabotage(*point))
    assert codes[0] == -9 and not remote_steps(LocalStore(store))
    finish(run, *options)
    rows = admin.verified(admin.Place(str(store), None, LocalStore(store)), None)
    assert rows and all(row["state"] == "valid" for row in rows) and rows[0]["step"] == 12


def test_a_store_that_is_down_does_not_stop_training(
    undisturbed: Path, bucket: str, proxy: FaultProxy, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses connections from the restart to the last step; then it answers again, and the copy is complete. A run
    that has no checkpoint at hand does not start while it cannot ask the store."""
    for name, value in environment(proxy.port, AWS_MAX_ATTEMPTS="1").items():
        monkeypatch.setenv(name, value)
    run, url = cut_back(undisturbed, tmp_path / "run", 4), f"{bucket}/runs/two"
    proxy.refuse = True
    options = [*MAGE, f"data.tokens={tokens}", EMA, f"checkpoint.upload={url}", "checkpoint.patience=60"]
    codes, output = run_world(tmp_path / "fresh", *options, processes=1)
    assert codes == [74] and "no answer" in output
    world = World(run, options, 2, None)
    world.wait_for(run / "checkpoints" / "step-00000012" / MANIFEST)
    proxy.heal()
    codes, output = world.wait()
    assert codes == [0, 0] and "resumed at step 4" in output, output
    late, again = (output.index(words) for words in (f" is not on {url} yet: ", "the store answers again: "))
    assert late < output.index("step 12/12") < again and "no copy was made since this start" in output
    assert incidents(run, "store not asked") and incidents(run, "upload") and incidents(run, "upload recovered")
    assert remote_steps(open_store(url))[0] == 12
    assert same_end(run, undisturbed)


def test_a_store_that_stays_down_is_reported(
    undisturbed: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a checkpoint at hand ends without it; one without does not even start."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    blocked = tmp_path / "file"
    blocked.write_text("")  # no folder can be made below it
    run = cut_back(undisturbed, tmp_path / "run", 8)
    options = (*MAGE, f"data.tokens={tokens}", EMA, f"checkpoint.upload={blocked}/x", "checkpoint.patience=1")
    codes, output = run_world(tmp_path / "fresh", *options, processes=1)
    assert codes == [74] and "cannot be made: Not a directory" in output, output
    output = finish(run, *options)
    assert "the checkpoint of step 12 is not on" in output and RunFolder(run).is_done and incidents(run, "upload")
    assert "does not call the run complete" in output
    blocked.unlink()
    finish(run, *options)  # brings what is missing, although nothing is left to train
    assert remote_steps(LocalStore(blocked / "x")) == [12] and (blocked / "x" / DONE).exists()


def test_an_end_is_withdrawn_before_the_run_ends_again(tmp_path: Path) -> None:
    """Also where it stops before it has a checkpoint to bring."""
    store = LocalStore(tmp_path / "store")
    store.create(DONE, b"{}")
    folder = RunFolder(tmp_path / "run")
    uploader = Uploader(folder, CheckpointSection(upload=store.url), lambda: time.sleep(0.2))
    uploader.withdraw_end()
    assert uploader.close(60, lambda: None) == [] and not list(store.list())


def test_admin(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    place = admin.open_run(str(run))
    assert [row["step"] for row in admin.listed(place)] == [12, 8, 4]
    (run / "checkpoints" / "step-00000012" / "rank-00000.safetensors").unlink()
    assert [row["state"] for row in admin.verified(place, None)] == ["invalid", "valid", "valid"]
    from model.weights import load_network
    from trainer.export import export, open_network

    export(open_network(place.name, None, "ema"), "native", tmp_path / "out", "drop", None)
    assert load_network(tmp_path / "out" / "network.safetensors", "predictor").kind == "predictor"
    assert '"step": 8' in (tmp_path / "out" / "config.json").read_text()
    assert admin.pruned(place, 1, 0) == [4]
    assert [row["step"] for row in admin.listed(place)] == [12, 8]
