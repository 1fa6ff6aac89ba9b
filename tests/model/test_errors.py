"""What libraries say in many lines, in one."""

from __future__ import annotations

import pytest

from model.errors import in_one_line

XFORMERS = """No operator found for `memory_efficient_attention_forward` with inputs:
     query       : shape=(2, 33, 2, 16)
`fa2F` is not supported because:
    no kernel
    device=cpu
`cutlassF` is not supported because:
    device=cpu"""
COMPILER = """CppCompileError: C++ compile error

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace
and much more"""


@pytest.mark.parametrize(
    ("error", "named", "line"),
    [
        (NotImplementedError(XFORMERS), False, "no kernel; device=cpu"),
        (RuntimeError(COMPILER), True, "RuntimeError: CppCompileError: C++ compile error"),
        (RuntimeError("Set TORCH_LOGS"), False, "RuntimeError"),
        (KeyError("name"), False, "KeyError: 'name'"),
        (ValueError(9 * "a long word " * 9), False, (9 * "a long word " * 9)[:300]),
    ],
)
def test_an_error_takes_one_line(error: Exception, named: bool, line: str) -> None:
    assert in_one_line(error, named=named) == line
