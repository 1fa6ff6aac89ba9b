"""Tokenizing, generation, augmentation and probes on the GPU against the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.images.sources import split_of
from data_pipeline.images.views import ViewRecipe
from data_pipeline.sharding.encoder import TokenEncoder
from data_pipeline.streaming.image_loader import ImageLoader
from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.device import staging
from model.sampler import generate
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer
from tests.conftest import fresh_tokenizer
from tests.gpu.conftest import DEVICE
from tests.gpu.processes import finish
from trainer.config.schema import AugmentationSection
from trainer.objectives.augmentation import Augmentation
from trainer.objectives.images import pixels_on

pytestmark = pytest.mark.gpu
Say = Callable[[str], None]


def test_tokens_are_the_cpus(device: torch.device, say: Say) -> None:
    """float32: at least 99.9 % of the tokens; the rest may lie within rounding of a border between
    codes. bf16 rounds the encoder's output to 8 bits, so that a random codebook's tokens differ in
    part: stated, and bounded by a half."""
    torch.manual_seed(0)
    sizes = TokenizerConfig() if device.type == "cuda" else TokenizerConfig(size="tiny")  # type: ignore[call-arg]
    tokenizer = VQTokenizer(sizes).eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3), dtype=np.uint8)
    noise = np.random.default_rng(1).integers(
        0, 64, (8, sizes.image_size, sizes.image_size, 3), dtype=np.uint8
    )
    views = (images // 2 + noise).astype(np.uint8)
    with torch.no_grad():  # codes where the encoder's output lies, as in a trained tokenizer
        z = (
            tokenizer.encoder(torch.from_numpy(views).permute(0, 3, 1, 2) / 255)
            .flatten(2)
            .transpose(1, 2)
        )
        rows = z.reshape(-1, sizes.code_dim)
        chosen = rows[torch.randint(len(rows), (sizes.codebook_size,))]
        tokenizer.codebook.copy_(chosen + 0.1 * rows.std() * torch.randn_like(chosen))
    expected = TokenEncoder(copy.deepcopy(tokenizer), batch=8)(views)
    for precision, bound in (("fp32", 0.999), ("bf16", 0.5)):
        ids = TokenEncoder(
            copy.deepcopy(tokenizer), device=str(device), batch=8, precision=precision
        )(views)  # type: ignore[arg-type]
        equal = float((ids.cpu() == expected).float().mean())
        say(f"tokens of {precision} equal to the CPU's fp32: {equal:.2%} of {ids.numel()}")
        assert equal >= bound, precision


def test_generation_is_the_cpus(device: torch.device, say: Say) -> None:
    """The noise is keyed by the sample, so the same images in float32; a draw may fall on the other
    side of a border by rounding, and what follows it then differs: at least 90 % of the images to
    1e-3."""
    tokenizer = fresh_tokenizer()
    torch.manual_seed(3)
    network = ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]

    def images(place: torch.device, dtype: torch.dtype) -> torch.Tensor:
        on = (copy.deepcopy(network).to(place, dtype), copy.deepcopy(tokenizer).to(place, dtype))
        *_, last = generate(*on, seed=0, start=0, count=32, sampling=SamplingOptions(steps=8))
        return last.image.float().cpu()

    expected, found = images(torch.device("cpu"), torch.float32), images(device, torch.float32)
    equal = float(((found - expected).abs().amax((1, 2, 3)) < 1e-3).float().mean())
    say(f"generated images equal to the CPU's: {equal:.0%} of 32")
    assert equal >= 0.9
    assert images(device, torch.bfloat16).isfinite().all()


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def augmented(
    place: torch.device, section: AugmentationSection
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 10
    torch.manual_seed(1)
    return Augmentation(section, 10)(images.to(place), labels.to(place))


def test_augmentation_stays_on_the_device(device: torch.device) -> None:
    """RandAugment, erasing, mixup and cutmix as published: in [0, 1], targets that sum to 1, the
    same twice."""
    for section in (
        AugmentationSection(),
        AugmentationSection(mixup=0),
        AugmentationSection(cutmix=0),
    ):
        (images, target), (again, _) = (augmented(device, section) for _ in range(2))
        assert images.device.type == target.device.type == device.type
        assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
        torch.testing.assert_close(target.sum(1), torch.ones_like(target[:, 0]))
        torch.testing.assert_close(images, again, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_randaugment_is_the_cpus(device: torch.device) -> None:
    section = AugmentationSection(mixup=0, cutmix=0, erasing=0)
    ours, expected = augmented(device, section)[0], augmented(torch.device("cpu"), section)[0]
    assert torch.equal(ours.cpu(), expected)


def test_batches_of_images_arrive_whole(device: torch.device, images: Path) -> None:
    """The host goes on while a batch is copied, and its memory is used again."""
    source = split_of(images, "train")

    def batches(place: torch.device) -> list[torch.Tensor]:
        loader = ImageLoader(
            source, ViewRecipe(size=64), global_batch=32, seed=0, threads=4, buffer=staging
        )
        return [pixels_on(place, loader.batch(step, 0, 32)).cpu() for step in range(12)]

    assert all(map(torch.equal, batches(device), batches(torch.device("cpu"))))


def test_probes_are_the_cpus(say: Say, tmp_path: Path) -> None:
    """A vote may differ by a neighbour that is as near as another. Weights in float64 agree to
    1e-6, those of float32 products to 1e-3."""
    module = "tests.trainer.evaluation.measures.probing"
    files = {place: tmp_path / place for place in ("cpu", DEVICE)}
    finish(*(["-m", module, str(file), place] for place, file in files.items()))
    expected, found = (load_file(files[place]) for place in ("cpu", DEVICE))
    worst = {"top1": 0.0, "float64": 0.0, "float32": 0.0}
    for name, value in expected.items():
        kind = next(kind for kind in worst if kind in name)
        worst[kind] = max(worst[kind], float((value - found[name]).abs().max()))
    say(f"probes, differences from the CPU: {worst}")
    assert worst["top1"] <= 0.02 and worst["float64"] < 1e-6 and worst["float32"] < 1e-3
