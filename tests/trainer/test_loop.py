"""What a training step waits for: between two metric lines nothing of ours asks the device for a
number, and DeepSpeed only where it is known to."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.vq import VQTokenizer
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import Ranks
from trainer.pretrain import main

LINE = 3  # steps between two metric lines
# Operations whose result, or whose size, the host needs before it can go on.
READS = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
# What never reaches PyTorch's dispatcher on a CPU.
METHODS = ("cpu", "numpy", "tolist")

# It reads numbers of the host, that ranks have told each other.
AGREEMENT = "trainer.distributed.collectives.Agreement.result"
# On CPUs alone, where it reads a seed that the host's generator drew.
DROPOUT = "model.dropout.kept_elements"
JUDGES, CLIPS = (
    f"deepspeed.runtime.utils.{name}"
    for name in ("is_invalid_grad_norm", "clip_tensors_by_global_norm")
)
# By ZeRO stage and precision: where DeepSpeed waits, and how often in a step. It looks at the norm
# once, and in stages 1 and 2 again for each of the two groups of parameters.
KNOWN: dict[tuple[int, str], dict[str, int]] = {
    (0, "fp32"): {},
    (1, "fp32"): {JUDGES: 3},
    (2, "fp32"): {JUDGES: 3},
    (3, "fp32"): {JUDGES: 1},
    (1, "bf16"): {JUDGES: 1, CLIPS: 1},
}


class Audit(TorchDispatchMode):
    """Counts reads by the function of ours, or of DeepSpeed, that makes them. It is active between
    the first metric line and the second."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in READS or (name in INDEXING and any(_is_mask(i) for i in args[1])):
            self.note()
        return function(*args, **(kwargs or {}))

    def note(self) -> None:
        frame = sys._getframe()
        while frame.f_back:
            frame = frame.f_back
            module = frame.f_globals["__name__"]
            if module.startswith(("deepspeed.", "model.", "trainer.")):
                break
        self.found[f"{module}.{frame.f_code.co_qualname}"] += 1

    def watch(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if self.active:
                self.note()
            return original(*arguments, **named)

        setattr(owner, name, call)

    active = False


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def audited(arguments: list[str]) -> int:
    """A rank that writes down what it counted."""
    from deepspeed.accelerator import get_accelerator

    from trainer.loop import Trainer

    audit, lines = Audit(), iter(range(100))
    for name in METHODS:
        audit.watch(Tensor, name)
    audit.watch(type(get_accelerator()), "synchronize")
    log = Trainer._log_and_check_health

    def line(trainer: Trainer) -> None:
        if audit.active:
            audit.__exit__(None, None, None)
        audit.active = False
        log(trainer)
        if next(lines) == 0:
            audit.active = True
            audit.__enter__()

    Trainer._log_and_check_health = line  # type: ignore[method-assign]
    code = main(arguments[1:])
    Path(arguments[0]).write_text(json.dumps(audit.found))
    return code


Counted = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def counted(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Counted:
    """Reads in a step, by run and function: of ADDP in each ZeRO stage, and of MAGE."""
    folder = tmp_path_factory.mktemp("audit")
    addp = addp_options(folder, tokenizer, tokenizer_file, tokens)
    runs: dict[str, Sequence[str]] = {
        f"{stage} {precision}": (*addp, f"zero_stage={stage}", f"precision={precision}")
        for stage, precision in KNOWN
    }
    runs["mage"] = (*MAGE, f"data.tokens={tokens}", "zero_stage=0")
    shared = (*SMALL, f"log_every={LINE}", f"schedule.total={3 * LINE}", "checkpoint.every=1000")
    worlds = {
        name: Ranks(
            audited,
            [str(folder / name), f"run={folder / 'runs' / name}", *shared, "ema_decay=0.9", *own],
            1,
            folder / f"{name}.log",
        )
        for name, own in runs.items()
    }
    for world in worlds.values():
        codes, output = world.wait()
        assert codes == [0], output
    found = {name: json.loads((folder / name).read_text()) for name in runs}
    return {
        name: {function: count / LINE for function, count in row.items()}
        for name, row in found.items()
    }


def test_a_step_reads_nothing_from_the_device(counted: Counted) -> None:
    for name, row in counted.items():
        ours = {function for function in row if not function.startswith("deepspeed.")}
        assert ours - {DROPOUT} == {AGREEMENT}, (name, row)


def test_where_deepspeed_waits_is_known(counted: Counted) -> None:
    """docs/performance.md says so, too."""
    for (stage, precision), known in KNOWN.items():
        row = counted[f"{stage} {precision}"]
        theirs = {name: count for name, count in row.items() if name.startswith("deepspeed.")}
        assert theirs == known, (stage, precision)
