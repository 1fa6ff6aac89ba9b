"""What CUDA cannot do with equal bits each time, and PyTorch then refuses under `deterministic:
true`, is done on the CPU. `tests/gpu/test_training.py` runs every objective twice on a GPU; here
nothing needs one: which operations an objective uses is seen on the CPU, and where they would run
on tensors that only claim to be on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TokenizerLossConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import denoising_masks, mage_masks
from model.predictor import TokenPredictor
from model.tokenizer_training import TokenizerTraining, _drawn
from tests.conftest import fresh_tokenizer
from trainer.config.schema import AugmentationSection
from trainer.objectives.addp import denoising_inputs
from trainer.objectives.augmentation import Augmentation

# The list in the documentation of torch.use_deterministic_algorithms, by the operators that compute
# it.
REFUSED = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "cumsum",
    "histc",
    "put",
    "put_",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "median",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "nll_loss_forward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss2d_forward",
    "_ctc_loss_backward",
    "_embedding_bag",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
}
SIZES = TransformerConfig(size="tiny")  # type: ignore[call-arg]


class Operators(TorchDispatchMode):
    """Those of `REFUSED` that were used, with the types of the devices they were used on."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = func.overloadpacket.__name__, [a for a in args if isinstance(a, Tensor)]
        if name in REFUSED and (name != "cumsum" or tensors[0].is_floating_point()):
            self.used.add((name, tensors[0].device.type))
        return func(*args, **(kwargs or {}))


def step(network: torch.nn.Module, *inputs: Any) -> set[tuple[str, str]]:
    with Operators() as operators:
        network.train()(*inputs).backward()
    return operators.used


def test_transformers_use_no_refused_operator() -> None:
    torch.manual_seed(0)
    tokenizer = fresh_tokenizer()
    geometry = Geometry.of(tokenizer.config)
    ids = torch.randint(geometry.codebook_size, (4, geometry.tokens))
    frozen = FrozenNetworks(tokenizer, TokenPredictor(geometry, SIZES))
    inputs = denoising_inputs(frozen, ids, denoising_masks(0, 0, 0, *ids.shape), 0.1, torch.ones(4))
    with Operators() as operators:
        ADDP(geometry, SIZES)(**inputs).backward()
    assert not operators.used
    masks = mage_masks(0, 0, 0, *ids.shape)
    assert not step(
        TokenPredictor(geometry, SIZES), ids, masks.mask, masks.kept, 0.1, torch.ones(4)
    )
    classifier = Classifier(geometry, ClassifierConfig(encoder=SIZES, classes=("a", "b")))
    size = geometry.image_size
    assert not step(classifier, torch.rand(4, 3, size, size), torch.rand(4, 2), 0.1)


def test_running_sums_of_tokenizer_training_are_made_on_the_cpu() -> None:
    torch.manual_seed(0)
    config = TokenizerLossConfig(adversarial=0.1, perceptual=0.1)
    network = TokenizerTraining(fresh_tokenizer(), config, 0)
    images = torch.rand(
        4, 3, network.tokenizer.config.image_size, network.tokenizer.config.image_size
    )
    assert step(network, images) == {("cumsum", "cpu")}  # codes start from drawn vectors,
    network.batches.fill_(config.revive_every)
    network.usage[:3] = 0
    assert step(network, images) == {("cumsum", "cpu")}  # and so do dead ones
    with FakeTensorMode(), Operators() as operators:
        drawn = _drawn(torch.rand(10, device="cuda"), torch.rand(3))
    assert (
        operators.used == {("cumsum", "cpu")}
        and drawn.device.type == "cuda"
        and drawn.shape == (3,)
    )


def test_draws_are_in_proportion() -> None:
    u = (torch.arange(1000) + 0.5) / 1000
    assert torch.bincount(_drawn(torch.tensor([1.0, 0.0, 3.0]), u)).tolist() == [250, 0, 750]


def test_deterministic_randaugment_is_done_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    augment = Augmentation(AugmentationSection(mixup=0, cutmix=0, erasing=0), 3)
    images, labels = torch.rand(64, 3, 16, 16), torch.zeros(64, dtype=torch.int64)
    with Operators() as operators:
        augment(images, labels)
    assert operators.used == {("cumsum", "cpu")}  # of its `equalize`
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    seen = []
    monkeypatch.setattr(augment._rand, "forward_parameters", lambda shape: ["equalize"])
    monkeypatch.setattr(
        augment, "_applied", lambda drawn, groups, part: seen.append(part.device.type) or part
    )
    with FakeTensorMode():
        result = augment._distorted(torch.rand(8, 3, 16, 16, device="cuda"))
    assert set(seen) == {"cpu"} and result.device.type == "cuda"
