"""What cannot be written is refused before the work, by each command that writes a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.storage import StorageError
from data_pipeline.storage.output import IMAGES, check_apart, check_output
from model.errors import ConfigError


def test_paths_that_will_do(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "page.PNG", IMAGES)
    check_output(tmp_path / "new" / "set")
    check_output(tmp_path)
    assert not list(tmp_path.iterdir())


def test_paths_that_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("page.xyz", "must end in .png or .jpg"),
        ("page", "must end in .png"),
        ("folder.png", "it is a folder"),
        ("file/page.png", "is a file, not a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_output(tmp_path / name, IMAGES)
    with pytest.raises(ConfigError, match="it is a file; name a folder"):
        check_output(tmp_path / "file")
    # Tests may run as root.
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.F_OK and Path(path).exists())
    with pytest.raises(StorageError, match="check its owner and mode"):
        check_output(tmp_path / "new" / "page.png", IMAGES)


def test_outputs_among_the_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    for out in ("images", "images/out", "link/out", "images/../link"):
        with pytest.raises(ConfigError, match="is the folder of the images"):
            check_apart(tmp_path / out, tmp_path / "images")
    for out in ("images-2", "out", "."):
        check_apart(tmp_path / out, tmp_path / "images")
    with pytest.raises(ConfigError, match="--work = s3://b/x/y"):
        check_apart("s3://b/x/y", "s3://b/x/", "--work")
    check_apart("s3://b/xy", "s3://b/x")
    check_apart(tmp_path / "images", "s3://b/x")
