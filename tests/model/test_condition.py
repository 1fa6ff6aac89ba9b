"""ADDP's class: its token in the decoder's class slot, and nothing where it is not told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.addp import ADDP
from model.compiling import compilations, compile_blocks, torch_compiler
from model.conditioning import NOT_TOLD
from model.config import ConditionalConfig, Geometry, TransformerConfig
from model.masking import denoising_masks
from model.official import import_official, official_metadata, official_state, write_state
from model.transformer import recompute_blocks
from model.weights import load_network, save_network

GEOMETRY = Geometry(image_size=16, patch_size=4, codebook_size=16)
TINY = TransformerConfig(size="tiny", dropout=0)  # type: ignore[call-arg]
CLASSES = ("a", "b", "c")


@pytest.fixture
def network() -> ADDP:
    torch.manual_seed(0)
    return ADDP(GEOMETRY, ConditionalConfig(**TINY.model_dump(), classes=CLASSES))


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "images": torch.rand(4, 3, 16, 16),
        "ids": torch.randint(16, (4, 16)),
        "mask": denoising_masks(0, 3, 0, 4, 16).mask_t,
        "target": torch.rand(4, 16, 16).softmax(-1),
        "smoothing": torch.tensor(0.1),
    }


def gradients(network: ADDP, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    loss = network(**inputs)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def test_in_a_mixed_batch_each_image_is_as_it_would_be_alone(
    network: ADDP, inputs: dict[str, Tensor]
) -> None:
    """With its class or without: the mean of the losses, and the gradients."""
    classes = torch.tensor([0, NOT_TOLD, 1, NOT_TOLD])
    mixed, found = gradients(network, **inputs, classes=classes)
    losses, alone = [], dict.fromkeys(found, torch.zeros(()))
    for i in range(4):
        one = {k: v if k == "smoothing" else v[i : i + 1] for k, v in inputs.items()}
        told = {"classes": classes[i : i + 1]} if classes[i] != NOT_TOLD else {}
        loss, of_one = gradients(network, **one, **told)
        losses.append(loss)
        alone = {name: alone[name] + value / 4 for name, value in of_one.items()}
    torch.testing.assert_close(mixed, torch.stack(losses).mean())
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
    changed = found["token_emb.weight"][16:].abs().sum(1).nonzero().flatten()
    assert changed.tolist() == [0, 1]  # the classes that were told, and no other id


def test_a_class_changes_what_is_predicted(network: ADDP, inputs: dict[str, Tensor]) -> None:
    network.eval()
    given = inputs["images"], inputs["ids"], inputs["mask"], None
    plain, *of = (
        network.logits(*given, classes=None if c is None else torch.full((4,), c))
        for c in (None, 0, 1)
    )
    assert not torch.allclose(plain, of[0]) and not torch.allclose(of[0], of[1])


def test_a_network_with_classes_has_the_same_tensors_and_says_its_classes(
    network: ADDP, tmp_path: Path
) -> None:
    """So that weights without a condition are what it begins with. Nothing is said without one."""
    plain = ADDP(GEOMETRY, TINY)
    plain.load_state_dict(network.state_dict())
    for told, name in ((network, "told"), (plain, "plain")):
        file = tmp_path / f"{name}.safetensors"
        save_network(told, file)
        loaded = load_network(file, "addp")
        assert isinstance(loaded, ADDP) and loaded.classes == told.classes
        assert (b"classes" in file.read_bytes()) == (name == "told")
        assert loaded.config.model_dump() == told.config.model_dump()
        parts = {"addp": told}
        official = tmp_path / f"{name}.pth"
        write_state(official_state(parts), official, official_metadata(parts))
        imported = import_official(official).networks["addp"]
        assert isinstance(imported, ADDP) and imported.classes == told.classes
    assert network.classes == CLASSES and plain.classes == ()


def test_where_no_class_is_told_nothing_differs_from_an_unconditional_step(
    network: ADDP, inputs: dict[str, Tensor]
) -> None:
    """The loss bit for bit; the mask token's gradient is summed in another order."""
    plain, expected = gradients(network, **inputs)
    loss, found = gradients(network, **inputs, classes=torch.full((4,), NOT_TOLD))
    assert torch.equal(loss, plain)
    torch.testing.assert_close(found, expected)


@pytest.fixture
def no_graphs() -> None:
    torch.compiler.reset()


@pytest.mark.usefixtures("no_graphs")
def test_compiled_and_recomputed(network: ADDP, inputs: dict[str, Tensor]) -> None:
    """A graph of the encoder's blocks and one of the decoder's, with classes and without."""
    told = {"classes": torch.tensor([0, NOT_TOLD, 1, NOT_TOLD])}
    expected = gradients(network, **inputs, **told)
    compile_blocks(network, torch_compiler("aot_eager"))
    before = compilations()
    torch.testing.assert_close(gradients(network, **inputs, **told), expected)
    recompute_blocks(network, 1)
    torch.testing.assert_close(gradients(network, **inputs, **told), expected)
    for masked in (9, 12, 15):
        mask = torch.arange(16).expand(4, -1) < masked
        for more in ({}, told):
            gradients(network, **inputs | {"mask": mask}, **more)
    assert compilations() - before == 2
    torch.compiler.reset()
