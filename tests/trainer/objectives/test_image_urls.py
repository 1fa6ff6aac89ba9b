"""Training on images at urls: the batches are those of the same tars in a folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.storage import StorageError, open_store
from model.errors import ConfigError
from tests.tars import jpeg, tar_of
from tests.trainer.launching import SMALL
from tests.web_server import WebServer
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.images import ImageObjective
from trainer.objectives.registry import make_objective
from trainer.preflight.doctor.needs import check_places


def configured(images: str, run: Path) -> RunConfig:
    words = ("objective=tokenizer", "precision=fp32", "tokenizer.sizes.size=tiny")
    return load_config(
        None, [*SMALL, *words, "data.views.size=16", f"data.images={images}", f"run={run}"]
    )


def batches(images: str, run: Path) -> list[np.ndarray]:
    with closing(make_objective(configured(images, run))) as made:
        assert isinstance(made, ImageObjective) and made.unseen() is None
        assert "cat" not in made.look_at_data()
        return [array for step in (0, 5) for array in made.batch(step, 0, 4)[:2]]


def test_batches_are_those_of_a_folder(web: WebServer, tmp_path: Path) -> None:
    for i in range(3):
        files = {f"{j}.{kind}": b"%d" % j for j in range(4) for kind in ("jpg", "cls")}
        files |= {f"{j}.jpg": jpeg(4 * i + j) for j in range(4)}
        web.files[f"00000{i}.tar"] = tar_of(files)
        open_store(tmp_path).create(f"tars/00000{i}.tar", web.files[f"00000{i}.tar"])
    tars = f"{tmp_path}/tars/{{000000..000002}}.tar"
    expected = batches(tars, tmp_path / "run")
    for source, ranges in ((web.url + "/{000000..000002}.tar", True), (f"pipe:cat {tars}", None)):
        web.ranges = bool(ranges)
        found = batches(source, tmp_path / "run")
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_doctor_looks_at_a_server(web: WebServer, tmp_path: Path) -> None:
    web.files["x.tar"] = tar_of({"a.jpg": jpeg(0), "a.cls": b"0"})
    (seen,) = check_places(configured(f"{web.url}/x.tar", tmp_path))
    assert seen.state == "ok"
    (unseen,) = check_places(configured(f"{web.url}/y.tar", tmp_path))
    assert unseen.state == "FAILED" and "there is no such tar (404)" in unseen.found


def test_only_images_may_lie_at_urls(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="takes no key and secret"):
        configured("https://user:hunter2@h/x.tar", tmp_path)
    with pytest.raises(StorageError, match="this scheme is not known"):
        load_config(None, [*SMALL, f"run={tmp_path}", "data.tokens=https://h/tokens"])
    words = ("objective=detect", f"data.images=pipe:touch {tmp_path}/ran")
    with pytest.raises(ConfigError, match=r"annotated images run none"):
        make_objective(load_config(None, [*SMALL, *words, f"run={tmp_path}"]))
    assert not (tmp_path / "ran").exists()
