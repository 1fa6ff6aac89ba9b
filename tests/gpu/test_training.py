"""Real runs of small networks on the GPU, each a process of its own (`processes`). Runs that are
compared bit for bit are deterministic: without that, CUDA adds up some gradients in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from data_pipeline.scenes.making import make_scenes
from data_pipeline.scenes.settings import SceneSettings
from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.vq import VQTokenizer
from model.weights import save_network
from tests.gpu.processes import backends, finish, processes, training, watched
from tests.trainer.comparing import losses, same_end
from tests.trainer.launching import MAGE
from tests.trainer.objectives.conftest import CLASSES
from tests.trainer.objectives.test_dense import options as dense_options
from trainer.config.schema import RunConfig

pytestmark = pytest.mark.gpu
Say = Callable[[str], None]

EXACT = "deterministic=true"
PRECISIONS = get_args(RunConfig.model_fields["precision"].annotation)


def test_every_precision_trains(
    tokens: Path, device: torch.device, tmp_path: Path, say: Say
) -> None:
    """Twelve steps, dropout on. Bound: 3 % of float32's loss at each applied step: bf16 rounds to
    0.4 %, and no two precisions need draw the same dropout. fp16 may skip some until its loss scale
    is found, and has no loss there."""
    runs = {name: tmp_path / name for name in PRECISIONS}
    ended = dict(
        zip(
            runs,
            processes(
                [
                    training(run, *MAGE, f"data.tokens={tokens}", f"precision={name}")
                    for name, run in runs.items()
                ]
            ),
            strict=True,
        )
    )
    if device.type == "cpu":
        assert ended.pop("fp16").code == 78  # refused there
    for name, done in ended.items():
        assert done.code == 0, done.output
        pairs = zip(losses(runs[name]), losses(runs["fp32"]), strict=True)
        off = [abs(a - b) / b for a, b in pairs if math.isfinite(a)]
        assert len(off) >= (6 if name == "fp16" else 12) and max(off) < 0.03, (name, off)
        say(
            f"training in {name}: losses off fp32's by {max(off):.1e} at most; attention on "
            f"{backends(done.output)}"
        )


@pytest.mark.parametrize(
    "objective", ["mage", "addp", "tokenizer", "classify", "probe", "segment", "detect"]
)
def test_deterministic_runs_are_equal_bit_for_bit(
    objective: str,
    tokens: Path,
    images: Path,
    tokenizer: VQTokenizer,
    frozen_files: list[str],
    tmp_path: Path,
    say: Say,
) -> None:
    """Twice: each loss and every weight."""
    torch.manual_seed(2)
    encoder = tmp_path / "addp.safetensors"
    save_network(ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")), encoder)  # type: ignore[call-arg]
    from_images = (f"data.images={images}", "data.views.size=16", "tokenizer.sizes.size=tiny")
    tiny = ("addp.sizes.size=tiny", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny")
    options = {
        "mage": (*MAGE, f"data.tokens={tokens}", "precision=bf16"),
        "addp": ("objective=addp", *tiny, f"data.tokens={tokens}", *frozen_files, "precision=bf16"),
        "tokenizer": (
            "objective=tokenizer",
            *from_images,
            "precision=fp32",
            "tokenizer_loss.revive_every=3",
            "tokenizer_loss.adversarial=0.1",
            "tokenizer_loss.perceptual=0.1",
        ),
        "classify": ("objective=classify", *from_images, "addp.sizes.size=tiny", "precision=bf16"),
        "probe": (
            "objective=classify",
            *from_images,
            "addp.sizes.size=tiny",
            f"addp.weights={encoder}",
            "precision=fp32",
            "classifier.method=linear",
        ),
    }
    if objective in ("segment", "detect"):  # a grid of positions that is not the encoder's
        scenes = tmp_path / "scenes"
        make_scenes(
            scenes, SceneSettings(training=8, validation=1, size=64, seed=1, classes=CLASSES), 1
        )
        options[objective] = (*dense_options(objective, scenes, None), "precision=bf16-mixed")
    words = (*options[objective], EXACT)
    outputs = finish(*(training(tmp_path / name, *words) for name in "ab"))
    assert same_end(tmp_path / "a", tmp_path / "b")
    say(
        f"deterministic {objective}: bit-equal twice; attention on "
        f"{backends(outputs[0]) or 'nothing'}"
    )


@pytest.mark.parametrize(
    "case",
    [
        ("zero_stage=1", "precision=bf16"),
        ("zero_stage=3", "predictor.sizes.dim=128"),
        ("zero_stage=0",),
    ],
    ids=" ".join,
)
def test_killed_and_resumed_it_ends_bit_for_bit_the_same(
    case: tuple[str, ...], tokens: Path, tmp_path: Path, say: Say
) -> None:
    """SIGKILL between a checkpoint's files and its rename, with dropout, accumulation and an
    average."""
    options = (*MAGE, f"data.tokens={tokens}", "ema_decay=0.9", EXACT, *case)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ended = processes(
        [training(whole, *options), training(cut, *options, killed_at="step-00000008")]
    )
    assert [done.code for done in ended] == [0, -9], ended
    (output,) = finish(training(cut, *options))
    assert "resumed at step 4 of 12" in output and same_end(whole, cut)
    say(f"killed and resumed, bit-equal: {' '.join(case)}")


def test_a_step_without_zero_waits_for_nothing(
    tokens: Path, frozen_files: list[str], tmp_path: Path, say: Say
) -> None:
    """Neither for a number that is computed on the device, nor for a copy."""
    shared = (f"data.tokens={tokens}", "zero_stage=0", "precision=bf16-mixed", "ema_decay=0.9")
    tiny = ("addp.sizes.size=tiny", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny")
    finish(
        watched(tmp_path / "mage", *MAGE, *shared),
        watched(tmp_path / "addp", "objective=addp", *tiny, *frozen_files, *shared),
    )
    say("steps of mage and addp in ZeRO-0: nothing waits for the device")


def test_frozen_networks_beside_the_backward_pass_change_no_number(
    tokens: Path, frozen_files: list[str], tmp_path: Path, say: Say
) -> None:
    tiny = ("addp.sizes.size=tiny", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny")
    options = ("objective=addp", *tiny, f"data.tokens={tokens}", *frozen_files, EXACT)
    finish(
        training(tmp_path / "beside", *options, "frozen_ahead=true"),
        training(tmp_path / "before", *options),
    )
    assert same_end(tmp_path / "beside", tmp_path / "before")
    say("frozen networks beside the backward pass: bit-equal")


def test_offload_and_recomputation_train_alike(tokens: Path, tmp_path: Path, say: Say) -> None:
    """Recomputation with dropout: the same operations on the same numbers, so float32's losses to
    1e-6. Offload: the optimizer's arithmetic moves to the CPU, and float32 rounds elsewhere; after
    bf16's rounding, 1 % of the loss."""
    mage = (*MAGE, f"data.tokens={tokens}", EXACT)
    runs = {
        "plain": mage,
        "recompute": (*mage, "recompute_every=1"),
        "bf16": (*mage, "precision=bf16", "zero_stage=2"),
        "optimizer": (*mage, "precision=bf16", "zero_stage=2", "offload=optimizer"),
        "parameters": (
            *mage,
            "precision=bf16",
            "zero_stage=3",
            "offload=parameters",
            "recompute_every=2",
        ),
    }
    finish(*(training(tmp_path / name, *options) for name, options in runs.items()))
    assert losses(tmp_path / "recompute") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    for name in ("optimizer", "parameters"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "bf16"), rel=0.01), name
    say(
        "recomputation with dropout, offload of the optimizer and of the parameters: losses as "
        "without"
    )
