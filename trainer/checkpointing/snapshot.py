"""A safetensors file in host memory, on its way from the engine to the disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_pipeline.storage import CHUNK
from trainer.checkpointing.format import FileEntry

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Snapshot(NamedTuple):
    """The bytes of a file: its header, and its tensors one after the other (uint8)."""

    header: bytes
    payload: Tensor


def snapshot(tensors: Iterable[tuple[str, Tensor]], buffer: Tensor | None) -> Snapshot:
    """Copy named tensors to host memory in one go. Once it returns, the tensors may change.

    buffer: the payload of an earlier snapshot, which is used again where the size is the same.
    """
    # The widest elements come first, so that each tensor is aligned to its own elements.
    ordered = sorted(tensors, key=lambda item: -item[1].element_size())
    total = sum(t.numel() * t.element_size() for _, t in ordered)
    if buffer is None or buffer.numel() != total:
        buffer = torch.empty(total, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    header: dict[str, Any] = {}
    at = 0
    on_cuda = False
    for key, tensor in ordered:
        end = at + tensor.numel() * tensor.element_size()
        buffer[at:end].view(tensor.dtype).view(tensor.shape).copy_(
            tensor.detach(), non_blocking=True
        )
        on_cuda = on_cuda or tensor.is_cuda
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    if on_cuda:
        torch.cuda.synchronize()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return Snapshot(len(text).to_bytes(8, "little") + text, buffer)


def write_snapshot(path: Path, content: Snapshot) -> FileEntry:
    """Write and sync the file, and hash it on the way. Raises OSError."""
    digest = hashlib.sha256(content.header)
    data = content.payload.numpy().data
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content.header)
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=len(content.header) + len(data), sha256=digest.hexdigest())
