"""Fine-tuning and linear probing: the published recipe's parts, and real runs that are killed and
go on."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from kornia.augmentation.auto import RandAugment
from safetensors.torch import load_file

from data_pipeline.storage import LocalStore
from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TransformerConfig
from model.errors import ConfigError
from model.positions import on_grid
from model.weights import fingerprint, load_network, save_network
from tests.trainer.evaluation.evaluating import codes, start
from tests.trainer.launching import SMALL
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import finish, run_world
from trainer.config.reading import load_config
from trainer.config.schema import AugmentationSection
from trainer.engine.optimizers import layer_of
from trainer.evaluation.results import read_results
from trainer.objectives.augmentation import Augmentation, mixed
from trainer.objectives.registry import make_objective
from trainer.run_folder import RunFolder

TINY = Geometry(image_size=16, patch_size=4, codebook_size=16)


def tiny(kind: str = "finetune") -> Classifier:
    encoder = TransformerConfig(size="tiny", dropout=0.0)  # type: ignore[call-arg]
    return Classifier(TINY, ClassifierConfig(encoder=encoder, classes=("a", "b", "c"), method=kind))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("addp") / "addp.safetensors"
    save_network(ADDP(TINY, TransformerConfig(size="tiny")), path)  # type: ignore[call-arg]
    return path


@pytest.fixture
def options(images: Path, pretrained: Path) -> tuple[str, ...]:
    return (
        "objective=classify",
        f"data.images={images}",
        "data.views.size=16",
        "tokenizer.sizes.size=tiny",
        "addp.sizes.size=tiny",
        f"addp.weights={pretrained}",
        "precision=fp32",
    )


def test_layer_decay_is_the_references(
    schedules: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = schedules["finetune_base"]
    assert {name: layer_of(name, recipe["layers"]) for name in recipe["layer_id"]} == recipe[
        "layer_id"
    ]
    scales = recipe["scale_of_layer_id"]
    depth = recipe["layers"]
    assert [
        recipe["layer_decay"] ** (depth + 1 - layer) for layer in range(depth + 2)
    ] == pytest.approx(scales)

    config = load_config(None, [f"run={tmp_path}", *SMALL, *options])
    with closing(make_objective(config)) as objective:
        groups = objective.parameter_groups()
    names = {p: name for name, p in objective.network.named_parameters()}
    assert sum(len(g["params"]) for g in groups) == len(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert group["scale"] == pytest.approx(0.65 ** (3 - layer_of(name, 2)))
            plain = parameter.ndim < 2 or name in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0 if plain else 0.05)


def test_a_killed_fine_tuning_ends_bit_for_bit(options: tuple[str, ...], tmp_path: Path) -> None:
    finish(tmp_path / "whole", *options, "ema_decay=0.9")
    killed = run_world(
        tmp_path / "cut",
        *options,
        "ema_decay=0.9",
        sabotage=Sabotage("os.rename", ("step-00000008",)),
    )
    assert killed.codes != [0, 0]
    finish(tmp_path / "cut", *options, "ema_decay=0.9")
    for name in ("network.safetensors", "network-ema.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert (
            all(torch.equal(whole[key], cut[key]) for key in whole) and whole.keys() == cut.keys()
        )
    network = load_network(tmp_path / "whole" / "network.safetensors", "classifier")
    assert isinstance(network, Classifier) and network.config.classes == (
        "ellipse",
        "line",
        "rectangle",
    )
    losses = [row["loss"] for row in RunFolder(tmp_path / "whole").read_metrics()]
    assert len(losses) == 12 and losses[-1] < losses[0]


def test_accuracy_goes_by_class_names(
    options: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    """Also on held-out images that stand apart and lack a class."""
    plain = [f"augmentation.{name}=0" for name in ("randaugment", "erasing", "mixup", "cutmix")]
    plain += ["classifier.layer_decay=1.0", "classifier.drop_path=0.0", "data.held_out=0.3"]
    finish(
        tmp_path / "run",
        *options,
        *plain,
        "schedule.total=150",
        "checkpoint.every=74",
        "optimizer.base_lr=0.1",
    )
    log = tmp_path / "log"
    assert codes(start(tmp_path / "run", log, "--suite", "accuracy")) == [0], log.read_text()
    (whole,) = read_results(LocalStore(tmp_path / "run"))
    assert (
        whole.metrics["top1"] > 0.5 and whole.metrics["top5"] == 1 and whole.metrics["images"] > 20
    )

    apart = tmp_path / "apart"
    for name in ("line", "rectangle"):
        shutil.copytree(images / name, apart / name)
    shutil.rmtree(tmp_path / "run" / "evaluation")
    options = ("--suite", "accuracy", "--images", str(apart), "--held-out", "1")
    assert codes(start(tmp_path / "run", log, *options)) == [0], log.read_text()
    (result,) = read_results(LocalStore(tmp_path / "run"))
    assert result.metrics["images"] == 80 and result.metrics["top1"] > 0.5
    (apart / "line").rename(apart / "zebra")
    assert codes(start(tmp_path / "run", log, *options, "--checkpoint", "148")) == [78]
    assert "knows no class zebra" in log.read_text()


def test_a_linear_probe_trains_its_head_only(
    options: tuple[str, ...], pretrained: Path, tmp_path: Path
) -> None:
    output = finish(
        tmp_path / "linear",
        *options,
        "classifier.method=linear",
        "optimizer.name=lars",
        "optimizer.betas=[0.9, 0.9]",
        "optimizer.trust=0.1",
    )
    assert f", from addp.weights = {pretrained}, fingerprint " in output
    before, after = load_file(pretrained), load_file(tmp_path / "linear" / "network.safetensors")
    shared = [key for key in after if key in before]
    assert len(shared) > 20 and all(torch.equal(before[key], after[key]) for key in shared)
    assert after["head.weight"].shape == (3, 32) and float(after["fc_norm.running_var"].min()) < 1
    manifest = json.loads(
        (tmp_path / "linear" / "checkpoints" / "step-00000012" / "manifest.json").read_text()
    )
    assert set(manifest["parameters"]) == {"head.weight", "head.bias"}


def test_what_does_not_fit_is_said(options: tuple[str, ...], tmp_path: Path) -> None:
    for overrides, message in (
        (("addp.weights=null", "classifier.method=linear"), "needs addp.weights"),
        (("data.views.size=32",), "must equal tokenizer.sizes.image_size"),
        (("data.images=null",), "needs data.images"),
    ):
        codes, output = run_world(tmp_path / "run", *options, *overrides)
        assert codes == [78, 78] and message in output
    with pytest.raises(ConfigError, match="does not fit"):
        tiny().take(ADDP(TINY, TransformerConfig(size="tiny", dim=64)))  # type: ignore[call-arg]


def test_mixing_keeps_what_the_target_says() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    target = torch.eye(4)
    for seed in range(20):
        torch.manual_seed(seed)
        for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
            pixels, labels = mixed(images, target, mixup, cutmix)
            # the share of an image's pixels that are its own is the weight of its class
            assert torch.allclose(pixels.mean((1, 2, 3)), labels @ torch.arange(4.0), atol=1e-5)
            assert torch.allclose(labels.sum(1), torch.ones(4))
    assert mixed(images, target, 0.0, 0.0)[0] is images


def test_randaugment_of_a_batch_is_that_of_its_groups() -> None:
    """Bit for bit: kornia's own, group by group of four. Every operation is drawn."""
    section = AugmentationSection(erasing=0, mixup=0, cutmix=0)
    augment, kornia, drawn = Augmentation(section, 2), RandAugment(2, 9), set[str]()
    images, labels = torch.rand(42, 3, 24, 32), torch.arange(42) % 2
    for seed in range(5):
        torch.manual_seed(seed)
        together, _ = augment(images, labels)
        torch.manual_seed(seed)
        torch.randint(2**31, (1,))  # which seeds Python's generator
        groups = []
        for group in images.split(4):
            groups.append(kornia(group))
            drawn |= {operation.name for operation in kornia._params}
        assert torch.equal(together, torch.cat(groups).clamp(0, 1))
    assert len(drawn) == 15


def test_augmentation_is_a_function_of_the_seed() -> None:
    augment = Augmentation(AugmentationSection(erasing=1.0), 3)
    images, labels = torch.rand(10, 3, 32, 32), torch.arange(10) % 3
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(augment(images, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    pixels, target = results[0]
    assert pixels.shape == images.shape and float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    assert target.shape == (10, 3)


def test_stochastic_depth_keeps_the_mean() -> None:
    from model.transformer import Block, drop_paths

    torch.manual_seed(0)
    network = tiny().train()
    drop_paths(network.blocks, 0.5)
    assert [b.drop_path for b in network.blocks] == [0.0, 0.5]  # type: ignore[union-attr]
    block, x = network.blocks[1], torch.randn(1, 5, 32)
    assert isinstance(block, Block)
    with torch.no_grad():
        expected = block.eval()(x)
        mean = block.train()(x.expand(4000, -1, -1)).mean(0)
    assert float((mean - expected[0]).abs().mean()) < 0.05
    untouched = (block(x.expand(400, -1, -1)) - x).abs().amax((1, 2)) == 0
    assert 0.15 < float(untouched.float().mean()) < 0.35  # both branches dropped: a quarter


def test_an_encoder_of_another_size_is_resized(options: tuple[str, ...], pretrained: Path) -> None:
    """A run knows it again by the weights of its file."""
    larger = ("tokenizer.sizes.image_size=32", "data.views.size=32")
    with closing(make_objective(load_config(None, [*SMALL, *options, *larger]))) as objective:
        given = objective.initial_weights
        network = objective.network
    encoder = load_network(pretrained, "addp")
    assert given is not None and str(given).endswith(
        "(resized from 16 to 32 pixels: pos_embed, decoder_pos_embed_learned, "
        "decoder_pos_mask_embed, decoder_pos_token_embed interpolated from 4 x 4 to 8 x 8)"
    )
    assert objective.frozen == {"pretrained": fingerprint(encoder)}
    assert isinstance(network, Classifier) and isinstance(encoder, ADDP)
    assert torch.equal(network.pos_embed, on_grid(encoder.pos_embed, 8, 8))
    assert torch.equal(network.patch_embed.proj.weight, encoder.patch_embed.proj.weight)
