"""A run with compiled networks: it asks for them, tries them, and can do without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.compiling import compilations, torch_compiler
from model.vq import VQTokenizer
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.launching import MAGE
from tests.trainer.worlds import Ranks, finish
from trainer.checkpointing.format import read_manifest
from trainer.compiling import try_step, wants_compiling
from trainer.config.reading import load_config
from trainer.engine.engine import Engine, start_distributed
from trainer.objectives.registry import make_objective
from trainer.run_folder import RunFolder
from trainer.timing import Stopwatch

MODES = [
    ("mage", "fp32", 0),
    ("mage", "bf16-mixed", 1),
    ("mage", "fp32", 2),
    ("mage", "fp32", 3),
    ("mage", "bf16", 3),
    ("addp", "fp32", 3),
]
WIDE = "predictor.sizes.dim=192"  # ZeRO-3 keeps smaller layers whole on every rank


def test_auto_is_for_long_runs_on_gpus() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def wanted(word: str, device: torch.device, total: int, *more: str) -> bool:
        return wants_compiling(load_config(None, [f"compile={word}", *more]), device, total)

    assert wanted("auto", cuda, 2000) and not wanted("auto", cuda, 1999)
    assert not wanted("auto", cpu, 10**6)
    # ZeRO-3 compiles graphs in its first step that no trial has shown to work.
    assert not wanted("auto", cuda, 10**6, "zero_stage=3")
    assert wanted("on", cuda, 1, "zero_stage=3")
    assert wanted("on", cpu, 1) and not wanted("off", cuda, 10**6)


def step_in_all_modes(arguments: list[str]) -> int:
    """A rank that takes steps in each of the modes, eagerly and with graphs but eager kernels."""
    out, *addp = arguments
    rank, world_size, device = start_distributed()
    (tokens,) = (option for option in addp if option.startswith("data.tokens="))
    mage = (*MAGE, WIDE, "predictor.sizes.dropout=0", tokens)
    rows = []
    for kind, precision, stage in MODES:
        values = (f"precision={precision}", f"zero_stage={stage}", "recompute_every=2")
        batch = ("batch.global_batch=4", "batch.micro=2")
        config = load_config(None, [*(mage if kind == "mage" else addp), *batch, *values])
        for compiled in (False, True):
            torch.manual_seed(0)
            objective = make_objective(config)
            if compiled:
                objective.use_compiler(torch_compiler("aot_eager"))
                try_step(objective, config, device)
            tried = compilations()
            engine = Engine(objective.network, config, 1, world_size)
            found = []
            for step in range(3):
                inputs = objective.inputs(objective.batch(step, 2 * rank, 2), step, device)
                result = engine.optimizer_step([inputs], 1e-3, Stopwatch(False))
                found += [float(result.loss), float(result.norm)]
            rows.append((found, compilations() - tried, sorted(objective.network.state_dict())))
            objective.close()
            torch.compiler.reset()
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    return 0


def test_every_zero_stage_takes_what_was_tried(
    tokens: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    """With recomputation, and layers that ZeRO-3 divides: the steps give the numbers of eager steps
    and compile nothing that the trial has not. But in ZeRO-3 each kind of block is compiled again;
    those of the frozen predictor may be."""
    out, log = tmp_path / "rows.json", tmp_path / "log"
    addp = addp_options(tmp_path, tokenizer, tokenizer_file, tokens)
    arguments = [str(out), *addp, "addp.sizes.dropout=0"]
    codes, output = Ranks(step_in_all_modes, arguments, 2, log).wait()
    assert codes == [0, 0], output
    rows = json.loads(out.read_text())
    for mode, eager, compiled in zip(MODES, rows[::2], rows[1::2], strict=True):
        kind, precision, stage = mode
        blocks = {"mage": (2,), "addp": (2, 3)}[kind]  # the small predictor's are all of one kind
        assert compiled[1] in (blocks if stage == 3 else (0,)) and compiled[2] == eager[2], mode
        assert compiled[0] == pytest.approx(eager[0], rel=1e-5 if precision == "fp32" else 1e-2), (
            mode
        )


def test_where_compiling_fails_the_run_says_so_and_goes_on(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing compiled yet"))
    data = f"data.tokens={tokens}"
    output = finish(tmp_path / "compiled", *MAGE, data, "compile=on")
    (line,) = [line for line in output.splitlines() if "compiling failed" in line]
    assert "on rank 0, and the networks compute eagerly: " in line and "C++ compile" in line
    assert "Traceback" not in output
    finish(tmp_path / "eager", *MAGE, data)
    assert losses(tmp_path / "compiled") == losses(tmp_path / "eager")
    (newest, *_) = sorted(RunFolder(tmp_path / "compiled").checkpoints.glob("step-*"), reverse=True)
    assert read_manifest(newest).config["compile"] == "off"


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 3])
def test_a_compiled_run_is_resumed_bit_for_bit(stage: int, tokens: Path, tmp_path: Path) -> None:
    """With the compiler that runs use, and its dropout. A start that compiles no longer says so."""
    whole = tmp_path / "whole"
    options = (*MAGE, WIDE, f"data.tokens={tokens}", "compile=on", f"zero_stage={stage}")
    options = (*options, "recompute_every=2")
    output = finish(whole, *options)
    assert "the networks are compiled: " in output
    cut = cut_back(whole, tmp_path / "cut", 4)
    output = finish(cut, *options)
    assert same_end(whole, cut) and "changed since that checkpoint: compile" not in output
    other = cut_back(whole, tmp_path / "other", 4)
    output = finish(other, *options, "compile=off")
    assert "changed since that checkpoint: compile: on -> off" in output
    assert losses(other) == pytest.approx(losses(whole), rel=0.05)  # other dropout
