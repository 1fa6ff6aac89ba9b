"""UperNet as published, its loss and its inference beside plain counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.config import Geometry
from model.dense.config import SegmenterConfig
from model.dense.segmenter import Segmenter
from model.errors import ConfigError
from model.weights import load_network, save_network
from tests.model.dense.small import small_segmenter


def test_base_has_the_shapes_and_parameters_of_the_publication() -> None:
    """mmsegmentation's `upernet_mae-base` at 512 pixels, counted by its definition: D = 768
    channels in the maps and in the head, 150 classes."""
    classes = tuple(map(str, range(150)))
    with torch.device("meta"):
        network = Segmenter(Geometry(), SegmenterConfig(classes=classes)).eval()
        maps = network._maps(torch.empty(1, 3, 512, 512))
        logits = network.head(maps), network.auxiliary_head(maps)
    assert [tuple(x.shape) for x in maps] == [(1, 768, side, side) for side in (128, 64, 32, 16)]
    assert [tuple(x.shape) for x in logits] == [(1, 150, 128, 128), (1, 150, 32, 32)]

    def layer(into: int, out: int, kernel: int) -> int:  # a convolution without bias, and a norm
        return into * out * kernel**2 + 2 * out

    d = 768
    head = (
        4 * layer(d, d, 1)  # pooled to 1, 2, 3 and 6 cells
        + layer(5 * d, d, 3)  # these four and the last map
        + 3 * (layer(d, d, 1) + layer(d, d, 3))  # laterals and what smooths their sums
        + layer(4 * d, d, 3)
        + d * 150
        + 150
    )
    pyramid = 3 * (d * d * 4 + d) + 2 * d
    auxiliary = layer(d, 256, 3) + 256 * 150 + 150
    counts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in network.named_children()
    }
    assert counts["head"] == head and counts["auxiliary_head"] == auxiliary
    assert counts["pyramid"] == pyramid
    # timm's ViT-B/16 of 224 pixels has 85,798,656 without its head; a norm of them is left out.
    assert counts["backbone"] == 85_798_656 - 1536 + d * (256 + 1) - d * 197


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    network = small_segmenter().eval()
    images = torch.rand(2, 3, 64, 96)
    labels = torch.randint(0, 3, (2, 64, 96), dtype=torch.uint8)
    labels[0, :, :40] = 255
    losses = network.losses(images, labels)
    maps = network._maps(images)
    for name, head, weight in (
        ("segmentation", network.head, 1.0),
        ("auxiliary", network.auxiliary_head, 0.4),
    ):
        logits = F.interpolate(head(maps), (64, 96), mode="bilinear", align_corners=False)
        logp = logits.log_softmax(1)
        terms = [
            -logp[b, int(label), y, x]
            for b in range(2)
            for y in range(0, 64)
            for x in range(96)
            if (label := labels[b, y, x]) != 255
        ]
        torch.testing.assert_close(losses[name], weight * torch.stack(terms).mean())
    assert network(images, labels) == sum(losses.values())
    assert network(images, torch.full_like(labels, 255)) == 0


def test_each_parameter_gets_a_gradient_whatever_the_labels() -> None:
    network = small_segmenter(dropout=0.1)
    images = torch.rand(2, 3, 64, 64)
    for labels in (torch.zeros(2, 64, 64).long(), torch.full((2, 64, 64), 255)):
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(images, labels)
        assert loss.dtype == torch.float32 and loss.isfinite()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_equal_seeds_give_equal_bits() -> None:
    results = []
    for _ in range(2):
        network = small_segmenter(dropout=0.5)
        torch.manual_seed(1)
        network(torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))).backward()
        results.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_image_has_no_variance() -> None:
    with pytest.raises(ConfigError, match=r"batch\.micro = 2"):
        small_segmenter()(torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64).long())


def test_sliding_windows_are_averaged() -> None:
    """Windows of 64 pixels, 43 apart: the last one ends with the image, and a side that is shorter
    than a window is a window."""
    network = small_segmenter().eval()
    images = torch.rand(1, 3, 50, 120)
    total, times = torch.zeros(1, 3, 50, 120), torch.zeros(120)
    for left in (0, 43, 56):
        total[..., left : left + 64] += network.logits(images[..., left : left + 64])
        times[left : left + 64] += 1
    torch.testing.assert_close(network.sliding_logits(images, 64, 43), total / times)
    torch.testing.assert_close(network.sliding_logits(images, 128, 64), network.logits(images))


def test_an_image_is_filled_up_with_the_mean() -> None:
    network = small_segmenter().eval()
    images = torch.rand(1, 3, 50, 70)
    filled = network.backbone.mean.expand(1, 3, 64, 96).clone()
    filled[..., :50, :70] = images
    torch.testing.assert_close(network.logits(images), network.logits(filled)[..., :50, :70])


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    network = small_segmenter()
    save_network(network, tmp_path / "segmenter.safetensors")
    loaded = load_network(tmp_path / "segmenter.safetensors", "segmenter")
    assert isinstance(loaded, Segmenter) and loaded.config == network.config
    own = network.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'addp\[segment\]'"):
        small_segmenter()
