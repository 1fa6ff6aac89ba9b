"""Runs of tiny networks at other sizes of images and codebooks than the published recipes have, and
runs that begin with the weights of another size."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.streaming.loader import TokenLoader
from model import SamplingOptions, load
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.errors import ConfigError
from model.predictor import TokenPredictor
from model.resizing import for_image_size
from model.vq import VQTokenizer
from model.weights import fingerprint, save_network
from tests.datasets import tokenize
from tests.trainer.worlds import finish
from trainer.checkpointing.catalog import LocalCatalog
from trainer.config.reading import load_config
from trainer.run_folder import RunFolder

TINY = TransformerConfig(size="tiny")  # type: ignore[call-arg]
THIN = {"channels": 4, "residual_blocks": 1, "code_dim": 4, "norm_groups": 2}
SHORT = ("precision=fp32", "batch.global_batch=2", "schedule.total=2", "schedule.warmup=1")


@pytest.fixture(scope="module")
def few(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images."""
    folder = tmp_path_factory.mktemp("few") / "any"
    folder.mkdir()
    for number in range(4):
        shutil.copy(images / "ellipse" / f"{number:03d}.png", folder)
    return folder.parent


def tokenizer_of(size: int, levels: int, codes: int) -> VQTokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=size, channel_multipliers=(1,) * levels, codebook_size=codes, **THIN
    )
    network = VQTokenizer(config).eval()
    torch.nn.init.normal_(network.codebook, std=0.5)
    return network


def sizes_of(tokenizer: VQTokenizer) -> list[str]:
    return [
        f"tokenizer.sizes.{name}={list(value) if isinstance(value, tuple) else value}"
        for name, value in tokenizer.config.model_dump().items()
    ]


@pytest.mark.parametrize(("size", "levels", "codes"), [(32, 3, 256), (128, 5, 2048), (512, 5, 64)])
def test_addp_trains_and_generates(
    size: int, levels: int, codes: int, few: Path, tmp_path: Path
) -> None:
    """Patches of 4 or 16 pixels, 64 to 1,024 tokens."""
    tokenizer = tokenizer_of(size, levels, codes)
    torch.manual_seed(1)
    predictor = TokenPredictor(Geometry.of(tokenizer.config), TINY)
    files = {"tokenizer": tokenizer, "predictor": predictor}
    for kind, network in files.items():
        save_network(network, tmp_path / f"{kind}.safetensors")
    tokenize(few, tmp_path / "tokens", tokenizer, ViewRecipe.center(size))
    finish(
        tmp_path / "run",
        "objective=addp",
        f"data.tokens={tmp_path / 'tokens'}",
        *SHORT,
        *sizes_of(tokenizer),
        *(f"{kind}.weights={tmp_path / kind}.safetensors" for kind in files),
        "predictor.sizes.size=tiny",
        "addp.sizes.size=tiny",
        processes=1,
    )
    rows = RunFolder(tmp_path / "run").read_metrics()
    # Nothing is learned yet: as good as a uniform guess over the vocabulary.
    assert [row["loss"] for row in rows] == pytest.approx([math.log(codes + 1001)] * 2, rel=0.15)
    (picture,) = load(tmp_path / "run").generate(1, sampling=SamplingOptions(steps=2))
    assert picture.size == (size, size)


def test_weights_of_32_pixels_start_64(few: Path, tmp_path: Path) -> None:
    """The first step's rate is 0, so that its checkpoint holds what the run began with."""
    small = tokenizer_of(32, 3, 64)
    torch.manual_seed(1)
    network = TokenPredictor(Geometry.of(small.config), TINY)
    save_network(network, tmp_path / "small.safetensors")
    tokenizer, _ = for_image_size(small, 64)
    tokenize(few, tmp_path / "tokens", tokenizer, ViewRecipe.center(64))
    output = finish(
        tmp_path / "run",
        "objective=mage",
        f"data.tokens={tmp_path / 'tokens'}",
        *SHORT,
        "checkpoint.every=1",
        *sizes_of(tokenizer),
        "predictor.sizes.size=tiny",
        f"predictor.weights={tmp_path / 'small.safetensors'}",
        processes=1,
    )
    assert (
        f", from predictor.weights = {tmp_path / 'small.safetensors'} (resized from 32 to 64 "
        "pixels: token_emb.position_embeddings.weight, decoder_pos_embed_learned interpolated from "
        f"8 x 8 to 16 x 16), fingerprint {fingerprint(network)}\n" in output
    )
    began, _ = LocalCatalog(RunFolder(tmp_path / "run")).trained(1, "raw")
    assert fingerprint(began) == fingerprint(for_image_size(network, 64)[0])


def test_shards_name_as_many_codes_as_16_bits_can(few: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(32, 3, 65_536)
    tokenize(few, tmp_path, tokenizer, ViewRecipe.center(32))
    ids = TokenLoader(tmp_path, global_batch=4, seed=0).batch(0, 0, 4).ids
    assert ids.shape == (4, 64) and 32_767 < ids.max() <= 65_535
    with pytest.raises(ConfigError, match=r"65537 codes are more than the 65536 that token shards"):
        load_config(None, ["tokenizer.sizes.codebook_size=65537"])
