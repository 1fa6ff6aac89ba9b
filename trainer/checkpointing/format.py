"""The format of a checkpoint, which is valid or invisible, and independent of ZeRO's stage and of
the number of ranks. Imports no torch.

    RUN/checkpoints/                               STORE/checkpoints/  (what a run uploads to)
      step-00000008/                                 step-00000008/
        rank-00000.safetensors  rank 0's share         rank-00000.safetensors.5f70bf18a086
        rank-00001.safetensors  rank 1's share         rank-00001.safetensors.c4ca4238a0b9
        manifest.json           written last           manifest.json
      step-00000012.3f2a91c0.tmp/  being written by the attempt 3f2a91c0
      published                 the last step that was saved, so that its loss is noticed

A rank's file holds what the rank owned. For each run of consecutive elements of a parameter it has
the float32 weights, the optimizer's state and the moving average, under
"STATE_KEY/PARAMETER@START":

    weights/blocks.0.mlp.fc1.weight@0    exp_avg/blocks.0.mlp.fc1.weight@0    ema/...    buffer/...

The manifest states the bytes and the sha256 of every file, and a digest of itself. A folder whose
manifest holds is a checkpoint, and nothing else is. On a store the objects carry the beginning of
their sha256 in their names, so that nothing is ever overwritten with other bytes, and an upload
that was cut short goes on. No file is a pickle: nothing in a checkpoint can run.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from model.documents import MIB, Count, Positive, Record, Sha256, first_problem, read_file, show
from model.errors import ADDPError
from trainer.run_folder import EXIT_NO_VALID_CHECKPOINT, checkpoint_fingerprint, step_folder

MANIFEST = "manifest.json"
PUBLISHED = "published"
_LARGEST_MANIFEST = 16 * MIB  # the manifest of a thousand ranks takes 0.2 MiB
_LATEST = 1e11  # seconds since 1970: the year 5138


class NoValidCheckpoint(ADDPError):
    """There are checkpoints, but none can be loaded. A run never starts from zero instead."""

    exit_code = EXIT_NO_VALID_CHECKPOINT

    @classmethod
    def of(cls, where: str, refused: list[str]) -> NoValidCheckpoint:
        """The error for checkpoints at `where` that were refused for these reasons."""
        return cls(
            f"{where} has {len(refused)} checkpoints, but none is valid: {'; '.join(refused)}. "
            "Restore one from a copy, or move the folder away to start from the beginning"
        )


class Damaged(ADDPError):
    """A checkpoint does not hold what its manifest states. The message names it and the file."""


class FileEntry(Record):
    """What a manifest states of a file."""

    bytes: Count
    sha256: Sha256


class Manifest(BaseModel):
    """What a checkpoint holds, and where the run stood when it was saved.

    step: optimizer steps done. run_identity: what a run must share that goes on from it.
    parameters: their shapes. export_prefix: begins the names of the exported network's parameters.
    state_keys: which tensors are kept of each parameter. applied: updates of the weights. skipped:
    the rewinds before this step, each with the data that it left out. trainer_state: counters and
    statistics of the run. run: its id, "" in manifests from before there were ids. config: the
    resolved configuration, {} in manifests from before it was kept. digest: of everything else as
    it was read, "" in manifests from before there were digests.

    The aliases are the keys on disk, which stay what they were.
    """

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
        """When it was saved, in seconds since 1970; 0 where it does not say."""
        return float(self.trainer_state.get("seen", 0.0))

    @property
    def size(self) -> int:
        """The bytes of its files together."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def fingerprint(self) -> str:
        """Tells what its files hold from what those of another checkpoint hold."""
        return checkpoint_fingerprint({name: entry.sha256 for name, entry in self.files.items()})


def rank_file(rank: int) -> str:
    """The name of the file that holds a rank's share."""
    return f"rank-{rank:05d}.safetensors"


def step_of(folder: str) -> int | None:
    """The step of a checkpoint, by the name of its folder; None for any other name."""
    match = re.fullmatch(r"step-([0-9]{8,})", folder)
    return int(match[1]) if match and step_folder(int(match[1])) == folder else None


def manifest_name(step: int) -> str:
    """The name of a manifest below the run folder, and on the store that a run uploads to."""
    return f"checkpoints/{step_folder(step)}/{MANIFEST}"


def step_of_manifest(name: str) -> int | None:
    """The inverse of `manifest_name`; None for any other name."""
    match = re.fullmatch(f"checkpoints/([^/]+)/{re.escape(MANIFEST)}", name)
    return step_of(match[1]) if match else None


def object_name(step: int, file: str, stated: FileEntry) -> str:
    """The name of a file of a checkpoint on the store that a run uploads to."""
    return f"checkpoints/{step_folder(step)}/{file}.{stated.sha256[:12]}"


def is_object_of_file(name: str) -> bool:
    """Whether a name on a store can be one that `object_name` gave."""
    return re.fullmatch(r"rank-\d+\.safetensors\.[0-9a-f]{12}", name.rpartition("/")[2]) is not None


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is written: with its digest, so that no value in it changes unseen."""
    document = from_json(manifest.model_dump_json(exclude={"digest"}))
    return json.dumps({**document, "digest": _digest(document)}, indent=1).encode()


def _digest(document: dict[str, Any]) -> str:
    """The sha256 of a manifest's JSON without its digest: of what stands there, not of the record
    that is made of it, since later versions may know more fields."""
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def parse_manifest(text: bytes | str, name: str) -> Manifest:
    """The manifest of the checkpoint that messages call `name`. Raises Damaged."""
    if len(text) > _LARGEST_MANIFEST:
        raise Damaged(
            f"{name}: {MANIFEST} is larger than {_LARGEST_MANIFEST // MIB} MiB, "
            "the most that it may have"
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


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in a folder. Raises Damaged."""
    try:
        text = read_file(folder / MANIFEST, _LARGEST_MANIFEST, Damaged)
    except FileNotFoundError as error:
        raise Damaged(f"{folder.name} has no readable {MANIFEST}: {error.strerror}") from error
    return parse_manifest(text, folder.name)


def verify_file(path: Path, stated: FileEntry) -> None:
    """Raises Damaged where a file of a checkpoint is not as its manifest states."""
    name = f"{path.parent.name}: {path.name}"
    try:
        size = _regular_size(path)
        if size != stated.bytes:
            raise Damaged(f"{name} is damaged: {size} bytes instead of {stated.bytes}")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    if sha256 != stated.sha256:
        raise Damaged(f"{name} is damaged: its sha256 is not the manifest's")


def read_bytes(path: Path, start: int, length: int) -> bytes:
    """Bytes start .. start+length-1 of a file of a checkpoint. Raises Damaged."""
    try:
        _regular_size(path)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) != length:
        raise Damaged(
            f"{path.parent.name}: {path.name} is damaged: it ends at byte {start + len(content)}"
        )
    return content


def _regular_size(path: Path) -> int:
    """The size of a file. Raises Damaged for a pipe or a device, which opening would wait for, and
    OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"{path.parent.name}: {path.name} is no regular file")
    return status.st_size


def _unreadable(path: Path, error: OSError) -> Damaged:
    reason = (
        "is missing"
        if isinstance(error, FileNotFoundError)
        else f"cannot be read: {error.strerror or error}"
    )
    return Damaged(f"{path.parent.name}: {path.name} {reason}")
