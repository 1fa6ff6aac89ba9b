"""Data are known by what they are, wherever they lie and however that is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.shards.manifest import read_manifest
from model.errors import ConfigError, DataError
from tests.conftest import draw_images
from trainer.config.options import LARGEST_INFERENCE_BATCH
from trainer.config.reading import load_config
from trainer.evaluation.contents import Contents, listing_of
from trainer.evaluation.options import EvaluationOptions


def images_key(location: str) -> str:
    return listing_of(location).key


def test_a_location_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(tmp_path / "images")
    key = images_key(str(images))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(images)
    for name in ("images", "./images/", f"{images}/", "line/../images", "link"):
        (tmp_path / "line").mkdir(exist_ok=True)
        assert images_key(name) == key, name
    shutil.move(images, tmp_path / "moved")
    assert images_key("moved") == key


def test_a_location_whose_content_changes(tmp_path: Path) -> None:
    keys = set()

    def changed() -> None:
        keys.add(images_key(str(tmp_path)))

    draw_images(tmp_path)
    changed()
    (tmp_path / "line" / "000.png").rename(tmp_path / "line" / "new.png")
    changed()
    (tmp_path / "line" / "new.png").rename(tmp_path / "ellipse" / "new.png")
    changed()
    with (tmp_path / "ellipse" / "new.png").open("ab") as file:
        file.write(b"x")
    changed()
    (tmp_path / "ellipse" / "new.png").unlink()
    changed()
    assert len(keys) == 5


def test_tokens_and_files(tokens: Path, tmp_path: Path) -> None:
    contents = Contents("val")
    assert contents.key("train_tokens", str(tokens)) == read_manifest(tokens).fingerprint
    (tmp_path / "a").write_bytes(b"weights")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert contents.key("inception_weights", str(tmp_path / "a")) == contents.key(
        "inception_weights", f"{tmp_path}/./b"
    )
    assert contents.key("images", None) is None
    with pytest.raises(DataError, match="there is no folder"):
        contents.key("images", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="none cannot be read: No such file"):
        contents.key("inception_weights", str(tmp_path / "none"))


def test_what_is_not_given_is_the_runs() -> None:
    config = load_config(
        None,
        [
            "seed=5",
            "batch.micro=3",
            "data.images=here",
            "data.held_out=0.3",
            "data.tokens=s3://b/train",
        ],
    )
    options, taken = EvaluationOptions(batch=7, images="there").resolved(config)
    assert taken == {"held_out": 0.3, "train_tokens": "s3://b/train", "seed": 5}
    assert (options.batch, options.images, options.seed, options.held_out) == (7, "there", 5, 0.3)
    assert EvaluationOptions().resolved(load_config(None))[0].images is None
    large = load_config(None, ["batch.global_batch=100000", "batch.micro=100000"])
    assert EvaluationOptions().resolved(large)[0].batch == LARGEST_INFERENCE_BATCH
