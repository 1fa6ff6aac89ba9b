"""What segmenters and detectors share: real runs that are killed and go on, on one rank and on two,
and what they begin with."""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.dense.detector import Detector
from model.dense.segmenter import Segmenter
from model.errors import ADDPError
from model.official import timm_state, write_state
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network, save_network
from tests.trainer.comparing import losses, same_end
from tests.trainer.killing import survive
from tests.trainer.launching import SMALL
from tests.trainer.objectives.conftest import CLASSES
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import finish, run_world
from tests.warm import warm_python
from trainer import costs
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.exported import exported_network
from trainer.config.reading import load_config
from trainer.engine.optimizers import layer_of
from trainer.engine.state_keys import EMA
from trainer.objectives.dense import DenseObjective
from trainer.objectives.registry import make_objective
from trainer.preflight.checks import check_run
from trainer.run_folder import RunFolder

# The grid of a published encoder is not that of the images.
GEOMETRY = Geometry(image_size=24, patch_size=4)
LAYOUT = {"segment": "ade20k", "detect": "coco"}
OWN = {
    "segment": (
        "segmenter.blocks=[0, 0, 1, 1]",
        "segmenter.channels=16",
        "segmenter.auxiliary_channels=8",
        "segmenter.crops.size=32",
        "segmenter.crops.short_side=32",
    ),
    "detect": (
        "detector.window=3",
        "detector.global_blocks=[1]",
        "detector.channels=16",
        "detector.linear_width=32",
        "detector.anchor_size=8",
        "detector.anchors_per_image=32",
        "detector.regions_per_image=16",
        "detector.proposals=40",
        "detector.jitter.size=32",
        "detector.jitter.scale=[0.8, 1.5]",
    ),
}
BOTH = pytest.mark.parametrize("objective", list(OWN))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder in timm's layout."""
    torch.manual_seed(1)
    network = ADDP(GEOMETRY, TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    write_state(timm_state(network, "drop"), path)
    return path


def options(objective: str, scenes: Path, vit: Path | None) -> tuple[str, ...]:
    return (
        f"objective={objective}",
        f"data.images={scenes / LAYOUT[objective]}",
        "tokenizer.sizes.size=tiny",
        "addp.sizes.size=tiny",
        f"addp.weights={vit or 'null'}",
        *OWN[objective],
        "precision=fp32",
        "schedule.total=8",
    )


@BOTH
def test_a_killed_training_ends_bit_for_bit(
    objective: str, scenes: Path, vit: Path, tmp_path: Path
) -> None:
    """Of two ranks that read a file of another geometry than `tokenizer.sizes` has."""
    words = (*options(objective, scenes, vit), "ema_decay=0.9")
    output = finish(tmp_path / "whole", *words)
    assert f", from addp.weights = {vit}, fingerprint " in output
    killed = run_world(tmp_path / "cut", *words, sabotage=Sabotage("os.rename", ("step-00000008",)))
    assert killed.codes != [0, 0]
    assert "resumed at step 4 of 8 on 2 ranks" in finish(tmp_path / "cut", *words)
    assert same_end(tmp_path / "whole", tmp_path / "cut")

    folder = RunFolder(tmp_path / "whole")
    network = load_network(
        folder.network, {"segment": "segmenter", "detect": "detector"}[objective]
    )
    assert isinstance(network, Segmenter | Detector) and network.geometry == GEOMETRY
    background = ("background",) if objective == "segment" else ()
    assert network.config.classes == (*CLASSES, *background)
    averaged = load_file(folder.ema)
    with LocalCatalog(folder).saved_state(8) as saved:
        again = exported_network(saved, EMA).state_dict()
    assert averaged.keys() == again.keys()
    assert all(torch.equal(averaged[key], again[key]) for key in again)
    checks = list(check_run(None, [f"run={tmp_path / 'whole'}", *SMALL, *words], 2))
    assert [c.name for c in checks if c.state != "ok"] == ["resume"], checks
    assert "step 8 of 8 is saved" in checks[-1].text


@pytest.mark.long
@BOTH
def test_killed_again_and_again(objective: str, scenes: Path, vit: Path, tmp_path: Path) -> None:
    """Twenty times, by SIGKILL at random moments, to one rank or both."""
    words = (*options(objective, scenes, vit), "ema_decay=0.9", "checkpoint.every=1")
    words = (*words, "schedule.total=40", "checkpoint.keep=2", "checkpoint.retry_seconds=20")
    finish(tmp_path / "whole", *words)
    dice, kills = random.Random(objective), 0
    while kills < 20:
        run = tmp_path / f"run-{kills}"
        kills += survive(run, words, 20 - kills, dice).total()
        assert same_end(run, tmp_path / "whole")


# What makes eight scenes a batch that is always the same, and the heads learn it by heart.
BY_HEART = {
    "segment": (
        "segmenter.blocks=[0, 1, 1, 2]",
        "segmenter.channels=32",
        "segmenter.auxiliary_channels=16",
        "segmenter.dropout=0",
        "segmenter.drop_path=0",
        "segmenter.crops={size: 64, short_side: 64, scale: [1, 1], flip: 0, photometric: false}",
    ),
    "detect": (
        "detector.channels=32",
        "detector.linear_width=128",
        "detector.window=8",
        "detector.global_blocks=[2]",
        "detector.anchors_per_image=128",
        "detector.regions_per_image=64",
        "detector.proposals=200",
        "detector.drop_path=0",
        "detector.jitter={size: 64, scale: [1, 1], flip: 0}",
    ),
}
REACHED = {"segment": ("segmentation", "miou", 0.95), "detect": ("detection", "box_ap50", 0.9)}


@pytest.mark.long
@BOTH
def test_one_batch_is_learned_by_heart(objective: str, scenes: Path, tmp_path: Path) -> None:
    run, size = tmp_path / "run", "{size: demo}"
    finish(
        run,
        *options(objective, scenes, None),
        *BY_HEART[objective],
        *(f"tokenizer.sizes={size}", f"addp.sizes={size}"),
        *("batch.global_batch=8", "batch.micro=8", "optimizer.base_lr=0.064"),
        *("schedule.total=300", "schedule.warmup=10"),
        processes=1,
    )
    benchmark, metric, least = REACHED[objective]
    command = ["-m", "cluster.cli", "evaluate", str(run), "--suite", benchmark, "--split", "train"]
    done = subprocess.run([warm_python(), *command, "--json"], capture_output=True, check=True)
    (result,) = json.loads(done.stdout)
    assert result["figures"][metric] >= least


@BOTH
def test_two_ranks_in_zero_3_train_as_one_without_zero(
    objective: str, scenes: Path, tmp_path: Path
) -> None:
    """Where nothing is drawn for a whole micro batch, and BatchNorm sees the same images."""
    whole = {
        "segment": ("segmenter.dropout=0", "segmenter.drop_path=0", "segmenter.crops.scale=[1, 1]"),
        "detect": ("detector.drop_path=0",),
    }
    words = (*options(objective, scenes, None), *whole[objective], "batch.global_batch=4")
    alone = {"segment": "batch.micro=4", "detect": "batch.micro=1"}[objective]
    together = {"segment": "batch.micro=2", "detect": "batch.micro=1"}[objective]
    finish(tmp_path / "one", *words, "zero_stage=0", alone, processes=1)
    finish(tmp_path / "two", *words, "zero_stage=3", together)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (load_file(RunFolder(tmp_path / run).network) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if value.is_floating_point():
            difference = float((value - two[name]).norm() / value.norm().clamp_min(1e-3))
            assert difference < 0.02, name


@BOTH
def test_it_begins_with_a_vit_of_timms_layout(
    objective: str, scenes: Path, vit: Path, tmp_path: Path
) -> None:
    config = load_config(None, [f"run={tmp_path}", *SMALL, *options(objective, scenes, vit)])
    with closing(make_objective(config, fresh=True)) as made:
        assert isinstance(made, DenseObjective)
        backbone, groups = made.exported.backbone, made.parameter_groups()
        given, own = load_file(vit), backbone.state_dict()
        shared = given.keys() & own.keys()
        assert len(shared) > 20 and all(torch.equal(given[key], own[key]) for key in shared)
        assert made.frozen == {"pretrained": fingerprint(backbone)}
        assert made.identity()["geometry"] == GEOMETRY.model_dump(mode="json")
        assert [block.drop_path for block in backbone.blocks] == [0, 0.1]
        names = {p: name for name, p in made.network.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    decay = {"segment": 0.65, "detect": 0.7}[objective]
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            inner = name.removeprefix("backbone.")
            layer = layer_of(inner, 2) if inner != name else 3
            assert group["scale"] == pytest.approx(decay ** (3 - layer)), name
            plain = parameter.ndim < 2 or inner in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0 if plain else 0.05), name


@BOTH
def test_what_it_takes_is_counted_without_data(objective: str) -> None:
    config = load_config(None, [*SMALL, *options(objective, Path("/none"), None)])
    trained, frozen = costs.parameters(config)
    operations = costs.image_operations(config)
    memory = costs.rank_memory(config, 1, 2)
    assert trained > 10**4 and frozen == 0 and operations.frozen == 0
    assert operations.trained > 6 * trained  # each weight counts for more than one place
    side = config.segmenter.crops.size if objective == "segment" else config.detector.jitter.size
    assert memory.activations > config.batch.micro * 16 * side**2 * 4


@pytest.mark.parametrize(
    ("objective", "override", "words"),
    [
        ("segment", "data.images=null", "needs data.images, annotated images in the layout of ADE"),
        ("detect", "data.images=null", "needs data.images, annotated images in the layout of COCO"),
        ("segment", "segmenter.blocks=[0, 1, 0, 1]", "blocks must be in ascending order"),
        ("detect", "detector.global_blocks=[2]", "names block 2, but the encoder has 2"),
        (
            "segment",
            "segmenter.crops.size=36",
            "no multiple of 8, twice the encoder's patch; 32 or",
        ),
        ("detect", "detector.jitter.size=36", "no multiple of 8, twice the encoder's patch; 32 or"),
        ("segment", "addp.sizes.depth=3", "does not fit addp.sizes: its depth is 2, not 3"),
        ("detect", "addp.sizes.dim=64", "does not fit addp.sizes: its dim is 32, not 64"),
        ("segment", "segmenter.tokenizer_norm=true", "missing, first: tokenizer_norm"),
    ],
)
def test_what_does_not_fit_is_said(
    objective: str, override: str, words: str, scenes: Path, vit: Path, tmp_path: Path
) -> None:
    given = [f"run={tmp_path}", *SMALL, *options(objective, scenes, vit), override]
    with pytest.raises(ADDPError) as caught:
        make_objective(load_config(None, given), fresh=True)
    assert words in str(caught.value)


def test_weights_of_another_kind(scenes: Path, tokenizer: VQTokenizer, tmp_path: Path) -> None:
    save_network(tokenizer, tmp_path / "tokenizer.safetensors")
    given = options("detect", scenes, tmp_path / "tokenizer.safetensors")
    with pytest.raises(ADDPError, match="holds a tokenizer, but a backbone begins with"):
        make_objective(load_config(None, [f"run={tmp_path}", *SMALL, *given]), fresh=True)


def test_annotations_without_outlines(scenes: Path, tmp_path: Path) -> None:
    """Boxes alone are no data for Mask R-CNN."""
    name, boxes = "annotations/instances_train2017.json", tmp_path / "boxes"
    (boxes / "annotations").mkdir(parents=True)
    document = json.loads((scenes / "coco" / name).read_text())
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    (boxes / name).write_text(json.dumps(document))
    (boxes / "train2017").symlink_to(scenes / "coco" / "train2017")
    given = [*options("detect", scenes, None), f"data.images={boxes}"]
    with pytest.raises(ADDPError, match="has boxes alone; a detector also learns masks"):
        make_objective(load_config(None, [f"run={tmp_path / 'run'}", *SMALL, *given]))
