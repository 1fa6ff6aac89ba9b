"""A sharding job in one process: what it makes, and how it goes on."""

from __future__ import annotations

import copy
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.images.images import BadImage, read_image
from data_pipeline.images.sources import split_of
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.sharding.encoder import TokenEncoder
from data_pipeline.sharding.options import JobOptions
from data_pipeline.sharding.tokenize import JobSettings, check_tokenizer
from data_pipeline.shards.manifest import MANIFEST, read_manifest
from data_pipeline.streaming.loader import TokenLoader
from model.config import TokenizerConfig
from model.errors import DataError
from model.vq import VQTokenizer
from model.weights import fingerprint
from tests.datasets import job, plan, tokenize
from tests.tars import jpeg, tar_of

RECIPE = ViewRecipe(size=16, views=2)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("batch", [5, 64])  # a batch ends within an image's views, or is never full
def test_tokens_are_those_of_the_views(
    images: Path, tokenizer: VQTokenizer, tmp_path: Path, batch: int
) -> None:
    source = split_of(images, "val")
    manifest = tokenize(images, tmp_path, tokenizer, RECIPE, rows=8, split="val", batch=batch)
    assert manifest == read_manifest(tmp_path) and manifest.tokenizer == fingerprint(tokenizer)
    assert manifest.rows == len(source.images) and manifest.classes == source.classes
    loader = TokenLoader(tmp_path, global_batch=1, seed=0)
    labels = np.concatenate(
        [
            r.records["label"].astype(int)
            for r in map(loader.shards[0].open, range(len(manifest.shards)))
        ]
    )
    tokens = np.concatenate(
        [r.records["tokens"] for r in map(loader.shards[0].open, range(len(manifest.shards)))]
    )
    for image in source.images:
        views = np.stack(
            [make_view(read_image(source.store, image), image.id, v, RECIPE) for v in range(2)]
        )
        with torch.no_grad():
            expected = tokenizer.encode(
                torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
            ).numpy()
        assert any(
            np.array_equal(row, expected) and label == image.label
            for row, label in zip(tokens, labels, strict=True)
        )


def test_an_interrupted_job_gives_the_same_bytes(
    images: Path, tokenizer: VQTokenizer, tmp_path: Path
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    for out in (whole, again):
        tokenize(images, out, tokenizer, RECIPE, rows=32)
    assert folder_bytes(whole) == folder_bytes(again)
    (again / MANIFEST).unlink()
    (
        again / "parts" / "000001.json"
    ).unlink()  # killed after a shard was stored, before it was vouched for
    (again / "tokens-000002.tar").unlink()
    (again / ".tmp").mkdir()
    (again / ".tmp" / "left").write_bytes(b"of a killed worker")
    tokenize(images, again, tokenizer, RECIPE, rows=32)
    assert folder_bytes(whole) == folder_bytes(again)


def test_bad_images_are_quarantined_up_to_a_limit(
    images: Path, tokenizer: VQTokenizer, tmp_path: Path
) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    (copy / "line" / "000.png").write_bytes(b"no image")
    manifest = tokenize(copy, tmp_path / "out", tokenizer, RECIPE, rows=50)
    assert [q.id for q in manifest.quarantined] == ["line/000.png"] and manifest.rows == 119
    assert "identify" in manifest.quarantined[0].reason
    planned = plan(copy, tmp_path / "strict", tokenizer, RECIPE)
    with pytest.raises(BadImage, match=r"line/000\.png"):
        list(job(planned, tmp_path / "strict", tokenizer, on_bad="fail").run([0]))
    for i in range(1, 4):
        (copy / "line" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 120 .*more than the limit 1.0%: line/00"):
        tokenize(copy, tmp_path / "out2", tokenizer, RECIPE)
    assert not (tmp_path / "out2" / MANIFEST).exists() and not list(
        (tmp_path / "out2").glob("*.tar")
    )


def test_a_shard_without_a_readable_image_has_no_tar(
    images: Path, tokenizer: VQTokenizer, tmp_path: Path
) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    planned = plan(copy, tmp_path / "out", tokenizer, RECIPE, rows=1)
    from data_pipeline.sharding.plan import shard_images
    from data_pipeline.storage import open_store

    ((_, image),) = shard_images(open_store(tmp_path / "out"), planned, 7)
    (copy / image.id).write_bytes(b"")
    manifest = tokenize(copy, tmp_path / "out2", tokenizer, RECIPE, rows=1, batch=2)
    assert len(manifest.shards) == 119 and manifest.quarantined[0].reason == "empty file"
    assert not (tmp_path / "out2" / "tokens-000007.tar").exists()


def test_another_tokenizer_or_size_is_refused(
    images: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    planned = plan(images, tmp_path, tokenizer, RECIPE)
    other = VQTokenizer(TokenizerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    with pytest.raises(DataError, match="another tokenizer"):
        check_tokenizer(other, planned)
    with pytest.raises(DataError, match="do not fit a tokenizer for 16 px"):
        plan(images, tmp_path / "x", tokenizer, ViewRecipe(size=32))
    opened = JobSettings(str(tmp_path), str(tokenizer_file), options=JobOptions(threads=3)).open()
    assert opened.plan == planned and opened.threads == 3


def test_bf16_and_fp32_agree_on_most_tokens(images: Path, tokenizer: VQTokenizer) -> None:
    source = split_of(images)
    views = np.stack(
        [make_view(read_image(source.store, p), p.id, 0, RECIPE) for p in source.images[:64]]
    )
    exact = TokenEncoder(copy.deepcopy(tokenizer), batch=64)(views)
    half = TokenEncoder(copy.deepcopy(tokenizer), batch=64, precision="bf16")(views)
    assert 0.8 < (exact == half).float().mean() < 1.0


@pytest.mark.parametrize(
    ("device", "compiled", "layout"),
    [
        ("cpu", False, torch.channels_last),
        ("meta", False, torch.contiguous_format),  # as on a GPU
        ("meta", True, torch.channels_last),
    ],
)
def test_the_encoder_computes_in_the_layout_of_its_device(
    device: str, compiled: bool, layout: torch.memory_format, tokenizer: VQTokenizer
) -> None:
    """cuDNN takes channels last where either the images or the weights have it."""
    network = copy.deepcopy(tokenizer)
    encoder = TokenEncoder(network, device=device, batch=2, compiled=compiled)
    inputs: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, images: inputs.extend(images))
    with torch.no_grad():
        encoder._encode(torch.zeros(2, 16, 16, 3, dtype=torch.uint8, device=device))
    (images,) = inputs
    assert images.shape == (2, 3, 16, 16) and images.is_contiguous(memory_format=layout)
    for weight in network.encoder.parameters():
        assert weight.dim() < 4 or weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("format", ["AVIF", "JPEG"])
@pytest.mark.parametrize("source_kind", ["folder", "tar"])
def test_one_damaged_image_does_not_stop_a_job(
    format: str, source_kind: str, tokenizer: VQTokenizer, tmp_path: Path
) -> None:
    """A bit of an AVIF flipped made its decoder raise what nobody caught, in every run again."""
    data = BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(data, format)
    damaged = bytearray(data.getvalue())
    damaged[len(damaged) // 2 :] = bytes(64)
    files = {"a.jpg": jpeg(0), "b.jpg": bytes(damaged), "c.jpg": jpeg(2)}
    source = tmp_path / "source"
    if source_kind == "tar":
        source.mkdir()
        tar = tar_of(
            {
                name: content
                for k in files
                for name, content in ((k, files[k]), (f"{k[0]}.cls", b"1"))
            }
        )
        (source / "x.tar").write_bytes(tar)
    else:
        (source / "cat").mkdir(parents=True)
        for name, content in files.items():
            (source / "cat" / name).write_bytes(content)
    manifest = tokenize(source, tmp_path / "out", tokenizer, RECIPE)
    assert manifest.rows == 2
    (bad,) = manifest.quarantined
    assert bad.id.endswith("/b.jpg")
    assert (
        bad.reason == "cannot identify image file"
        if format == "AVIF"
        else "truncated" in bad.reason
    )
