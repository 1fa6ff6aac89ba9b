"""The tensors of a checkpoint: where each lies, by the headers of its files, and reading what is
asked for.

One rank reads the headers and tells the others (`Index`), so that each opens only the files that
hold what it reads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from model.config import Geometry
from model.documents import first_problem, show
from model.errors import ADDPError
from model.networks import CONFIG, Network, Sizes, build, outline
from trainer.checkpointing.format import (
    BUFFER,
    DTYPE_NAMES,
    MANIFEST,
    Damaged,
    Manifest,
    read_bytes,
)
from trainer.objectives.registry import OBJECTIVES
from trainer.run_folder import step_folder

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_FIRST = 2**16  # bytes that are asked for at first: most headers are shorter
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_MOST_OPEN = 64  # files at a time

Read = Callable[[str, int, int], bytes]  # of a file: bytes start .. start+length-1


class Piece(NamedTuple):
    """Elements start .. of a flattened parameter, which stand at `offset` bytes of `file`; or a
    whole buffer."""

    start: int
    shape: tuple[int, ...]
    dtype: str
    file: str
    offset: int

    @property
    def length(self) -> int:
        return math.prod(self.shape)


class Range(NamedTuple):
    """Elements start .. start+length-1 of a parameter, of a kind."""

    kind: str
    parameter: str
    start: int
    length: int


Index = dict[tuple[str, str], list[Piece]]  # of a kind and a parameter


class _Stated(BaseModel):
    """Of a tensor, in a safetensors header."""

    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=8)]
    data_offsets: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**53)]], Field(min_length=2, max_length=2)
    ]


_HEADER = TypeAdapter(dict[str, _Stated])


def read_index(manifest: Manifest, read: Read) -> Index:
    """By the headers of all files. Raises Damaged where one is no file of tensors, and what `read`
    raises."""
    index: Index = defaultdict(list)
    for name, stated in manifest.files.items():
        try:
            for key, piece in _pieces(name, stated.bytes, read):
                kind, _, rest = key.partition("/")
                parameter, _, start = rest.rpartition("@")
                index[kind, parameter].append(piece._replace(start=int(start)))
        except (ValidationError, ValueError) as error:
            where = step_folder(manifest.step)
            raise Damaged(
                f"{where} is no checkpoint of tensors: {name} has no readable header"
            ) from error
    return dict(index)


def _pieces(name: str, size: int, read: Read) -> Iterable[tuple[str, Piece]]:
    """size: bytes of the file. Raises ValueError where the header does not describe them."""
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
            stated.dtype not in _DTYPES
            or end - begin != piece.length * _DTYPES[stated.dtype].itemsize
        ):
            raise ValueError(f"{key} is not as long as its shape")
        if first + end > size:
            raise ValueError(f"{key} lies behind the end")
        yield key, piece


def read_here(path: Path) -> Read:
    """Of the files of a checkpoint folder. Raises Damaged."""
    return lambda name, start, length: read_bytes(path, name, start, length)


def files_of(index: Index, wanted: Iterable[Range]) -> set[str]:
    """That hold something of these."""
    return {
        piece.file
        for kind, parameter, start, length in wanted
        for piece in index.get((kind, parameter), ())
        if piece.start < start + length and start < piece.start + piece.length
    }


def shares(manifest: Manifest, needs: Sequence[set[str]]) -> list[list[str]]:
    """Which files each rank verifies: every file one rank's, if possible one that needs it, and
    about equal bytes.

    needs: of each rank, the files that it reads.
    """
    found: list[list[str]] = [[] for _ in needs]
    given = [0] * len(needs)
    for name, stated in manifest.files.items():
        able = [rank for rank, need in enumerate(needs) if name in need] or range(len(needs))
        rank = min(able, key=given.__getitem__)
        found[rank].append(name)
        given[rank] += stated.bytes
    return found


class SavedState:
    """Of a verified checkpoint. A file is opened when something of it is read.

    index: of its files, where it is known. Raises Damaged as `read_index`.
    """

    def __init__(self, path: Path, manifest: Manifest, index: Index | None = None) -> None:
        self.manifest = manifest
        self._path = path
        self._index = read_index(manifest, read_here(path)) if index is None else index
        self._open: dict[str, BinaryIO] = {}

    def read(self, kind: str, parameter: str, start: int, length: int) -> Tensor:
        """(length,) float32, whatever the division into pieces was."""
        result = torch.empty(length)
        filled = 0
        for piece in self._index.get((kind, parameter), ()):
            first, last = max(start, piece.start), min(start + length, piece.start + piece.length)
            if first < last:
                result[first - start : last - start] = self._elements(
                    piece, first - piece.start, last - first
                )
                filled += last - first
        if filled != length:
            raise Damaged(f"{step_folder(self.manifest.step)}: {kind} of {parameter} is incomplete")
        return result

    def _elements(self, piece: Piece, first: int, count: int) -> Tensor:
        """(count,) of its dtype."""
        values = torch.empty(count, dtype=_DTYPES[piece.dtype])
        try:
            if piece.file not in self._open:
                if len(self._open) >= _MOST_OPEN:
                    self.close()
                self._open[piece.file] = (self._path / piece.file).open("rb")
            file = self._open[piece.file]
            file.seek(piece.offset + first * values.itemsize)
            read = file.readinto(values.view(torch.uint8).numpy()) if count else 0  # type: ignore[attr-defined]
        except OSError as error:
            raise Damaged(
                f"{self._path.name}: {piece.file} cannot be read: {error.strerror or error}"
            ) from error
        if read != values.nbytes:
            raise Damaged(f"{self._path.name}: {piece.file} is damaged: it ends early")
        return values

    def close(self) -> None:
        """What is read later opens its file again."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def buffers(self) -> dict[str, Tensor]:
        return {
            name: self._elements(piece, 0, piece.length).view(piece.shape)
            for (kind, name), pieces in self._index.items()
            if kind == BUFFER
            for piece in pieces
        }

    def network(self, kind: str) -> Network:
        """The exported network with the weights of a kind, "weights" or "ema". Raises ADDPError
        where it has none."""
        m = self.manifest
        if kind not in m.state_keys:
            raise ADDPError(
                f"{step_folder(m.step)} has no {kind}; it has {', '.join(m.state_keys)}"
            )
        own = {
            n.removeprefix(m.export_prefix): shape
            for n, shape in m.parameters.items()
            if n.startswith(m.export_prefix)
        }
        state = {
            n.removeprefix(m.export_prefix): value
            for n, value in self.buffers().items()
            if n.startswith(m.export_prefix)
        }
        network_kind, sizes = _stated_network(m)
        outlined = outline(network_kind, sizes, len(own), step_folder(m.step))
        expected = {
            name: list(value.shape) for name, value in outlined.items() if name not in state
        }
        if different := [n for n in {*expected, *own} if own.get(n) != expected.get(n)]:
            raise Damaged(
                f"{step_folder(m.step)}: {len(different)} parameters are not those of its own "
                f"network, first: {min(different)}"
            )
        for name, shape in own.items():
            state[name] = self.read(
                kind, m.export_prefix + name, 0, torch.Size(shape).numel()
            ).view(shape)
        self.close()
        network = build(network_kind, *sizes)
        network.load_state_dict(state)
        return network


def _stated_network(manifest: Manifest) -> tuple[str, Sizes]:
    """Kind and sizes of the network that a checkpoint exports. Raises Damaged."""
    run_identity = manifest.run_identity
    objective = run_identity.get("objective")
    entry = OBJECTIVES.get(objective) if isinstance(objective, str) else None
    if entry is None:
        raise Damaged(
            f"{step_folder(manifest.step)}: {MANIFEST} states no objective that there is: "
            f"{show(objective)}"
        )
    try:
        config = CONFIG[entry.network_kind].model_validate(run_identity.get("network"))
        return entry.network_kind, Sizes(
            config, Geometry.model_validate(run_identity.get("geometry"))
        )
    except ValidationError as error:
        raise Damaged(
            f"{step_folder(manifest.step)}: {MANIFEST} states sizes that cannot be: "
            f"{first_problem(error)}"
        ) from error
