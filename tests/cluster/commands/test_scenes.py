from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.calling import addp


def test_making_a_set_and_asking_again(tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = ("scenes", out, "--scenes", 2, "--held-out", 1, "--size", 64, "--processes", 1)
    done = addp(*words, "--classes", "symbols,flags")
    assert done.code == 0, done.stderr
    assert "2 training and 1 validation scenes with " in done.stdout
    assert f"look at {out / 'contact-sheet.png'}" in done.stdout
    coco = json.loads((out / "coco/annotations/instances_val2017.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["flags", "symbols"]
    assert coco["images"][0]["width"] == 64

    found = json.loads(addp(*words, "--classes", "flags,symbols", "--json").stdout)
    assert found["composed"] == 0 and found["training"] == 2 and found["classes"] == 2
    refused = addp(*words)
    assert refused.code == 78 and "classes = flags,symbols, not activities" in refused.stderr
