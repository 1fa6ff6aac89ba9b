"""Inputs that are made one micro batch ahead are the same, and made once. On a CPU nothing runs
beside anything, but the order is that of a GPU."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from data_pipeline.storage import LocalStore
from model.vq import VQTokenizer
from tests.token_sets import write_tokens
from tests.trainer.comparing import same_end
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.launching import SMALL
from tests.trainer.test_prefetch import ROWS, config
from tests.trainer.worlds import Ranks
from trainer import loop
from trainer.micro_batches import MicroBatch, MicroBatches
from trainer.objectives.addp import ADDPObjective
from trainer.objectives.mage import MageObjective
from trainer.pretrain import main


def ahead(arguments: list[str]) -> int:
    """A run that makes inputs ahead, and says how often it made some."""
    made, original = [], ADDPObjective.inputs

    def inputs(own: ADDPObjective, batch: object, step: int, device: torch.device) -> object:
        made.append(step)
        return original(own, batch, step, device)  # type: ignore[arg-type]

    ADDPObjective.inputs = inputs  # type: ignore[assignment, method-assign]
    loop.runs_ahead = lambda *_: True
    code = main(arguments)
    print("inputs made:", len(made), flush=True)
    return code


def test_a_run_that_makes_inputs_ahead_is_the_same(
    tokens: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Two micro batches a step on each of two ranks, dropout on; every input is made once."""
    options = (*SMALL, *addp_options(tmp_path, tokenizer, tokenizer_file, tokens))
    runs = {
        name: Ranks(function, [f"run={tmp_path / name}", *options], 2, tmp_path / f"{name}.log")
        for name, function in (("ahead", ahead), ("plain", main))
    }
    for world in runs.values():
        codes, output = world.wait()
        assert codes == [0, 0], output
    assert same_end(tmp_path / "ahead", tmp_path / "plain")
    assert (tmp_path / "ahead.log").read_text().count("inputs made: 24") == 2


def test_what_was_made_for_another_micro_batch_is_dropped(tmp_path: Path) -> None:
    """As after a rewind: the next step takes other data than those that were made ahead."""
    write_tokens(LocalStore(tmp_path), ROWS)
    with closing(MageObjective(config(tmp_path), fresh=True)) as objective:
        now, expected, other = (
            MicroBatch(32 * step, step, objective.batch(step, 0, 2)) for step in (0, 1, 4)
        )
        assert not np.array_equal(expected.batch.ids, other.batch.ids)
        maker = MicroBatches(objective, torch.device("cpu"), 1, ahead=True)
        for made_ahead in (expected, other):
            next(maker.inputs([now], made_ahead))
            maker.make_ahead()
            (taken,) = maker.inputs([other], None)
            assert np.array_equal(taken["ids"], other.batch.ids)
