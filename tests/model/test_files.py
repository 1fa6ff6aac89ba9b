"""Files that are written whole, with the mode that the umask gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.files import whole_file


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    with whole_file(target) as partial:
        partial.write_bytes(b"first")
        assert not target.exists()

    def fail() -> None:
        with whole_file(target) as partial:
            partial.write_bytes(b"half of the sec")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_bytes() == b"first" and [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_the_umasks(mask: int, mode: int, tmp_path: Path) -> None:
    """The mode is that of any new file, whatever wrote the bytes: a library may put a private file
    in place of ours."""
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "file") as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
