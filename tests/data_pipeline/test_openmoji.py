from __future__ import annotations

from pathlib import Path

from data_pipeline.openmoji import labelled_svgs, render
from data_pipeline.pictures import class_folders, read_picture


def test_rendering_and_going_on(tmp_path: Path) -> None:
    assert render(tmp_path, size=48, limit=60) > 40
    source = class_folders(tmp_path)
    assert len(source.classes) >= 8 and read_picture(source.pictures[0].path).size == (48, 48)
    assert read_picture(source.pictures[0].path).getpixel((0, 0)) == (255, 255, 255)
    kept = source.pictures[0].path
    kept.write_bytes(b"kept")
    source.pictures[1].path.unlink()
    render(tmp_path, size=48, limit=60)
    assert kept.read_bytes() == b"kept" and source.pictures[1].path.exists()


def test_the_set() -> None:
    found = list(labelled_svgs())
    assert len(found) > 1800 and len({category for _, category in found}) == 9
    assert not any("1F3FB" in svg.stem for svg, _ in found)
