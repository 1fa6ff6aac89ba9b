"""Official layouts load; wrong files are refused by name; nothing in a file is executed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.errors import WeightsError
from model.networks import Network
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network, load_tokenizer, save_network
from tests.conftest import FIXTURES

STATE = {
    k: v.float()
    for k, v in load_file(FIXTURES / "small" / "weights.safetensors").items()
    if "position_ids" not in k
}
GEOMETRY = Geometry(image_size=64, patch_size=16, codebook_size=1024)
SIZES = {"dim": 64, "depth": 3, "heads": 4, "decoder_depth": 2, "decoder_heads": 8}
PREDICTOR_SIZES = {"dim": 48, "depth": 2, "heads": 4, "decoder_depth": 2, "decoder_heads": 4}


def without(prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in STATE.items() if k.startswith(prefix)}


def vqgan() -> VQTokenizer:
    return VQTokenizer(
        TokenizerConfig(
            image_size=64,
            channels=32,
            channel_multipliers=(1, 1, 1, 1, 2),
            code_dim=32,
            codebook_size=1024,
        )
    )


def predictor() -> TokenPredictor:
    return TokenPredictor(GEOMETRY, TransformerConfig(**PREDICTOR_SIZES))


def load_official(network: Network, path: Path) -> Network:
    """Return a network of the same sizes, from an official file."""
    geometry = None if isinstance(network, VQTokenizer) else network.geometry
    return load_network(path, network.kind, config=network.config, geometry=geometry)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_vqgan_checkpoint(tmp_path: Path, wrapper: str | None) -> None:
    state = without("vqgan.")
    torch.save(
        state if wrapper is None else {wrapper: state, "epoch": 3},
        tmp_path / "vqgan_jax_strongaug.ckpt",
    )
    network = load_official(vqgan(), tmp_path / "vqgan_jax_strongaug.ckpt")
    own = network.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def test_a_tokenizer_of_either_kind(tmp_path: Path) -> None:
    """The official file has the published sizes; ours says its own."""
    torch.save(
        {"state_dict": VQTokenizer(TokenizerConfig()).state_dict()},
        tmp_path / "vqgan_jax_strongaug.ckpt",
    )
    assert load_tokenizer(tmp_path / "vqgan_jax_strongaug.ckpt").config == TokenizerConfig()
    small = vqgan()
    save_network(small, tmp_path / "small.safetensors")
    loaded = load_tokenizer(tmp_path / "small.safetensors")
    assert loaded.config == small.config and not loaded.training
    torch.save(small.state_dict(), tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="does not fit the tokenizer"):
        load_tokenizer(tmp_path / "other.ckpt")


def test_mage_checkpoint(tmp_path: Path) -> None:
    """As released: wrapped, with the training arguments, leftovers of MAE, and its own copy of the
    tokenizer."""
    state = without("token_predictor.")
    state |= {"token_emb.position_ids": torch.arange(257)[None]} | {
        f"vqgan.{k}": v for k, v in without("vqgan.").items()
    }
    content = {
        "model": state,
        "optimizer": {"state": {}},
        "epoch": 1599,
        "args": argparse.Namespace(lr=1e-4),
    }
    torch.save(content, tmp_path / "mage.pth")
    own = load_official(predictor(), tmp_path / "mage.pth").state_dict()
    assert torch.equal(own["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    assert {
        "token_emb.position_ids",
        "decoder_pred.weight",
        "patch_embed.proj.weight",
        "vqgan.encoder.conv_in.weight",
    } <= state.keys() - own.keys()


def test_addp_checkpoint_fills_all_three(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace()}, tmp_path / "addp.pth")
    shapes = [vqgan(), predictor(), ADDP(GEOMETRY, TransformerConfig(**SIZES))]
    for network, prefix in zip(shapes, ("vqgan.", "token_predictor.", ""), strict=True):
        loaded = load_official(network, tmp_path / "addp.pth")
        assert type(loaded) is type(network)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, STATE[prefix + key][: len(value)]), key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("norm.weight"), ["1 missing", "norm.weight"]),
        (lambda s: s.update(extra=torch.zeros(1)), ["1 not of this network", "extra"]),
        (
            lambda s: s.update({"norm.bias": torch.zeros(7)}),
            ["another shape", "norm.bias", "(7,)", "(64,)"],
        ),
    ],
)
def test_a_wrong_file_names_the_first_keys(tmp_path: Path, change: Any, words: list[str]) -> None:
    state = dict(STATE)
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsError) as caught:
        load_official(ADDP(GEOMETRY, TransformerConfig(**SIZES)), tmp_path / "wrong.pth")
    assert all(word in str(caught.value) for word in [*words, "wrong.pth"])


def test_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "addp.pth")
    with pytest.raises(WeightsError, match="another shape"):
        load_official(
            ADDP(GEOMETRY, TransformerConfig(**(SIZES | {"dim": 128}))), tmp_path / "addp.pth"
        )


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"x\."):
            load_network(
                tmp_path / name, "addp", config=TransformerConfig(**SIZES), geometry=GEOMETRY
            )


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "args": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError):
        load_official(ADDP(GEOMETRY, TransformerConfig(**SIZES)), tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_our_files_describe_themselves(tmp_path: Path, tokenizer: VQTokenizer) -> None:
    save_network(tokenizer, tmp_path / "t.safetensors")
    again = load_network(tmp_path / "t.safetensors", "tokenizer")
    assert again.config == tokenizer.config and fingerprint(again) == fingerprint(tokenizer)
    with pytest.raises(WeightsError, match="holds a tokenizer, but a predictor is needed"):
        load_network(tmp_path / "t.safetensors", "predictor")
    save_network(predictor(), tmp_path / "p.safetensors")
    with pytest.raises(WeightsError, match="was made for"):
        load_network(tmp_path / "p.safetensors", "predictor", geometry=Geometry())
    with pytest.raises(WeightsError, match="no weights file"):
        load_network(tmp_path / "none.safetensors", "predictor")


def test_the_same_network_is_the_same_bytes(tmp_path: Path, tokenizer: VQTokenizer) -> None:
    """safetensors writes the metadata in the order of a hash table, another for each file."""
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        save_network(tokenizer, file)
    assert len({file.read_bytes() for file in files}) == 1
    assert fingerprint(load_network(files[0], "tokenizer")) == fingerprint(tokenizer)


def test_an_outline_costs_neither_memory_nor_the_import_of_a_compiler() -> None:
    """Each command that loads a network makes one; PyTorch's compiler takes seconds to import."""
    code = (
        "import sys; from model.config import *; from model.networks import Sizes, outline\n"
        "g = Geometry(); small = TransformerConfig(size='tiny', positions='sincos')\n"
        "for kind, config in (('tokenizer', TokenizerConfig()), ('predictor', small),\n"
        "    ('addp', TransformerConfig()), ('classifier', ClassifierConfig(classes=('a',)))):\n"
        "    tensors = outline(kind, Sizes(config, g), 10**4, 'x')\n"
        "    assert tensors and all(tensor.is_meta for tensor in tensors.values())\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FIXTURES.parents[1])
