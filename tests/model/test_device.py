from __future__ import annotations

import pytest
import torch

from model.device import usable_device
from model.errors import ConfigError


@pytest.mark.parametrize(
    "name", ["nan", "", "cuda:-1", "cuda:99", "meta", "fpga", "cpu cuda", "\x00"]
)
def test_what_is_no_device_here(name: str) -> None:
    with pytest.raises(ConfigError, match="--device "):
        usable_device(name)


def test_the_processor() -> None:
    assert usable_device("cpu") == torch.device("cpu")
