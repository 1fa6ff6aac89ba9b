"""The format of a checkpoint: valid or invisible, and independent of ZeRO's stage and the number of ranks.

step-N/rank-R.safetensors holds what rank R owned: for each fragment of a parameter its float32 weights, optimizer
state and average, under the key "KIND/PARAMETER@START". step-N/manifest.json is written last and states the bytes and
sha256 of every file. A folder step-N whose manifest holds is a checkpoint; nothing else is. No file is a pickle:
nothing in a checkpoint can run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.storage import CHUNK
from model.config import Geometry
from model.errors import ADDPError
from model.weights import CONFIG, Network, build
from trainer.run_folder import EXIT_NO_VALID_CHECKPOINT, checkpoint_fingerprint, step_folder

MANIFEST = "manifest.json"
PUBLISHED = "published"  # beside the checkpoints: the step of the last one, so that their loss is noticed
WEIGHTS, AVERAGE, BUFFER = "weights", "ema", "buffer"  # kinds of tensors, beside the optimizer's own
_NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class NoValidCheckpoint(ADDPError):
    """There are checkpoints, but none can be loaded. Never a silent start from zero."""

    exit_code = EXIT_NO_VALID_CHECKPOINT


class Damaged(ADDPError):
    """A checkpoint that does not hold what its manifest states. The message names it and the file."""


class FileEntry(BaseModel):
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """step: steps done. facts: what the run that goes on must share. parameters: shapes. part: prefix of the exported
    network's names. kinds: of tensors for each parameter. applied: optimizer updates. skipped: data left out so far.
    progress: the run's own counters and statistics. run: its id, "" before there were ids. config: the resolved
    configuration that it was trained with, {} before it was kept."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["addp-checkpoint-2"] = "addp-checkpoint-2"
    step: int
    world_size: int
    zero_stage: int
    facts: dict[str, Any]
    parameters: dict[str, list[int]]
    part: str
    kinds: list[str]
    applied: int
    scaler: dict[str, Any]
    skipped: list[dict[str, int]]
    progress: dict[str, Any]
    run: str = ""
    config: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}

    @property
    def fingerprint(self) -> str:
        """Of what its files hold."""
        return checkpoint_fingerprint({name: entry.sha256 for name, entry in self.files.items()})


def candidates(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(checkpoints.glob("step-" + "[0-9]" * 8), reverse=True)


def parse_manifest(text: bytes | str, name: str) -> Manifest:
    """Raises Damaged."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        if "format" in str(error):
            raise Damaged(f"{name} was written by another version of this program ({MANIFEST}: format)") from error
        raise Damaged(f"{name} has no readable {MANIFEST}: {error.errors()[0]['msg']}") from error
    for file in manifest.files:
        if Path(file).name != file:
            raise Damaged(f"{name}: {MANIFEST} names {file!r}, which is no plain file name")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Raises Damaged."""
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} has no readable {MANIFEST}: {error.strerror}") from error
    return parse_manifest(text, path.name)


def verify_file(path: Path, name: str, stated: FileEntry) -> None:
    """Raises Damaged where a file of the checkpoint at `path` is not as its manifest states."""
    try:
        size = (path / name).stat().st_size
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


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint, all of whose files are as it states. Raises Damaged."""
    manifest = read_manifest(path)
    for name, stated in manifest.files.items():
        verify_file(path, name, stated)
    return manifest


def no_valid(where: str, refused: list[str]) -> NoValidCheckpoint:
    return NoValidCheckpoint(
        f"{where} has {len(refused)} checkpoints, but none is valid: {'; '.join(refused)}. "
        "Restore one from a copy, or move the folder away to start from the beginning"
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
        buffer[at:end].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
        on_cuda = on_cuda or tensor.is_cuda
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
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


class SavedState:
    """The tensors of a verified checkpoint, mapped; what is read is all that is loaded."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._files = []
        self._pieces: dict[tuple[str, str], list[tuple[int, str, Any]]] = defaultdict(list)
        try:
            for name in manifest.files:
                file = safe_open(path / name, "pt")
                self._files.append(file)
                for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - it is no dictionary
                    kind, _, rest = key.partition("/")
                    parameter, _, start = rest.rpartition("@")
                    self._pieces[kind, parameter].append((int(start), key, file))
        except (SafetensorError, ValueError) as error:
            raise Damaged(f"{path.name} is no checkpoint of tensors: {error}") from error

    def read(self, kind: str, parameter: str, start: int, length: int) -> Tensor:
        """(length,) float32, whatever the division into pieces was."""
        result = torch.empty(length)
        filled = 0
        for at, key, file in self._pieces[kind, parameter]:
            piece = file.get_slice(key)
            first, last = max(start, at), min(start + length, at + piece.get_shape()[0])
            if first < last:
                result[first - start : last - start] = piece[first - at : last - at]
                filled += last - first
        if filled != length:
            raise Damaged(f"{step_folder(self.manifest.step)}: {kind} of {parameter} is incomplete")
        return result

    def buffers(self) -> dict[str, Tensor]:
        return {
            name: file.get_tensor(key)
            for (kind, name), pieces in self._pieces.items()
            if kind == BUFFER
            for _, key, file in pieces
        }

    def network(self, kind: str) -> Network:
        """The exported network with the weights of a kind, "weights" or "ema". Raises ADDPError where it has none."""
        m = self.manifest
        if kind not in m.kinds:
            raise ADDPError(f"{step_folder(m.step)} has no {kind}; it has {', '.join(m.kinds)}")
        state = {
            name: self.read(kind, name, 0, torch.Size(shape).numel()).view(shape)
            for name, shape in m.parameters.items()
            if name.startswith(m.part)
        }
        state |= {name: value for name, value in self.buffers().items() if name.startswith(m.part)}
        objective = m.facts["objective"]
        kind = {"mage": "predictor", "classify": "classifier"}.get(objective, objective)
        network = build(
            kind, CONFIG[kind].model_validate(m.facts["network"]), Geometry.model_validate(m.facts["geometry"])
        )
        network.load_state_dict({name.removeprefix(m.part): value for name, value in state.items()})
        return network
