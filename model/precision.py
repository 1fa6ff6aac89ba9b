"""What float32 means, and where bfloat16 is not worth asking for: the one place that says so.
Imports torch only where it is called."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

InferencePrecision = Literal["fp32", "bf16"]  # in which a network that is not trained computes
CPUINFO = Path("/proc/cpuinfo")
# Flags of processors with bf16 products: x86, x86, ARM.
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's short name: bfloat16 for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def keep_float32() -> None:
    """Make products and convolutions of float32 tensors float32, in this process from now on.

    Unless told otherwise, PyTorch lets cuDNN use TF32, of 10 bits, for convolutions. The reference
    turns it off, and so does everything here that computes with a network, in every precision: each
    of them has float32 in it.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def cpu_flags(cpuinfo: Path) -> frozenset[str] | None:
    """Return what the processor says it can do: the words after `flags` (x86) or `Features` (ARM)
    in /proc/cpuinfo; None if that cannot be read, as on other systems than Linux."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    flags = (
        line.partition(":")[2].split()
        for line in lines
        if line.split(":")[0].strip() in ("flags", "Features")
    )
    return next((frozenset(words) for words in flags), None)


def emulates_bf16(flags: frozenset[str] | None) -> bool:
    """Whether a CPU is known to lack instructions for bfloat16."""
    return flags is not None and not flags & BF16


def warn_of_bf16(device_type: str, instead: str) -> None:
    """Warn once, on rank 0, if this machine can only emulate bfloat16. Call it where bfloat16 is
    asked for; instead: a sentence on what to do."""
    if (
        device_type == "cpu"
        and os.environ.get("RANK", "0") == "0"
        and emulates_bf16(cpu_flags(CPUINFO))
    ):
        _say(instead)


@cache
def _say(instead: str) -> None:
    log.warning(
        "this CPU has no bf16 instructions (%s): products are emulated, and may take hundreds of "
        "times as long as in float32. %s",
        ", ".join(sorted(BF16)),
        instead,
    )
