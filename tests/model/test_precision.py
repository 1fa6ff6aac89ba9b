"""float32 is float32 wherever it is promised: TF32 is off. tests/trainer/engine/test_engine.py has
the trainer. And a CPU that only emulates bfloat16 is named wherever bfloat16 is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.sharding.encoder import TokenEncoder
from model import precision
from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.parity import compare
from model.precision import cpu_flags, emulates_bf16
from model.sampling_options import SamplingOptions
from tests.conftest import FIXTURES, fresh_tokenizer
from tests.trainer.launching import MAGE
from tests.trainer.worlds import SMALL, Ranks
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import own_device
from trainer.evaluation.options import SetOptions
from trainer.evaluation.sample_set import SampleSet
from trainer.evaluation.trained import Trained
from trainer.pretrain import main


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is allowed, as a user or a library may have done before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(own_device, id="evaluation and generation"),
        pytest.param(lambda: TokenEncoder(fresh_tokenizer(), batch=1), id="tokenizing"),
        pytest.param(lambda: compare(FIXTURES / "small"), id="parity"),
    ],
)
def test_no_tf32(begin: Callable[[], object]) -> None:
    begin()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


OLD = "processor\t: 0\nmodel name\t: some\nflags\t\t: fpu sse2 avx2 avx512f\npower management:\n"
NEEDS = "this CPU has no bf16 instructions"


@pytest.mark.parametrize(
    ("cpuinfo", "emulated"),
    [
        (OLD, True),
        (OLD.replace("avx512f", "avx512f avx512_bf16"), False),
        (OLD.replace("avx2", "amx_bf16"), False),
        ("processor : 0\nFeatures : fp asimd bf16\n", False),
        ("processor : 0\nFeatures : fp asimd\n", True),
        ("processor : 0\n", False),
        (None, False),
    ],
)
def test_who_emulates_bf16(cpuinfo: str | None, emulated: bool, tmp_path: Path) -> None:
    """Where nothing is known, nothing is claimed."""
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert emulates_bf16(cpu_flags(tmp_path / "cpuinfo")) == emulated


def generated(folder: Path) -> None:
    tokenizer = fresh_tokenizer()
    network = ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    trained = Trained(network, tokenizer, RunConfig(), None)
    options = SetOptions(count=1, batch=1, precision="bf16")
    SampleSet(folder / "set", trained, options, SamplingOptions(steps=2)).make_chunk(0)


@pytest.mark.parametrize(
    ("begin", "instead"),
    [
        pytest.param(
            lambda _: TokenEncoder(fresh_tokenizer(), batch=1, precision="bf16"),
            "fp32",
            id="tokenizing",
        ),
        pytest.param(generated, "--precision fp32", id="generation and evaluation"),
        pytest.param(
            lambda _: compare(FIXTURES / "small", dtype="bfloat16"), "--device cuda", id="parity"
        ),
    ],
)
def test_emulated_bf16_is_said_once(
    begin: Callable[[Path], object],
    instead: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cpuinfo").write_text(OLD)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    precision._say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="model.precision"):
        begin(tmp_path)
        precision.warn_of_bf16("cpu", precision_said(caplog).partition("float32. ")[2])
        precision.warn_of_bf16("cuda", "Nothing")
    assert NEEDS in precision_said(caplog) and instead in precision_said(caplog)


def precision_said(caplog: pytest.LogCaptureFixture) -> str:
    (said,) = [r.getMessage() for r in caplog.records if r.name == "model.precision"]
    return said


def on_an_old_cpu(arguments: list[str]) -> int:
    precision.CPUINFO = Path(arguments[0])
    return main(arguments[1:])


def test_a_run_says_so_too(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(OLD)
    run = (*SMALL, *MAGE, f"run={tmp_path / 'run'}", f"data.tokens={tokens}", "schedule.total=3")
    arguments = [str(tmp_path / "cpuinfo"), *run, "precision=bf16"]
    codes, output = Ranks(on_an_old_cpu, arguments, 2, tmp_path / "log").wait()
    assert codes == [0, 0], output
    assert output.count(NEEDS) == 1 and "Set precision: fp32 on CPUs" in output
