"""float32 is float32 wherever it is promised: TF32 is off. tests/trainer/test_engine.py has the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from data_pipeline.encoder import TokenEncoder
from model.parity import compare
from tests.conftest import FIXTURES, fresh_tokenizer
from trainer.control import own_device


@pytest.fixture
def tf32() -> Iterator[None]:
    """Allowed, as a user or a library may have done before."""
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
