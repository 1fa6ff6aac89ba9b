"""The format of a checkpoint: valid or invisible, and independent of ZeRO's stage and the number of
ranks.

step-N/rank-R.safetensors holds what rank R owned: for each fragment of a parameter its float32
weights, optimizer state and average, under the key "KIND/PARAMETER@START". step-N/manifest.json is
written last and states the bytes and sha256 of every file, and a digest of itself. A folder step-N
whose manifest holds is a checkpoint; nothing else is. No file is a pickle: nothing in a checkpoint
can run.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from torch import Tensor

from data_pipeline.storage import CHUNK
from model.documents import MIB, Count, Positive, Record, Sha256, first_problem, read_file, show
from model.errors import ADDPError
from trainer.run_folder import EXIT_NO_VALID_CHECKPOINT, checkpoint_fingerprint

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 16 * MIB  # that of a thousand ranks has 0.2
_LATEST = 1e11  # seconds since 1970: the year 5138
PUBLISHED = (
    "published"  # beside the checkpoints: the step of the last one, so that their loss is noticed
)
WEIGHTS, EMA, BUFFER = "weights", "ema", "buffer"  # kinds of tensors, beside the optimizer's own
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


class NoValidCheckpoint(ADDPError):
    """There are checkpoints, but none can be loaded. Never a silent start from zero."""

    exit_code = EXIT_NO_VALID_CHECKPOINT


class Damaged(ADDPError):
    """A checkpoint that does not hold what its manifest states. The message names it and the
    file."""


class FileEntry(Record):
    bytes: Count
    sha256: Sha256


class Manifest(BaseModel):
    """step: steps done. run_identity: what the run that goes on must share. parameters: shapes.
    export_prefix: of the exported network's names. state_keys: the kinds of tensors kept for each
    parameter. applied: optimizer updates. skipped: data left out so far. trainer_state: the run's
    own counters and statistics. run: its id, "" before there were ids. config: the resolved
    configuration that it was trained with, {} before it was kept. digest: of all else, as it was
    read; "" before there were any."""

    model_config = ConfigDict(
        extra="forbid",
        ser_json_inf_nan="constants",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    format: Literal["addp-checkpoint-2"] = "addp-checkpoint-2"
    step: Count
    world_size: Positive
    zero_stage: int = Field(ge=0, le=3)
    run_identity: dict[str, Any] = Field(alias="facts")
    parameters: dict[str, list[Count]]
    export_prefix: str = Field(alias="part")
    state_keys: list[str] = Field(alias="kinds")
    applied: Count
    scaler: dict[str, Any]
    skipped: list[dict[str, int]]
    trainer_state: dict[str, Any] = Field(alias="progress")
    run: str = ""
    config: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}
    digest: str = ""

    @property
    def saved(self) -> float:
        """When it was, by the wall clock; 0 where it does not say."""
        return float(self.trainer_state.get("seen", 0.0))

    @property
    def fingerprint(self) -> str:
        """Of what its files hold."""
        return checkpoint_fingerprint({name: entry.sha256 for name, entry in self.files.items()})


def candidates(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(checkpoints.glob("step-" + "[0-9]" * 8), reverse=True)


def manifest_bytes(manifest: Manifest) -> bytes:
    """As it is written: with its digest, so that no value in it changes unseen."""
    document = from_json(manifest.model_dump_json(exclude={"digest"}))
    return json.dumps({**document, "digest": _digest(document)}, indent=1).encode()


def _digest(document: dict[str, Any]) -> str:
    """Of a manifest's JSON without its digest. Of what stands there, not of the record that is made
    of it: later versions may know more fields."""
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def parse_manifest(text: bytes | str, name: str) -> Manifest:
    """Raises Damaged."""
    if len(text) > _LARGEST_MANIFEST:
        raise Damaged(
            f"{name}: {MANIFEST} is larger than {_LARGEST_MANIFEST // MIB} MiB, the most that it "
            "may have"
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        if any(item["loc"] == ("format",) for item in error.errors()):
            raise Damaged(
                f"{name} was written by another version of this program ({MANIFEST}: format)"
            ) from error
        raise Damaged(f"{name} has no readable {MANIFEST}: {first_problem(error)}") from error
    if manifest.digest and manifest.digest != _digest(from_json(text)):
        raise Damaged(f"{name}: {MANIFEST} is damaged: its digest is not that of its content")
    if not manifest.files:
        raise Damaged(f"{name}: {MANIFEST} names no files")
    seen = manifest.trainer_state.get("seen", 0)
    if not isinstance(seen, int | float) or isinstance(seen, bool) or not 0 <= seen < _LATEST:
        raise Damaged(
            f"{name}: {MANIFEST} says that it was saved at {show(seen)}, which is no time"
        )
    for file in manifest.files:
        if Path(file).name != file:
            raise Damaged(f"{name}: {MANIFEST} names {file!r}, which is no plain file name")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Raises Damaged."""
    try:
        text = read_file(path / MANIFEST, _LARGEST_MANIFEST, Damaged)
    except FileNotFoundError as error:
        raise Damaged(f"{path.name} has no readable {MANIFEST}: {error.strerror}") from error
    return parse_manifest(text, path.name)


def _size(path: Path, name: str) -> int:
    """Of a file that may be opened. Raises Damaged for a FIFO or a device, which would be waited
    for; OSError."""
    status = (path / name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"{path.name}: {name} is no regular file")
    return status.st_size


def verify_file(path: Path, name: str, stated: FileEntry) -> None:
    """Raises Damaged where a file of the checkpoint at `path` is not as its manifest states."""
    try:
        size = _size(path, name)
        if size != stated.bytes:
            raise Damaged(f"{path.name}: {name} is damaged: {size} bytes instead of {stated.bytes}")
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise Damaged(f"{path.name}: {name} is missing") from error
    except OSError as error:
        raise Damaged(f"{path.name}: {name} cannot be read: {error.strerror}") from error
    if found != stated.sha256:
        raise Damaged(f"{path.name}: {name} is damaged: its sha256 is not the manifest's")


def read_bytes(path: Path, name: str, start: int, length: int) -> bytes:
    """Bytes start .. start+length-1 of a file of the checkpoint at `path`. Raises Damaged."""
    try:
        _size(path, name)
        with (path / name).open("rb") as file:
            file.seek(start)
            content = file.read(length)
    except FileNotFoundError as error:
        raise Damaged(f"{path.name}: {name} is missing") from error
    except OSError as error:
        raise Damaged(f"{path.name}: {name} cannot be read: {error.strerror}") from error
    if len(content) != length:
        raise Damaged(f"{path.name}: {name} is damaged: it ends at byte {start + len(content)}")
    return content


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint, all of whose files are as it states. Raises Damaged."""
    manifest = read_manifest(path)
    for name, stated in manifest.files.items():
        verify_file(path, name, stated)
    return manifest


def no_valid(where: str, refused: list[str]) -> NoValidCheckpoint:
    return NoValidCheckpoint(
        f"{where} has {len(refused)} checkpoints, but none is valid: {'; '.join(refused)}. Restore "
        "one from a copy, or move the folder away to start from the beginning"
    )


class Snapshot(NamedTuple):
    """A safetensors file in host memory: its header, and its tensors' bytes one after the other."""

    header: bytes
    payload: Tensor


def snapshot(tensors: Iterable[tuple[str, Tensor]], buffer: Tensor | None) -> Snapshot:
    """Copy tensors to host memory, in one go; when it returns, they may change.

    buffer: an earlier snapshot's payload, used again where the size is the same.
    """
    ordered = sorted(tensors, key=lambda item: -item[1].element_size())  # so that each is aligned
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
    """Write and sync the file; hashed on the way. Raises OSError."""
    digest = hashlib.sha256(content.header)
    data = content.payload.numpy().data
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content.header)
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=len(content.header) + len(data), sha256=digest.hexdigest())
