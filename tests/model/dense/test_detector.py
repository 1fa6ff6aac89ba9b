"""ViTDet's pyramid and Mask R-CNN's heads: sizes, losses, and gradients whatever an image holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.config import Geometry
from model.dense.config import DetectorConfig
from model.dense.detector import Detector, Instances
from model.errors import ConfigError
from model.weights import load_network, save_network
from tests.model.dense.small import NONE, SIZES, TWO, small_detector


def test_base_has_the_shapes_and_parameters_of_the_publication() -> None:
    """ViTDet with Mask R-CNN on ViT-B has 111 million parameters (arXiv 2203.16527, table 5). A
    part of it is counted by its definition."""
    config = DetectorConfig(classes=tuple(map(str, range(80))))
    with torch.device("meta"):
        network = Detector(Geometry(image_size=224), config).eval()
        maps = network.pyramid(torch.empty(2, 768, 64, 64))
    sides = {"p2": 256, "p3": 128, "p4": 64, "p5": 32, "p6": 16}
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        name: (2, 256, side, side) for name, side in sides.items()
    }
    counts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in network.named_modules()
    }
    norms, smooth = 4 * 256, 256 * 256 * 9
    assert counts["pyramid"] == (
        2 * (768 * 384 * 4 + 384)  # doubled once, and for the first time of two
        + (2 * 384 + 384 * 192 * 4 + 192)
        + 256 * (192 + 384 + 768 + 768)
        + 4 * (smooth + norms)
    )
    assert counts["heads.rpn"] == 2 * (smooth + 256) + 256 * 15 + 15
    assert counts["heads.regions.box_head"] == 4 * (smooth + 512) + 256 * 49 * 1024 + 1024
    assert counts["heads.regions.mask_head"] == 4 * (smooth + 512)
    window, everywhere = 8 * 2 * 27 * 64, 4 * 2 * 127 * 64
    assert counts["backbone"] == 85_798_656 - 1536 + window + everywhere
    assert round(counts[""] / 1e6) == 111


@pytest.mark.parametrize("objects", [[TWO, NONE], [NONE, NONE]], ids=["some", "none"])
def test_each_parameter_gets_a_gradient(objects: list[Instances]) -> None:
    network = small_detector()
    losses = network.losses(torch.rand(2, 3, 96, 96), SIZES, objects)
    assert losses.keys() == {"objectness", "proposals", "classes", "boxes", "masks"}
    empty = objects[0] is NONE
    assert all(
        (float(losses[key].detach()) == 0) == empty for key in ("proposals", "boxes", "masks")
    )
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    of_masks = network.heads.regions.mask_predictor.mask_fcn_logits.weight.grad
    assert bool(of_masks.any()) != empty


def test_equal_seeds_give_equal_bits_and_others_other_samples() -> None:
    images = torch.rand(2, 3, 96, 96)
    results = []
    for seed in (1, 1, 2):
        network = small_detector()
        torch.manual_seed(seed)
        loss = network(images, SIZES, [TWO, NONE])
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert results[0][0] != results[2][0]


def test_what_fills_up_an_image_does_not_count() -> None:
    network = small_detector().eval()
    images = torch.rand(2, 3, 96, 96)
    other = images.clone()
    other[1, :, 70:] = 0.9
    for a, b in zip(network.detect(images, SIZES), network.detect(other, SIZES), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_found_lies_in_the_image() -> None:
    found = small_detector().eval().detect(torch.rand(2, 3, 96, 96), SIZES)
    for (boxes, labels, scores, masks), (height, width) in zip(found, SIZES, strict=True):
        assert 0 < len(boxes) <= 7 and masks.shape == (len(boxes), 28, 28)
        assert set(labels.tolist()) <= {0, 1}
        assert scores.tolist() == sorted(scores.tolist(), reverse=True) and scores.min() > 0.1
        assert (boxes >= 0).all() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_mixed_precision_keeps_boxes_exact() -> None:
    """A bfloat16 has 8 digits, which are too few for pixels: anchors, boxes and losses are
    float32."""
    network = small_detector()
    images = torch.rand(2, 3, 96, 96)
    losses = []
    for mixed in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            losses.append(network.losses(images, SIZES, [TWO, NONE]))
    for name, exact in losses[0].items():
        assert losses[1][name].dtype == torch.float32
        torch.testing.assert_close(losses[1][name], exact, rtol=0.05, atol=0.01)
    anchors = network.heads.rpn.anchor_generator.all_of([torch.zeros(1, 1, 2, 3).bfloat16()] * 5)
    assert anchors.dtype == torch.float32
    # Height over width of one half at stride 4: 8 * sqrt(2) x 8 / sqrt(2), rounded, at (0, 0).
    assert anchors[0].tolist() == [-6, -3, 6, 3] and anchors[3].tolist() == [-2, -3, 10, 3]


def test_a_network_in_half_precision_computes_as_a_whole() -> None:
    network = small_detector().bfloat16()
    losses = network.losses(torch.rand(2, 3, 96, 96), SIZES, [TWO, NONE])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_targets_of_masks_are_cut_out_of_them() -> None:
    network = small_detector()
    masks = TWO["masks"]
    regions = torch.tensor([[1.0, 40, 30, 90, 66], [0, 10, 12, 90, 60], [1, 0, 0, 20, 20]])
    whole, half, nothing = network.heads.regions._cropped(masks, regions)
    assert whole.all() and not nothing.any()
    assert half[:, :14].all() and not half[:, 14:].any()  # 40 of 80 pixels


def test_it_learns_one_image() -> None:
    """Losses of proposals, classes, boxes and masks all fall, and the boxes are found."""
    network = small_detector()
    images = torch.rand(1, 3, 96, 96) * 0.2
    for (x1, y1, x2, y2), value in zip(TWO["boxes"].int().tolist(), (0.9, 0.6), strict=True):
        images[0, :, y1:y2, x1:x2] = value
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    history = []
    for step in range(30):
        torch.manual_seed(step)
        losses = network.losses(images, SIZES[:1], [TWO])
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert history[-1]["objectness"] < history[0]["objectness"] / 2
    assert history[-1]["masks"] < history[0]["masks"]
    assert history[-1]["classes"] < history[0]["classes"]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    network = small_detector()
    save_network(network, tmp_path / "detector.safetensors")
    loaded = load_network(tmp_path / "detector.safetensors", "detector")
    assert isinstance(loaded, Detector) and loaded.config == network.config
    own = network.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "model.dense.mask_rcnn", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision.models.detection.anchor_utils", None)
    with pytest.raises(ConfigError, match=r"pip install 'addp\[detect\]'"):
        small_detector()
