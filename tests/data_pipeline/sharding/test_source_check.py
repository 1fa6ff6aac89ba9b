"""A source that is not there, goes away, or comes and goes loses no image: what is stored is never
made again."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.job_status import count
from data_pipeline.sharding.options import JobOptions
from data_pipeline.sharding.plan import Plan, shard_images
from data_pipeline.sharding.receipts import finalize, read_receipts, survey
from data_pipeline.sharding.source_check import SourceCheck
from data_pipeline.sharding.tokenize import JobSettings, TokenizeJob, run_locally
from data_pipeline.storage import AccessDenied, LocalStore, ObjectMissing, StorageError, open_store
from model.errors import DataError
from model.vq import VQTokenizer
from tests.datasets import job, plan

RECIPE = ViewRecipe(size=16, views=1)


@pytest.fixture
def source(images: Path, tmp_path: Path) -> Path:
    """Make 20 images that a test may harm."""
    for image in sorted(images.rglob("*.png"))[::6]:
        copy = tmp_path / "source" / image.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    return tmp_path / "source"


def small_job(planned: Plan, out: Path, tokenizer: VQTokenizer) -> TokenizeJob:
    return job(planned, out, tokenizer, batch=planned.recipe.rows)


def stored(out: Path, planned: Plan) -> tuple[int, int]:
    """Return (rows, quarantined images) that the receipts vouch for."""
    receipts = list(read_receipts(open_store(out), planned, survey(open_store(out), planned).done))
    return sum(r.shard.rows for r in receipts), sum(len(r.quarantined) for r in receipts)


def finish(out: Path, planned: Plan, tokenizer: VQTokenizer) -> None:
    """Check that an undisturbed job stores all images."""
    store = open_store(out)
    list(small_job(planned, out, tokenizer).run(survey(store, planned).missing(planned)))
    assert finalize(store, planned).rows == planned.images


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("none", "there is no such folder"),
        ("empty", "it is empty, as a mount point is"),
        ("other", r"it holds other files, as lost\+found"),
        ("S3/prefix", "it is empty"),
        ("S3-none", "there is no bucket"),
    ],
)
def test_a_source_that_is_not_there(
    source: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path: Path,
    where: str,
    words: str,
    request: pytest.FixtureRequest,
) -> None:
    plan(source, tmp_path / "out", tokenizer, RECIPE, rows=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lost+found").touch()
    url = (
        where.replace("S3", request.getfixturevalue("bucket"))
        if "S3" in where
        else str(tmp_path / where)
    )
    options = JobOptions(bad_limit=1.0)
    settings = JobSettings(str(tmp_path / "out"), str(tokenizer_file), url, options)
    with pytest.raises(StorageError, match=words):
        list(run_locally(settings, range(20), lambda _: None))
    assert not (tmp_path / "out" / "parts").exists() and not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("rows", [1, 6])
def test_a_source_that_goes_away(
    source: Path, tokenizer: VQTokenizer, tmp_path: Path, rows: int
) -> None:
    planned = plan(source, tmp_path / "out", tokenizer, RECIPE, rows=rows)
    running = small_job(planned, tmp_path / "out", tokenizer)
    away = tmp_path / "away"

    def unmount(_: int) -> None:
        if source.exists():
            source.rename(away)

    with pytest.raises(
        StorageError,
        match=r"(went away while it was read|none of the .* can be read).*no such folder",
    ):
        list(running.run(range(planned.shards), unmount))
    assert stored(tmp_path / "out", planned)[1] == 0
    away.rename(source)
    finish(tmp_path / "out", planned, tokenizer)


class ComesAndGoes(LocalStore):
    """Fails when a file is read for the first time."""

    def __init__(self, root: Path, name: str, error: type[StorageError]) -> None:
        super().__init__(root)
        self._name, self._error = name, error

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if name == self._name:
            self._name = ""
            raise self._error(name)
        return super().read(name, start, length)


@pytest.mark.parametrize("error", [ObjectMissing, AccessDenied])
def test_an_image_that_is_there_again(
    source: Path, tokenizer: VQTokenizer, tmp_path: Path, error: type[StorageError]
) -> None:
    planned = plan(source, tmp_path / "out", tokenizer, RECIPE, rows=20)
    running = small_job(planned, tmp_path / "out", tokenizer)
    running.source = ComesAndGoes(source, "line/002.png", error)
    running.check = SourceCheck(running.out, planned, running.source)
    with pytest.raises(
        StorageError, match="could not be read and now it can: the source comes and goes"
    ):
        list(running.run([0]))
    finish(tmp_path / "out", planned, tokenizer)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_source_of_which_a_part_is_away(
    source: Path, tokenizer: VQTokenizer, tmp_path: Path, rows: int
) -> None:
    """What looks like more than the few that the limit lets pass is not stored, also not by one job
    after another."""
    out = tmp_path / "out"
    planned = plan(source, out, tokenizer, RECIPE, rows=rows)
    (source / "line").rename(tmp_path / "line")
    for _ in range(4):
        state = survey(open_store(out), planned)
        before = count(open_store(out), planned, state, {})
        running = job(planned, out, tokenizer, batch=rows, bad_limit=0.1, before=before)
        with pytest.raises(DataError, match=r"images .*cannot be read, more than the limit 10.0%"):
            list(running.run(state.missing(planned)))
    assert stored(out, planned)[1] <= 0.1 * planned.images


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "gone"),
        (
            lambda image: image.write_bytes(image.read_bytes() + b"x"),
            "more than .* when it was listed",
        ),
        (lambda image: image.write_bytes(b""), "0 bytes, but .* when it was listed"),
    ],
)
def test_many_that_are_not_as_planned_are_no_matter_of_luck(
    source: Path,
    tokenizer: VQTokenizer,
    tmp_path: Path,
    harm: Callable[[Path], object],
    reason: str,
) -> None:
    """Two of a shard of ten are below the limit of the job, 10 % of 20, but not of the shard."""
    planned = plan(source, tmp_path / "out", tokenizer, RECIPE, rows=10)
    for _, image in shard_images(open_store(tmp_path / "out"), planned, 1)[:2]:
        harm(source / image.id)
    running = job(planned, tmp_path / "out", tokenizer, batch=10, bad_limit=0.1)
    with pytest.raises(
        DataError,
        match=f"2 of the 10 images of shard 1 cannot be read, .*: {reason}.*Put them back",
    ):
        list(running.run([0, 1]))
    assert stored(tmp_path / "out", planned) == (10, 0)


def test_damaged_images_of_earlier_jobs_are_not_taken_for_gone(
    source: Path, tokenizer: VQTokenizer, tmp_path: Path
) -> None:
    """Else a job that was started again would stop where an undisturbed one goes on."""
    out = open_store(tmp_path / "out")
    planned = plan(source, tmp_path / "out", tokenizer, RECIPE, rows=5)
    for _, image in shard_images(out, planned, 0)[:2]:
        (source / image.id).write_bytes(bytes(image.size))
    (source / shard_images(out, planned, 1)[0][1].id).unlink()
    for shard in (0, 1):
        before = count(out, planned, survey(out, planned), {})
        list(
            job(planned, tmp_path / "out", tokenizer, batch=5, bad_limit=0.2, before=before).run(
                [shard]
            )
        )
    assert stored(tmp_path / "out", planned) == (7, 3)


def test_a_tar_that_is_gone(
    source: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Its images are not bad one by one."""
    tars = tmp_path / "tars"
    tars.mkdir()
    for n in range(2):
        with tarfile.open(tars / f"{n}.tar", "w") as tar:
            for i, image in enumerate(sorted(source.rglob("*.png"))[n::2]):
                tar.add(image, f"{i}.png")
                label = tarfile.TarInfo(f"{i}.cls")
                label.size = 1
                tar.addfile(label, BytesIO(b"0"))
    planned = plan(tars, tmp_path / "out", tokenizer, RECIPE, rows=1)
    running = small_job(planned, tmp_path / "out", tokenizer)
    (tars / "1.tar").rename(tmp_path / "1.tar")
    options = JobOptions(batch=1, bad_limit=1.0)
    settings = JobSettings(str(tmp_path / "out"), str(tokenizer_file), options=options)
    with pytest.raises(StorageError, match=r"there is no tar .*1\.tar"):
        settings.open()
    # Away meanwhile.
    with pytest.raises(StorageError, match=r"1\.tar: this tar of planned images cannot be read"):
        list(running.run(range(20)))
    assert stored(tmp_path / "out", planned)[1] == 0
    (tmp_path / "1.tar").rename(tars / "1.tar")
    finish(tmp_path / "out", planned, tokenizer)
