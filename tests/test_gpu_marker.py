"""GPU tests are run by those who ask for them, and fail where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpu import conftest


class Item:
    """As pytest hands it out once -m has chosen."""

    def __init__(self, *markers: str) -> None:
        self.markers = markers

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.markers else None


def collect(markexpr: str, items: list[Any]) -> list[Any]:
    """Those that are left out."""
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=markexpr), hook=hook)
    conftest.pytest_collection_modifyitems(config, items)
    return left_out


@pytest.mark.parametrize("markexpr", ["", "not long", "long"])
def test_other_suites_leave_them_out(markexpr: str) -> None:
    ordinary, needs_gpu = Item(), Item("gpu")
    items: list[Any] = [ordinary, needs_gpu]
    assert collect(markexpr, items) == [needs_gpu] and items == [ordinary]


def test_asked_for_without_a_gpu_they_fail_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(conftest, "DEVICE", "cuda")
    with pytest.raises(
        pytest.UsageError, match=r"^tests of the marker gpu need a CUDA device.*sees none here"
    ):
        collect("gpu", [Item("gpu")])
    monkeypatch.setattr(conftest, "DEVICE", "cpu")
    assert collect("gpu", [Item("gpu")]) == []
