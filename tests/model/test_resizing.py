"""Trained networks at another size of images: of every kind, in our files and in official ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.errors import ConfigError, WeightsError
from model.networks import build
from model.official import official_metadata, official_state, write_state
from model.positions import on_grid
from model.predictor import TokenPredictor
from model.resizing import for_image_size, resized_networks
from model.weights import load_network, save_network

SIZES = TransformerConfig(size="tiny")  # type: ignore[call-arg]
SMALL = Geometry(image_size=16, patch_size=4, codebook_size=16)
LARGE = Geometry(image_size=32, patch_size=4, codebook_size=16)
TABLES = {
    "addp": [
        "pos_embed",
        "decoder_pos_embed_learned",
        "decoder_pos_mask_embed",
        "decoder_pos_token_embed",
    ],
    "predictor": ["token_emb.position_embeddings.weight", "decoder_pos_embed_learned"],
}
FORMS = ("ours.safetensors", "stated.safetensors", "official.pth")


def network_of(kind: str, geometry: Geometry = SMALL) -> ADDP | TokenPredictor:
    torch.manual_seed(5)
    network = build(kind, SIZES, geometry).eval()
    assert isinstance(network, ADDP | TokenPredictor)
    return network


def written(network: ADDP | TokenPredictor, path: Path) -> Path:
    """As our own file, in the official layout with sizes, or as published: without them, and with
    unused rows in MAGE's table."""
    if path.name == "ours.safetensors":
        save_network(network, path)
        return path
    state, stated = official_state({network.kind: network}), None
    if path.name == "stated.safetensors":
        stated = official_metadata({network.kind: network})
    elif network.kind == "predictor":
        name = "token_predictor.token_emb.position_embeddings.weight"
        state[name] = torch.cat([state[name], torch.randn(257 - len(state[name]), 32)])
    write_state(state, path, stated)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TABLES)
def test_positions_alone_are_interpolated(kind: str, form: str, tmp_path: Path) -> None:
    network = network_of(kind)
    file = written(network, tmp_path / form)
    found = load_network(file, kind, config=SIZES, geometry=LARGE, any_size=True)
    assert isinstance(found, ADDP | TokenPredictor) and found.geometry == SMALL
    larger, resized = for_image_size(found.eval(), 32)
    assert larger.geometry == LARGE and not larger.training
    own, made = network.state_dict(), larger.state_dict()
    for name, tensor in own.items():
        if name not in TABLES[kind]:
            assert torch.equal(made[name], tensor), name
            continue
        table = on_grid(tensor.view(1, -1, 32), 8, 8)
        assert torch.equal(made[name].view(1, -1, 32), table), name
    assert resized is not None and sorted(resized.tables) == sorted(TABLES[kind])
    tables = ", ".join(resized.tables)
    assert str(resized) == (
        f"resized from 16 to 32 pixels: {tables} interpolated from 4 x 4 to 8 x 8"
    )


def test_a_resized_encoder_computes_what_the_encoder_computes_at_that_size() -> None:
    network = network_of("addp")
    assert isinstance(network, ADDP)
    larger, _ = for_image_size(network, 32)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(larger.encode(images), network.encode(images))
    assert for_image_size(network, 16) == (network, None)


def test_a_tokenizer_has_no_positions() -> None:
    tokenizer = build("tokenizer", TokenizerConfig(size="tiny"))  # type: ignore[call-arg]
    made, changes = resized_networks({"tokenizer": tokenizer}, 32)
    assert changes == ["tokenizer resized from 16 to 32 pixels: it has no positions"]
    assert made["tokenizer"].config.image_size == 32  # type: ignore[union-attr]
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(made["tokenizer"].state_dict()[name], tensor)
    with pytest.raises(
        ConfigError, match=r"the tokenizer cannot be resized to 30 pixels: .* no multiple of the st"
    ):
        resized_networks({"tokenizer": tokenizer}, 30)
    with pytest.raises(ConfigError, match="the addp cannot be resized to 2048 pixels: 262144 tok"):
        resized_networks({"addp": network_of("addp")}, 2048)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_position_must_fit(form: str, tmp_path: Path) -> None:
    """Another patch and another codebook; and another size, where it was not asked for."""
    file = written(network_of("addp"), tmp_path / form)

    def load(geometry: Geometry, any_size: bool = True) -> None:
        load_network(file, "addp", config=SIZES, geometry=geometry, any_size=any_size)

    published = form == "official.pth"
    for change in ({"patch_size": 8}, {"codebook_size": 32}):
        with pytest.raises(WeightsError, match="of another shape" if published else "was made for"):
            load(LARGE.model_copy(update=change))
    says = "OUT --resize PIXELS` resizes them" if published else "OUT --resize 32` resizes it"
    with pytest.raises(WeightsError, match=says):
        load(LARGE, any_size=False)


def test_a_table_that_is_no_square_is_of_another_shape(tmp_path: Path) -> None:
    state = official_state({"addp": network_of("addp")})
    for rows in (1, 13):
        for name in TABLES["addp"]:
            state[name] = torch.zeros(1, rows, 32)
        write_state(state, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match="4 of another shape, first: pos_embed"):
            load_network(tmp_path / "a.pth", "addp", config=SIZES, geometry=LARGE, any_size=True)
