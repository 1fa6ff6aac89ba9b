"""The tensors of a checkpoint: where each lies, by the headers of its files, and reading them.

One rank reads the headers and tells the others (`Index`), so that each rank opens only the files
that hold what it reads. A parameter may lie in pieces, in the files of several ranks; whoever reads
a range of it need not know how it was divided:

    elements of blocks.0.mlp.fc1.weight    0                 32768             65536
    pieces, saved by two ranks             |--- rank-00000 --|--- rank-00001 --|
    ranges, read by three ranks            |-----------|-----------|-----------|
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from trainer.checkpointing.format import Damaged, Manifest
from trainer.checkpointing.snapshot import DTYPES
from trainer.engine.state_keys import BUFFER, Range
from trainer.run_folder import step_folder

_FIRST = 2**16  # bytes that are read at first: most headers are shorter
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
_MOST_OPEN = 64  # files at a time

Read = Callable[[str, int, int], bytes]  # (file, start, length) -> bytes start .. start+length-1


class Piece(NamedTuple):
    """Elements start .. of a flattened parameter, or a whole buffer. offset: its first byte in the
    file."""

    start: int
    shape: tuple[int, ...]
    dtype: str
    file: str
    offset: int

    @property
    def length(self) -> int:
        return math.prod(self.shape)


Index = dict[tuple[str, str], list[Piece]]  # by state key and parameter


class _HeaderEntry(BaseModel):
    """What the header of a safetensors file states of one tensor."""

    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=8)]
    data_offsets: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**53)]], Field(min_length=2, max_length=2)
    ]


_HEADER = TypeAdapter(dict[str, _HeaderEntry])


def read_index(manifest: Manifest, read: Read) -> Index:
    """Where each tensor lies, by the headers of all files. Raises Damaged where a file is no file
    of tensors, and what `read` raises."""
    index: Index = defaultdict(list)
    for name, stated in manifest.files.items():
        try:
            for key, piece in _pieces(name, stated.bytes, read):
                state_key, _, rest = key.partition("/")
                parameter, _, start = rest.rpartition("@")
                index[state_key, parameter].append(piece._replace(start=int(start)))
        except (ValidationError, ValueError) as error:
            where = step_folder(manifest.step)
            raise Damaged(
                f"{where} is no checkpoint of tensors: {name} has no readable header"
            ) from error
    return dict(index)


def _pieces(name: str, size: int, read: Read) -> Iterable[tuple[str, Piece]]:
    """The tensors of a file of `size` bytes. Raises ValueError where its header does not describe
    them."""
    head = read(name, 0, min(size, _FIRST))
    first = 8 + int.from_bytes(head[:8], "little")
    if len(head) < 8 or first > min(size, _LONGEST_HEADER):
        raise ValueError("no length of a header")
    if first > len(head):
        head += read(name, len(head), first - len(head))
    for key, stated in _HEADER.validate_json(head[8:first]).items():
        begin, end = stated.data_offsets
        piece = Piece(0, tuple(stated.shape), stated.dtype, name, first + begin)
        if (
            stated.dtype not in DTYPES
            or end - begin != piece.length * DTYPES[stated.dtype].itemsize
        ):
            raise ValueError(f"{key} is not as long as its shape")
        if first + end > size:
            raise ValueError(f"{key} lies behind the end")
        yield key, piece


def files_of(index: Index, ranges: Iterable[Range]) -> set[str]:
    """The files that hold something of these ranges."""
    return {
        piece.file
        for state_key, parameter, start, length in ranges
        for piece in index.get((state_key, parameter), ())
        if piece.start < start + length and start < piece.start + piece.length
    }


class SavedState:
    """The tensors of a verified checkpoint, whose files lie in `folder`. A file is opened when
    something of it is read."""

    def __init__(self, folder: Path, manifest: Manifest, index: Index) -> None:
        self.manifest = manifest
        self._folder, self._index = folder, index
        self._open: dict[str, BufferedReader] = {}

    def read(self, state_key: str, parameter: str, start: int, length: int) -> Tensor:
        """Elements start .. start+length-1 of a flattened parameter or of a state of it: (length,)
        float32, however it was divided into pieces. Raises Damaged."""
        result = torch.empty(length)
        filled = 0
        for piece in self._index.get((state_key, parameter), ()):
            first, last = max(start, piece.start), min(start + length, piece.start + piece.length)
            if first < last:
                result[first - start : last - start] = self._elements(
                    piece, first - piece.start, last - first
                )
                filled += last - first
        if filled != length:
            raise Damaged(
                f"{step_folder(self.manifest.step)}: {state_key} of {parameter} is incomplete"
            )
        return result

    def _elements(self, piece: Piece, first: int, count: int) -> Tensor:
        """Read elements first .. first+count-1 of a piece: (count,) of its own dtype."""
        values = torch.empty(count, dtype=DTYPES[piece.dtype])
        path = self._folder / piece.file
        try:
            if piece.file not in self._open:
                if len(self._open) >= _MOST_OPEN:
                    self.close()
                self._open[piece.file] = path.open("rb")
            file = self._open[piece.file]
            file.seek(piece.offset + first * values.itemsize)
            read = file.readinto(values.view(torch.uint8).numpy().data) if count else 0
        except OSError as error:
            raise Damaged(
                f"{path.parent.name}: {path.name} cannot be read: {error.strerror or error}"
            ) from error
        if read != values.nbytes:
            raise Damaged(f"{path.parent.name}: {path.name} is damaged: it ends early")
        return values

    def close(self) -> None:
        """Close the files. What is read later opens its file again."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def buffers(self) -> dict[str, Tensor]:
        """All buffers, by their names in the trained network."""
        return {
            name: self._elements(piece, 0, piece.length).view(piece.shape)
            for (state_key, name), pieces in self._index.items()
            if state_key == BUFFER
            for piece in pieces
        }
