"""Official files in and out, and timm's layout against a plain ViT that is written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TransformerConfig
from model.encoder import IMAGENET_MEAN, IMAGENET_STD
from model.errors import WeightsError
from model.official import import_official, official_state, timm_state, write_state

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = TransformerConfig(dim=64, depth=3, heads=4, decoder_depth=1, decoder_heads=4, dropout=0.0)
GEOMETRY = Geometry(image_size=32, patch_size=8, codebook_size=16)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip_of_an_official_file(suffix: str, tmp_path: Path) -> None:
    folder = FIXTURES / "small"
    sizes = json.loads((folder / "meta.json").read_text())["config"]
    networks = import_official(folder / "weights.safetensors", sizes["heads"], sizes["dheads"], 256)
    assert set(networks) == {"addp", "predictor", "tokenizer"}
    addp = networks["addp"]
    assert isinstance(addp, ADDP) and addp.geometry.image_size == 64
    assert (addp.config.dim, addp.config.depth, addp.config.decoder_depth) == (sizes["dim"], 3, 2)

    write_state(official_state(networks), tmp_path / f"out{suffix}")
    again = import_official(tmp_path / f"out{suffix}", sizes["heads"], sizes["dheads"], 256)
    official = load_file(folder / "weights.safetensors")
    written = official_state(again)
    assert written.keys() <= official.keys() and len(written) == 312
    for name, value in written.items():  # MAGE's table of positions always has 257 rows; the rest is not used
        assert torch.equal(value, official[name].float()[: len(value)]), name


def test_what_is_no_official_file_is_said(tmp_path: Path) -> None:
    write_state({"something": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no network of ADDP"):
        import_official(tmp_path / "x.pth", None, None, 256)


def plain_vit(state: dict[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """timm's VisionTransformer.forward_features, from its documentation; with `norm_pre` where the state has it."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    bias = state.get("patch_embed.proj.bias")
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d((images - mean) / std, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    dim = x.shape[-1]

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    if "norm_pre.weight" in state:
        x = norm("norm_pre", x)
    for i in range(len({k.split(".")[1] for k in state if k.startswith("blocks.")})):
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (dim // heads) ** 0.5).softmax(-1)
        x = x + linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))))
    return norm("norm", x) if "norm.weight" in state else x


def randomised(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_timm_keeps_the_features() -> None:
    network = ADDP(GEOMETRY, SIZES).eval()
    randomised(network)
    images = torch.rand(2, 3, 32, 32)
    kept = timm_state(network, "keep")
    assert "patch_embed.proj.bias" not in kept and "norm_pre.weight" in kept
    assert torch.allclose(plain_vit(kept, images, 4), network.encode(images), atol=1e-4)
    dropped = timm_state(network, "drop")
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    assert {k for k in dropped if not k.startswith("blocks.")} == expected
    assert not torch.allclose(plain_vit(dropped, images, 4), network.encode(images), atol=0.1)


@pytest.mark.parametrize("tokenizer_norm", [False, True])
def test_timm_takes_a_fine_tuned_classifier(tokenizer_norm: bool) -> None:
    network = Classifier(
        GEOMETRY, ClassifierConfig(encoder=SIZES, classes=tuple("abcdefg"), tokenizer_norm=tokenizer_norm)
    ).eval()
    randomised(network)
    images = torch.rand(2, 3, 32, 32)
    state = timm_state(network, "keep")
    pooled = plain_vit(state, images, 4)[:, 1:].mean(1)
    logits = F.linear(
        F.layer_norm(pooled, (64,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6),
        state["head.weight"], state["head.bias"],
    )  # fmt: skip
    assert torch.allclose(logits, network.logits(images), atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_feature_maps(size: tuple[int, int]) -> None:
    network = ADDP(Geometry(image_size=64, patch_size=16, codebook_size=16), SIZES).eval()
    images = torch.rand(2, 3, *size)
    maps = network.feature_maps(images)
    assert [tuple(m.shape) for m in maps] == [(2, 64, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    assert all(m.isfinite().all() for m in maps)
    if size == (64, 96):
        last = network.feature_maps(images, at=(1, 2, 3, 3))[2]
        assert torch.allclose(last.flatten(2).transpose(1, 2), network.encode(images)[:, 1:], atol=1e-5)
