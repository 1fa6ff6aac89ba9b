"""A run's folder and its store answer alike, and the package of checkpoints imports in one
direction."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from data_pipeline.storage import open_store
from model.errors import ConfigError
from tests.trainer.checkpointing.test_format import make
from trainer.checkpointing.catalog import Catalog, LocalCatalog, RemoteCatalog, open_catalog
from trainer.checkpointing.format import (
    MANIFEST,
    Damaged,
    manifest_name,
    rank_file,
    step_of,
    step_of_manifest,
)
from trainer.run_folder import RunFolder

PACKAGE = Path(__file__).parents[3] / "trainer" / "checkpointing"
# Each module imports from those before it only.
ORDER = [
    "format",
    "snapshot",
    "saved_state",
    "exported",
    "catalog",
    "expected",
    "run_records",
    "retention",
    "restore",
    "ownership",
    "stop_object",
    "upload",
    "saver",
    "admin",
]


@pytest.fixture(params=["folder", "folder as a store", "bucket"])
def places(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> tuple[Catalog, Catalog]:
    """A catalog with the checkpoints of steps 4 and 8, and the run folder where they were made."""
    home = LocalCatalog(RunFolder(tmp_path / "run"))
    for step in (4, 8):
        make(RunFolder(tmp_path / "run"), [5], step)
    if request.param == "folder":
        return home, home
    copies = RemoteCatalog(open_store(bucket if request.param == "bucket" else tmp_path / "copies"))
    for step in (4, 8):
        copies.add(home, step)
    return copies, home


def test_both_places_answer_alike(places: tuple[Catalog, Catalog], tmp_path: Path) -> None:
    catalog, home = places
    assert type(open_catalog(catalog.name)) is type(catalog)
    assert catalog.steps() == [8, 4] and catalog.newest_valid() == 8 and catalog.rewinds() == []
    manifest = catalog.manifest(8)
    assert manifest == home.manifest(8) == catalog.verify(8) == catalog.newest_manifest()
    assert catalog.sizes(manifest) == {file: e.bytes for file, e in manifest.files.items()}
    assert catalog.index(manifest) == home.index(manifest)
    with catalog.saved_state(8) as state:
        assert state.read("weights", "w", 3, 4).tolist() == [3, 4, 5, 6]
    with pytest.raises(ConfigError, match="no checkpoint of step 5; it has 8, 4"):
        catalog.known(5)
    catalog.remove(8)
    assert catalog.steps() == [4] and catalog.known(4) == 4


def test_a_checkpoint_comes_home_whole(places: tuple[Catalog, Catalog], tmp_path: Path) -> None:
    """From a store it passes through a folder that is no checkpoint; in the run folder it stays
    where it is."""
    catalog, _ = places
    home = LocalCatalog(RunFolder(tmp_path / "run"))
    manifest, content = catalog.manifest(8), (home.folder(8) / rank_file(1)).read_bytes()
    if catalog.location(8) != home.location(8):
        home.remove(8)
    staging = home.staging(8, "attempt")
    for file in manifest.files:
        catalog.fetch(manifest, file, staging)
        assert catalog.location(8) == home.location(8) or home.steps() == [4]
    catalog.settle(manifest, staging, home)
    assert home.verify(8) == manifest and not staging.exists()
    assert (home.folder(8) / rank_file(1)).read_bytes() == content


def test_a_checkpoint_of_another_step_is_damaged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    make(folder, [], 4).rename(folder.checkpoints / "step-00000008")
    with pytest.raises(Damaged, match="step-00000008 holds step 4"):
        LocalCatalog(folder).manifest(8)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-00000008", 8),
        ("step-1000000000", 10**9),
        ("step-000000008", None),
        ("step-8", None),
        ("step-00000008.3f2a91c0.tmp", None),
        ("step-xyz", None),
    ],
)
def test_names_of_checkpoints(name: str, step: int | None) -> None:
    assert step_of(name) == step == step_of_manifest(f"checkpoints/{name}/{MANIFEST}")
    assert step is None or manifest_name(step) == f"checkpoints/{name}/{MANIFEST}"


def test_modules_import_in_one_direction() -> None:
    assert sorted(ORDER) == sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    for number, name in enumerate(ORDER):
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                _, _, module = node.module.partition("trainer.checkpointing.")
                assert not module or module in ORDER[:number], f"{name} imports {module}"
