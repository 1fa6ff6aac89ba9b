"""The backbone is the classifier's encoder, at any size of images."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TransformerConfig
from model.dense.backbone import Backbone
from model.dense.config import BackboneConfig, SegmenterConfig, WindowsConfig
from model.transformer import drop_paths, recompute_blocks
from trainer.engine.optimizers import layerwise_groups

GEOMETRY = Geometry(image_size=64, patch_size=16)
ENCODER = TransformerConfig(dim=32, depth=3, heads=2, decoder_heads=2, dropout=0)
WINDOWS = WindowsConfig(size=2, global_blocks=(1,), image_size=96)


def test_its_maps_are_the_features_of_fine_tuning() -> None:
    torch.manual_seed(0)
    classifier = Classifier(GEOMETRY, ClassifierConfig(encoder=ENCODER, classes=("a",)))
    backbone = Backbone(GEOMETRY, BackboneConfig(encoder=ENCODER))
    own = backbone.state_dict()
    backbone.load_state_dict({k: v for k, v in classifier.state_dict().items() if k in own})
    for size in ((64, 64), (96, 48)):  # the trained grid, and another one
        images = torch.rand(2, 3, *size)
        (last,) = backbone(images, [2])
        assert last.shape == (2, 32, size[0] // 16, size[1] // 16)
        torch.testing.assert_close(
            last.flatten(2).transpose(1, 2), classifier.encode(images)[:, 1:]
        )


@pytest.mark.parametrize("windows", [None, WINDOWS], ids=["plain", "windows"])
def test_recomputation_changes_no_gradient(windows: WindowsConfig | None) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(encoder=ENCODER, tokenizer_norm=True, layer_scale=True, windows=windows)
    backbone = Backbone(GEOMETRY, config)
    drop_paths(backbone.blocks, 0.5)
    images = torch.rand(4, 3, 80, 96)
    gradients = []
    for every in (0, 1):
        recompute_blocks(backbone, every)
        backbone.zero_grad()
        torch.manual_seed(1)
        maps = backbone(images, [0, 1, 1, 2])
        torch.stack([x.square().mean() for x in maps[1:]]).sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], msg=name, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("windows", [None, WINDOWS], ids=["plain", "windows"])
def test_mixed_precision_stays_near(windows: WindowsConfig | None) -> None:
    torch.manual_seed(0)
    backbone = Backbone(GEOMETRY, BackboneConfig(encoder=ENCODER, windows=windows))
    for name, parameter in backbone.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, 64, 64)
    (exact,) = backbone(images, [2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = backbone(images, [2])
    assert mixed.dtype == torch.float32  # the residual stream
    assert (mixed - exact).norm() / exact.norm() < 0.02


def test_the_learning_rate_falls_as_in_fine_tuning() -> None:
    config = BackboneConfig(encoder=ENCODER, layer_scale=True, windows=WINDOWS)
    names = {p: name for name, p in Backbone(GEOMETRY, config).named_parameters()}
    groups = layerwise_groups(
        ((name, p) for p, name in names.items()), 0.1, depth=3, layer_decay=0.5
    )
    scales = {names[p]: group["scale"] for group in groups for p in group["params"]}
    assert scales["patch_embed.proj.weight"] == scales["pos_embed"] == 0.5**4
    assert scales["blocks.1.attn.rel_pos_h"] == scales["blocks.1.ls1.gamma"] == 0.5**2
    assert scales["blocks.2.mlp.fc2.bias"] == 0.5


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: BackboneConfig(encoder=ENCODER, windows=WindowsConfig()), "block 5"),
        (lambda: segmenter((0, 1, 1, 1)), "last block, 2"),
        (lambda: segmenter((1, 0, 1, 2)), "ascending"),
    ],
)
def test_blocks_that_there_are_not(config: object, words: str) -> None:
    assert callable(config)
    with pytest.raises(ValidationError, match=words):
        config()


def segmenter(blocks: tuple[int, int, int, int]) -> SegmenterConfig:
    return SegmenterConfig(
        backbone=BackboneConfig(encoder=ENCODER), classes=("a", "b"), blocks=blocks
    )
