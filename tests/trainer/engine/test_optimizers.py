"""LAMB and LARS: their definitions, and that ZeRO's pieces are no layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.errors import ConfigError
from model.predictor import TokenPredictor
from tests.trainer.comparing import losses, weight_distance
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish
from trainer.config.schema import RunConfig
from trainer.engine.optimizers import LAMB, LARS, EagerAdamW, make_optimizer, parameter_groups
from trainer.run_folder import RunFolder


def problem() -> tuple[nn.Linear, list[dict[str, object]]]:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    return layer, [
        {"params": [layer.weight], "weight_decay": 0.1, "adapt": True},
        {"params": [layer.bias], "weight_decay": 0.0, "adapt": False},
    ]


def test_lamb_is_its_paper_s_algorithm_2() -> None:
    layer, groups = problem()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    LAMB(groups, 0.01, (0.9, 0.999), 1e-6).step()
    step = layer.weight.grad / (layer.weight.grad.abs() + 1e-6) + 0.1 * weight  # type: ignore[operator, union-attr]
    expected = weight - 0.01 * min(10.0, float(weight.norm() / step.norm())) * step
    torch.testing.assert_close(layer.weight.detach(), expected)
    expected = bias - 0.01 * layer.bias.grad / (layer.bias.grad.abs() + 1e-6)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(layer.bias.detach(), expected)


def test_lars_is_its_paper_s_algorithm_1() -> None:
    layer, groups = problem()
    weight = layer.weight.detach().clone()
    optimizer = LARS(groups, 0.5, 0.9, 0.001)
    optimizer.step()
    step = layer.weight.grad + 0.1 * weight  # type: ignore[operator]
    first = 0.5 * 0.001 * weight.norm() / step.norm() * step
    torch.testing.assert_close(layer.weight.detach(), weight - first)
    after = layer.weight.detach().clone()
    optimizer.step()
    step = layer.weight.grad + 0.1 * after  # type: ignore[operator]
    second = 0.9 * first + 0.5 * 0.001 * after.norm() / step.norm() * step
    torch.testing.assert_close(layer.weight.detach(), after - second)


def test_adamw_is_pytorch_s() -> None:
    (ours, our_groups), (theirs, their_groups) = problem(), problem()
    rules: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    optimizers = EagerAdamW(our_groups, **rules), torch.optim.AdamW(their_groups, **rules)
    for number in range(3):
        for optimizer, layer in zip(optimizers, (ours, theirs), strict=True):
            optimizer.found_inf = torch.tensor(float(number == 1))  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()
            layer(torch.linspace(-1, 1, 5)).square().sum().backward()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(our, their) and optimizers[0].state[our]["step"] == 2


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layers_are_layers_in_every_stage(name: str, tokens: Path, tmp_path: Path) -> None:
    """Two ranks that hold pieces end where one rank ends that holds whole layers."""
    options = (*MAGE, f"data.tokens={tokens}", f"optimizer.name={name}", "optimizer.base_lr=0.3")
    finish(tmp_path / "whole", *options, "zero_stage=0", processes=1)
    for stage, offload in ((1, "none"), (2, "optimizer"), (3, "none")):
        run = tmp_path / f"stage-{stage}"
        finish(run, *options, f"zero_stage={stage}", f"offload={offload}")
        assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
        assert weight_distance(RunFolder(run).network, RunFolder(tmp_path / "whole").network) < 1e-3


def test_apex_is_named_where_it_is_wanted_and_missing() -> None:
    _, groups = problem()
    with pytest.raises(ConfigError, match="NVIDIA apex is not installed"):
        make_optimizer(RunConfig.model_validate({"optimizer": {"kernel": "apex"}}), groups, True)


def test_one_line_says_which_kernels_are_used(caplog: pytest.LogCaptureFixture) -> None:
    for name, words in (
        ("adamw", "torch, fused"),
        ("lamb", "own, layer-wise"),
        ("lars", "own, layer-wise"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "trainer.engine.optimizers"):
            make_optimizer(
                RunConfig.model_validate({"optimizer": {"name": name}}), problem()[1], False
            )
        assert len(caplog.messages) == 1 and words in caplog.text


def test_weight_decay_spares_biases_and_norms() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].weight.requires_grad_(False)
    module.table = nn.Parameter(torch.zeros(1, 5, 4))
    decayed, spared = parameter_groups(module.named_parameters(), 0.05)
    assert {tuple(p.shape) for p in decayed["params"]} == {(4, 3), (1, 5, 4)} and decayed[
        "weight_decay"
    ] == 0.05
    assert (
        all(p.ndim == 1 for p in spared["params"])
        and len(spared["params"]) == 4
        and spared["weight_decay"] == 0
    )


@pytest.mark.parametrize("network_class", [ADDP, TokenPredictor])
def test_weight_decay_spares_what_the_reference_spares(
    network_class: type[ADDP | TokenPredictor],
) -> None:
    """By its name also the bias over the vocabulary, which has three dimensions; LAMB and LARS do
    not adapt it."""
    with torch.device("meta"):
        network = network_class(Geometry(), TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    names = {p: name for name, p in network.named_parameters()}
    decayed, spared = parameter_groups(network.named_parameters(), 0.05)
    spared_names = {names[p] for p in spared["params"]}
    assert "mlm_layer.bias" in spared_names and spared["weight_decay"] == 0 and not spared["adapt"]
    assert spared_names == {
        name for p, name in names.items() if p.ndim <= 1 or name.endswith(".bias")
    }
    assert {names[p] for p in decayed["params"]} == set(names.values()) - spared_names
    assert decayed["adapt"]
