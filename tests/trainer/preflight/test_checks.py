"""`addp check`: each thing that would end a run is named before it starts, and nothing is left
behind."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore, StorageError, open_store
from data_pipeline.storage.output import probe
from model.networks import build
from model.weights import save_network
from tests.patience import PATIENCE
from tests.trainer.launching import MAGE, SMALL
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog
from trainer.checkpointing.format import MANIFEST, FileEntry, Manifest
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.registry import make_objective
from trainer.preflight.checks import Check, check_run
from trainer.run_folder import RunFolder, step_folder

TINY = (
    "tokenizer.sizes.size=tiny",
    "predictor.sizes.size=tiny",
    "addp.sizes.size=tiny",
    "precision=fp32",
    *SMALL,
)


def checks(*overrides: str, gpus: int = 2) -> dict[str, Check]:
    """By name; of several lines the worst."""
    order = ("ok", "warning", "FAILED")
    found: dict[str, Check] = {}
    for check in check_run(None, list(overrides), gpus):
        if check.name not in found or order.index(check.state) > order.index(
            found[check.name].state
        ):
            found[check.name] = check
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture(scope="module")
def predictor_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _network("predictor", tmp_path_factory.mktemp("weights"))


def _network(kind: str, folder: Path, *overrides: str) -> Path:
    config = load_config(None, [*TINY, *overrides])
    sizes = config.predictor.sizes if kind == "predictor" else config.addp.sizes
    save_network(build(kind, sizes, config.geometry), folder / f"{kind}.safetensors")
    return folder / f"{kind}.safetensors"


@pytest.fixture
def addp(
    tokens: Path, tokenizer_file: Path, predictor_file: Path, tmp_path: Path
) -> tuple[str, ...]:
    weights = (f"tokenizer.weights={tokenizer_file}", f"predictor.weights={predictor_file}")
    return (
        *TINY,
        "objective=addp",
        f"data.tokens={tokens}",
        *weights,
        f"run={tmp_path / 'runs' / 'addp'}",
    )


def test_a_run_that_is_ready(
    addp: tuple[str, ...], tokens: Path, tmp_path: Path, bucket: str
) -> None:
    """Data, cache and store on S3."""
    store = open_store(f"{bucket}/tokens")
    for path in tokens.iterdir():
        if path.is_file():
            store.create(path.name, path)
    before, objects = files(tmp_path), {entry.name for entry in open_store(bucket).list()}
    found = checks(
        *addp,
        f"data.tokens={bucket}/tokens",
        f"data.cache={tmp_path / 'cache'}",
        f"checkpoint.upload={bucket}/run",
    )
    assert {check.state for check in found.values()} == {"ok"}, found
    assert found["batch"].text == "8 = micro 2 x accumulation 2 x 2 GPUs"
    assert "as 16 tokens of 16 codes" in found["data"].text and "12 in all" in found["data"].text
    assert "starts at step 0" in found["resume"].text
    assert (
        files(tmp_path) == before and {entry.name for entry in open_store(bucket).list()} == objects
    )


def test_batches_that_cannot_be_made(addp: tuple[str, ...]) -> None:
    found = checks(*addp, gpus=3)["batch"]
    assert found.state == "FAILED" and "on 1, 2, 4 ranks" in found.text


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("configuration", "batch.mikro=2", "nearest known one is batch.micro"),
        ("weights", "predictor.weights=/none", "there is no weights file /none"),
        (
            "weights",
            "predictor.weights={tokenizer}",
            "holds a tokenizer, but a predictor is needed",
        ),
        ("weights", "predictor.weights={other}", "was made for"),
        (
            "weights",
            "predictor.sizes.depth=3",
            "does not fit predictor.sizes: its depth is 2, not 3",
        ),
        ("weights", "addp.weights=/none", "there is no weights file /none"),
        ("data", "data.tokens=/none", "is no finished token data set"),
        ("data", "data.tokens={torn}", "No such file"),
        ("data", "tokenizer.weights={another}", "was made by another tokenizer"),
        ("data", "condition=classes", "knows no classes, so ADDP would learn nothing of them"),
        ("run folder", "run={tokenizer}/run", "is a file"),
        ("run folder", "checkpoint.keep=1000000000", "lower checkpoint.keep"),
    ],
)
def test_what_would_end_a_run(
    name: str,
    override: str,
    words: str,
    addp: tuple[str, ...],
    tokens: Path,
    tokenizer_file: Path,
    tmp_path: Path,
) -> None:
    places = {"tokenizer": tokenizer_file, "torn": tmp_path / "torn"}
    if "{torn}" in override:
        shutil.copytree(tokens, places["torn"], ignore=shutil.ignore_patterns("tokens-000000.tar"))
    if "{other}" in override:
        places["other"] = _network("predictor", tmp_path, "tokenizer.sizes.codebook_size=32")
    if "{another}" in override:
        places["another"] = tmp_path / "another.safetensors"
        save_network(
            build("tokenizer", load_config(None, [*TINY]).tokenizer.sizes), places["another"]
        )
    found = checks(*addp, override.format(**places))
    assert found[name].state == "FAILED" and words in found[name].text, found[name]
    assert not (tmp_path / "runs").exists()


def test_sizes_of_the_data(tokens: Path, tmp_path: Path) -> None:
    found = checks(
        *MAGE,
        *SMALL,
        f"data.tokens={tokens}",
        f"run={tmp_path}",
        "tokenizer.sizes.codebook_size=32",
    )
    assert (
        found["data"].state == "FAILED" and "codes, but tokenizer.sizes gives" in found["data"].text
    )


def test_stores(
    addp: tuple[str, ...], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    found = checks(*addp, f"checkpoint.upload={bucket}/run", f"data.tokens={bucket}/none")
    assert found["upload"].state == "FAILED" and "access denied" in found["upload"].text
    assert found["data"].state == "FAILED" and "access denied" in found["data"].text
    assert found["cache"].state == "warning" and "set data.cache" in found["cache"].text

    class Overwriting(LocalStore):
        """A store that does not know If-None-Match."""

        def create(self, name: str, content: bytes | Path) -> bool:
            assert isinstance(content, bytes)
            self.replace(name, content)
            return True

    with pytest.raises(StorageError, match="use a store with conditional puts"):
        probe(Overwriting(tmp_path / "store"))
    assert not list((tmp_path / "store").iterdir())


def test_what_a_start_would_go_on_from(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """A real run's folder; sizes of its files are looked at."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    same = (*MAGE, *SMALL, f"data.tokens={tokens}", "ema_decay=0.9", f"run={run}")
    before = files(run)
    found = checks(*same)["resume"]
    assert found.state == "warning" and "nothing is left to do: step 12 of 12" in found.text
    found = checks(*same, "schedule.total=20")["resume"]
    assert found.state == "FAILED" and "add 'resume.allow=[schedule.total]'" in found.text
    found = checks(*same, "schedule.total=20", "resume.allow=[schedule.total]")["resume"]
    assert found.state == "ok" and "goes on at step 12 of 20 (saved by 2 ranks" in found.text
    assert "changed since: " in found.text and "schedule.total: " in found.text
    for key, was, now in (
        ("seed", 0, 7),
        ("global_batch", 8, 4),
    ):  # docs/streaming.md: the global batch stays
        found = checks(*same, f"{'batch.' * (key != 'seed')}{key}={now}")["resume"]
        assert found.state == "FAILED" and f"{key}: checkpoint {was}, now {now}" in found.text
    assert files(run) == before

    file = run / "checkpoints" / step_folder(12) / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found_all = list(check_run(None, [*same], 2))
    assert [c.state for c in found_all if c.name == "resume"] == ["warning", "ok"]
    assert "rank-00000.safetensors is missing or not of the stated size" in found_all[-2].text
    assert "goes on at step 8 of 12" in found_all[-1].text

    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "published").write_text("12\n")
    found = checks(*same)["resume"]
    assert found.state == "FAILED" and "checkpoints are gone" in found.text


def _hold(run: Path, ready: multiprocessing.Event, over: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    folder = RunFolder(run)
    folder.lock()
    ready.set()  # type: ignore[attr-defined]
    over.wait(PATIENCE)  # type: ignore[attr-defined]


def test_a_run_that_is_in_use_or_asked_to_stop(addp: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "addp"
    run.mkdir(parents=True)
    (run / "STOP").touch()
    assert "would save and stop at once" in checks(*addp)["resume"].text
    (run / "STOP").unlink()
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run, ready, over))
    process.start()
    try:
        assert ready.wait(PATIENCE)
        found = checks(*addp)["resume"]
        assert found.state == "warning" and f"in use by process {process.pid}" in found.text
        assert checks(*addp)["resume"].state == "warning"  # looking did not free it
    finally:
        over.set()
        process.join()
    assert checks(*addp)["resume"].state == "ok"


def _objective_overrides(
    objective: str, addp: tuple[str, ...], images: Path, folder: Path
) -> tuple[str, ...]:
    if objective == "addp":
        return addp
    views = (
        f"data.images={images}",
        "data.views.size=16",
        "tokenizer.sizes.size=tiny",
        "precision=fp32",
        *SMALL,
    )
    run = f"run={folder / 'run'}"
    if objective == "classify":
        own = ("addp.sizes.size=tiny", f"addp.weights={_network('addp', folder)}")
        return ("objective=classify", *views, *own, run)
    return ("objective=tokenizer", *views, run)


@pytest.mark.parametrize("objective", ["addp", "tokenizer", "classify"])
def test_it_knows_a_run_as_the_trainer_does(
    objective: str, addp: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    overrides = _objective_overrides(objective, addp, images, tmp_path)
    config = load_config(None, list(overrides))
    _save_manifest(config)
    found = checks(*overrides)
    assert {check.state for check in found.values()} == {"ok"}, found
    assert "goes on at step 4 of 12" in found["resume"].text
    blind = checks(*overrides, "data.tokens=/none" if objective == "addp" else "data.images=/none")
    assert blind["data"].state == "FAILED" and "were not compared" in blind["resume"].text


def test_what_a_run_begins_with(addp: tuple[str, ...], tmp_path: Path) -> None:
    """By header; not once there is a checkpoint."""
    file = _network("addp", tmp_path)
    found = [c for c in check_run(None, [*addp, f"addp.weights={file}"], 2) if c.name == "weights"]
    assert [c.state for c in found] == ["ok", "ok"]
    assert found[1].text == f"the run begins with addp.weights = {file}, of the configured sizes"
    (tmp_path / "larger").mkdir()
    larger = _network("addp", tmp_path / "larger", "tokenizer.sizes.image_size=32")
    _, begins = [
        c for c in check_run(None, [*addp, f"addp.weights={larger}"], 2) if c.name == "weights"
    ]
    assert begins.state == "ok" and "(resized from 32 to 16 pixels: pos_embed, " in begins.text
    _save_manifest(load_config(None, list(addp)))
    file.unlink()
    found = [c for c in check_run(None, [*addp, f"addp.weights={file}"], 2) if c.name == "weights"]
    assert [c.state for c in found] == ["ok", "ok"] and found[1].text.endswith(
        "goes on from its own checkpoint"
    )


def test_the_images_of_a_tokenizer_run_are_a_fact(
    addp: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    """Wherever they lie; a permission does not help."""
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    overrides = _objective_overrides("tokenizer", addp, copy, tmp_path)
    _save_manifest(load_config(None, list(overrides)))
    copy.rename(tmp_path / "moved")
    moved = (*overrides, f"data.images={tmp_path / 'moved'}")
    assert checks(*moved)["resume"].state == "ok"
    found = checks(*moved, "data.held_out=0.5", "resume.allow=[data]")["resume"]
    assert (
        found.state == "FAILED"
        and "belongs to another run than the configured one (data: " in found.text
    )
    (tmp_path / "moved" / "line" / "000.png").rename(tmp_path / "moved" / "line" / "another.png")
    found = checks(*moved)["resume"]
    assert (
        found.state == "FAILED"
        and "belongs to another run than the configured one (data: " in found.text
    )


def test_it_goes_on_from_the_store(addp: tuple[str, ...], bucket: str) -> None:
    """In an empty folder, with what the run left out by then."""
    config, store = load_config(None, list(addp)), open_store(f"{bucket}/run")
    _save_manifest(config, [{"step": 1, "length": 2}])
    store.create("rewinds.json", b'[{"step": 1, "length": 2}]')
    RemoteCatalog(store).add(LocalCatalog(RunFolder(config.run)), 4)
    shutil.rmtree(config.run)
    found = checks(*addp, f"checkpoint.upload={bucket}/run")["resume"]
    assert found.state == "ok" and "goes on at step 4 of 12" in found.text


def _save_manifest(config: RunConfig, skipped: list[dict[str, int]] | None = None) -> Path:
    """Of a checkpoint without tensors, and its one file, which is empty."""
    file = "rank-00000.safetensors"
    with closing(make_objective(config)) as objective:
        run_identity = objective.identity()
    manifest = Manifest(
        step=4,
        world_size=2,
        zero_stage=1,
        run_identity=run_identity,
        parameters={},
        export_prefix="",
        state_keys=[],
        applied=4,
        scaler={},
        skipped=skipped or [],
        trainer_state={},
        files={file: FileEntry(bytes=0, sha256=hashlib.sha256().hexdigest())},
    )
    path = RunFolder(config.run).checkpoints / step_folder(4)
    path.mkdir(parents=True)
    (path / file).touch()
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path
