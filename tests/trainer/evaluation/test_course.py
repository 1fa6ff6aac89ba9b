"""Results are of the checkpoint that stands under their step now: a real run that is rewound,
followed on its store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, Store, open_store
from tests.trainer.checkpointing.test_format import make
from tests.trainer.comparing import incidents
from tests.trainer.evaluation.evaluating import codes, start
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import World, run_world
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog, open_catalog
from trainer.checkpointing.format import MANIFEST, NoValidCheckpoint, object_name
from trainer.evaluation.course import StoredCourse
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.results import Result, publish, read_results, result_name
from trainer.resilience.state import read_rewinds, rewinds_before
from trainer.run_folder import RunFolder, checkpoint_fingerprint

REWIND = (
    "health.spikes=rewind",
    "health.history=8",
    "health.consecutive=2",
    "checkpoint.keep=99",
    "checkpoint.every=2",
    "checkpoint.permanent_every=2",
)


def test_a_run_that_is_rewound(tokens: Path, held_out_tokens: Path, tmp_path: Path) -> None:
    """Data steps 5 and 6 are bad, which is seen only after the checkpoints of steps 6 and 8 were
    copied and measured. The new ones are measured anew; of the old course nothing is left on the
    store."""
    run, store, log = tmp_path / "run", LocalStore(tmp_path / "store"), tmp_path / "log"
    options = [*MAGE, f"data.tokens={tokens}", *REWIND, f"checkpoint.upload={store.url}"]
    killed = Sabotage("os.rename", ("run/checkpoints/step-00000010",), spikes=(5, 7))
    exit_codes, output = run_world(run, *options, "log_every=1000", processes=1, sabotage=killed)
    assert exit_codes == [-9], output
    for step in (4, 6, 8):  # where the kill was faster
        RemoteCatalog(store).add(LocalCatalog(RunFolder(run)), step)
    measure = (
        "--suite",
        "held-out",
        "--tokens",
        str(held_out_tokens),
        "--work",
        str(tmp_path / "work"),
    )
    assert codes(start(store.url, log, *measure, "--every", "2")) == [0], log.read_text()
    before = {result.step: result for result in read_results(store)}

    world = World(run, [*options, "log_every=2"], 1, Sabotage(spikes=(5, 7)))
    follower = start(store.url, log, *measure, "--follow", "--every", "2")
    done = world.wait()
    assert done.codes == [0] and "rewound to step 4," in done.output, done.output
    assert codes(follower) == [0], log.read_text()
    rewinds = read_rewinds(RunFolder(run))
    copies = RemoteCatalog(store)
    after = {result.step: result for result in read_results(store)}
    assert sorted(after) == sorted(copies.steps()) == list(range(0, 13, 2))
    for step, result in after.items():
        manifest = copies.manifest(step)
        assert result.checkpoint == manifest.fingerprint
        assert result.left_out == manifest.skipped == rewinds_before(rewinds, step)
        there = {e.name.rpartition("/")[2] for e in store.list(f"checkpoints/step-{step:08d}/")} - {
            MANIFEST
        }
        assert there == {
            object_name(step, n, f).rpartition("/")[2] for n, f in manifest.files.items()
        }
    assert after[4] == before[4] and after[6].checkpoint != before[6].checkpoint
    (removed,) = incidents(run, "copies removed")
    assert removed["steps"] in ([8], [6])  # the other one was replaced

    # an evaluator that slept through it all does not put its result over the new one; the page does
    # not show it
    course = StoredCourse(store)
    assert course.is_current(after[6]) and not course.is_current(before[6])
    assert publish(LocalStore(run), before[6], {})
    page = write_report([str(run)], tmp_path / "report.html").read_text()
    assert "Evaluations at step 6 measured checkpoints that the run has left" in page


REWOUND = [{"step": 5, "length": 2}]


def lay(store: Store, step: int, sha256: str, skipped: list[dict[str, int]]) -> str:
    """A manifest. Returns the fingerprint of its checkpoint."""
    content = {
        "step": step,
        "skipped": skipped,
        "files": {"rank-00000.safetensors": {"bytes": 1, "sha256": sha256}},
    }
    store.replace(f"checkpoints/step-{step:08d}/{MANIFEST}", json.dumps(content).encode())
    return checkpoint_fingerprint({"rank-00000.safetensors": sha256})


def result(
    step: int,
    checkpoint: str | None,
    left_out: list[dict[str, int]] | None,
    metrics: dict[str, float] | None = None,
) -> Result:
    return Result(
        step=step,
        benchmark="knn",
        weights="raw",
        metrics=metrics or {},
        checkpoint=checkpoint,
        left_out=left_out,
    )


@pytest.mark.parametrize("on_s3", [False, True])
def test_which_results_are_current(on_s3: bool, bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/run" if on_s3 else tmp_path)
    store.create("rewinds.json", json.dumps(REWOUND).encode())
    now, old = lay(store, 8, "new", REWOUND), lay(store, 12, "old", [])
    early = lay(store, 4, "early", [])
    course = StoredCourse(store)
    assert sorted(course.marks) == [4, 8, 12] and [
        course.is_left(step) for step in (4, 8, 12, 16)
    ] == [0, 0, 1, 0]
    assert course.is_current(result(8, now, REWOUND)) and course.is_current(result(8, now, None))
    assert not course.is_current(result(8, "other", REWOUND)) and not course.is_current(
        result(8, None, None)
    )
    assert not course.is_current(result(12, old, [])) and not course.is_current(
        result(12, old, None)
    )
    assert course.is_current(result(4, early, [])) and not course.is_current(
        result(4, "saved twice", [])
    )
    # of checkpoints that have expired
    assert course.is_current(result(16, "gone", REWOUND)) and not course.is_current(
        result(16, "gone", [])
    )
    assert not course.is_current(result(16, "gone", None)) and course.is_current(
        result(3, "gone", None)
    )
    before = course.marks[8]
    lay(store, 8, "saved again", REWOUND)
    assert StoredCourse(store).marks[8] != before


def test_a_result_of_another_checkpoint_is_replaced_and_of_the_same_kept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for checkpoint, top1, published in (("a", 1, True), ("a", 2, False), ("b", 3, True)):
        made = result(4, checkpoint, [], {"top1": top1})
        assert publish(store, made, {}) is published
    assert json.loads(store.read(result_name(4, "knn", "raw")))["figures"] == {"top1": 3}


@pytest.mark.parametrize("on_s3", [False, True])
def test_the_newest_checkpoint_is_one_that_no_rewind_has_left(
    on_s3: bool, bucket: str, tmp_path: Path
) -> None:
    """It is what `generate` and `export` take; `addp checkpoints prune` counts from it."""
    url = f"{bucket}/run" if on_s3 else str(tmp_path / "run")
    store, folder = open_store(url), RunFolder(tmp_path / "run")
    for step in (4, 8):
        make(folder, [5], step)
        if on_s3:
            RemoteCatalog(store).add(LocalCatalog(folder), step)
    assert open_catalog(url).newest_valid() == 8
    store.create("rewinds.json", json.dumps(REWOUND).encode())
    assert open_catalog(url).newest_valid() == 4
    with pytest.raises(
        NoValidCheckpoint, match="step 8 was trained on data that a rewind leaves out"
    ):
        open_catalog(url).newest_valid(but=[4])
