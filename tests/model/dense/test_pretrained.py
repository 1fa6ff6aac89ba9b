"""Any ViT of timm's layout becomes a backbone with the same features, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.dense.backbone import Backbone
from model.dense.config import BackboneConfig, WindowsConfig
from model.dense.pretrained import configured, read_pretrained, take
from model.encoder import IMAGENET_MEAN, IMAGENET_STD
from model.errors import ConfigError, WeightsError
from model.official import timm_state
from model.weights import save_network

DIM, DEPTH, HEADS, PATCH, GRID = 24, 2, 3, 14, 3
State = dict[str, Tensor]


def vit(*, layer_scale: bool = False) -> State:
    """A ViT in timm's layout, with what MAE and DINOv2 have beside it."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + GRID**2, DIM),
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "head.weight": (10, DIM),
        "mask_token": (1, 1, DIM),
        "decoder_blocks.0.norm1.weight": (16,),
    }
    for n in range(DEPTH):
        for name, out, into in (
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1", 4 * DIM, DIM),
            ("mlp.fc2", DIM, 4 * DIM),
        ):
            shapes |= {f"blocks.{n}.{name}.weight": (out, into), f"blocks.{n}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{n}.{name}.{kind}": (DIM,) for kind in ("weight", "bias")}
        if layer_scale:
            shapes |= {f"blocks.{n}.ls{i}.gamma": (DIM,) for i in (1, 2)}
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def features(state: State, images: Tensor) -> list[Tensor]:
    """The patches after each block, as the formulas of ViT say (arXiv 2010.11929, eq. 1 to 3)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    name = "patch_embed.proj"
    patches = F.conv2d(
        (images - mean) / std, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=PATCH
    )
    tokens = patches.flatten(2).transpose(1, 2)
    ones = torch.ones(DIM)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], 1) + state["pos_embed"]
    results = []
    for n in range(DEPTH):
        block = f"blocks.{n}"
        q, k, v = (
            linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
            .view(len(x), -1, 3, HEADS, DIM // HEADS)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5).softmax(-1)
        attended = linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + attended * state.get(f"{block}.ls1.gamma", ones)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden) * state.get(
            f"{block}.ls2.gamma", torch.ones(DIM)
        )
        results.append(x[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID)))
    return results


@pytest.mark.parametrize("layer_scale", [False, True], ids=["MAE", "DINOv2"])
def test_the_same_features(tmp_path: Path, layer_scale: bool) -> None:
    state = vit(layer_scale=layer_scale)
    save_file(state, tmp_path / "vit.safetensors")
    torch.save({"model": state, "epoch": 1}, tmp_path / "vit.pth")
    images = torch.rand(2, 3, GRID * PATCH, GRID * PATCH)
    for name in ("vit.safetensors", "vit.pth"):
        backbone = loaded(tmp_path / name)
        for ours, theirs in zip(backbone(images, [0, 1]), features(state, images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_dense_transfer_adds_changes_nothing_at_first(tmp_path: Path) -> None:
    """Relative positions and factors of branches are learned; windows that cover the grid and no
    class token are all that differs between the two backbones."""
    save_file(vit(), tmp_path / "vit.safetensors")
    pretrained = read_pretrained(tmp_path / "vit.safetensors", heads=HEADS)
    images = torch.rand(1, 3, GRID * PATCH, GRID * PATCH)
    maps = []
    for relative, scaled in ((False, False), (True, True)):
        windows = WindowsConfig(
            size=GRID, global_blocks=(1,), relative_positions=relative, image_size=GRID * PATCH
        )
        backbone = Backbone(
            pretrained.geometry,
            configured(pretrained, BackboneConfig(windows=None, layer_scale=scaled)).model_copy(
                update={"windows": windows}
            ),
        )
        take(backbone, pretrained)
        maps += backbone(images, [1])
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(register_tokens=torch.zeros(1, 4, DIM)), "register"),
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"1 missing, first: blocks\.1\.mlp\.fc1\.bias"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}), "not of this network"),
        (lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.ones(7)}), "another shape"),
        (lambda s: s.pop("cls_token"), "no ViT of timm's layout"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 8, DIM)), "cannot be told|another shape"),
    ],
)
def test_others_are_refused(tmp_path: Path, change: Callable[[State], object], words: str) -> None:
    state = vit()
    change(state)
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match=words):
        loaded(tmp_path / "vit.safetensors")


def loaded(path: Path) -> Backbone:
    pretrained = read_pretrained(path, heads=HEADS)
    backbone = Backbone(pretrained.geometry, configured(pretrained))
    take(backbone, pretrained)
    return backbone


def test_blocks_that_the_encoder_does_not_have(tmp_path: Path) -> None:
    save_file(vit(), tmp_path / "vit.safetensors")
    pretrained = read_pretrained(tmp_path / "vit.safetensors", heads=HEADS)
    config = BackboneConfig(windows=WindowsConfig())
    with pytest.raises(ConfigError, match=r"vit\.safetensors: windows\.global_blocks|block 2"):
        configured(pretrained, config)


def test_our_own_files(tmp_path: Path) -> None:
    """An ADDP network, and its export with the norm before the blocks as timm's `norm_pre`."""
    torch.manual_seed(0)
    geometry = Geometry(image_size=64, patch_size=16)
    sizes = TransformerConfig(dim=32, depth=2, heads=4, decoder_depth=1, decoder_heads=2, dropout=0)
    addp = ADDP(geometry, sizes).eval()
    torch.nn.init.normal_(addp.tokenizer_norm.weight)
    save_network(addp, tmp_path / "addp.safetensors")
    save_file(timm_state(addp, "keep"), tmp_path / "timm.safetensors")
    images = torch.rand(2, 3, 64, 64)
    addp.norm = torch.nn.Identity()
    expected = addp.encode(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    for name, heads in (("addp", None), ("timm", 4)):
        pretrained = read_pretrained(tmp_path / f"{name}.safetensors", heads)
        backbone = Backbone(
            pretrained.geometry, configured(pretrained, BackboneConfig(tokenizer_norm=True))
        )
        take(backbone, pretrained)
        torch.testing.assert_close(backbone(images, [1])[0], expected, atol=1e-5, rtol=1e-5)
        # As the reference fine-tunes: without that norm.
        take(Backbone(pretrained.geometry, configured(pretrained)), pretrained)
