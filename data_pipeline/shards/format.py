"""Token shards: plain ustar files in which every sample takes the same number of bytes, so that a
tar is also an array.

Row r begins at byte r * stride and holds two members (docs/data-format.md):

    KEY.tokens.npy   uint16 (V, L), NumPy format 1.0
    KEY.cls          the label, ten ASCII digits

KEY is the image's index in the plan's list of images, twelve digits. All lengths are fixed by V and
L, and tar pads each member to 512 bytes, so all rows have the same shape:

    byte of the row
    0               tar header of KEY.tokens.npy; it begins with its name, and so with KEY
    512             NumPy header
    tokens_offset   V * L tokens, 2 bytes each, little endian; view v begins at + v * 2 L
                    zeros up to a multiple of 512
    ...             tar header of KEY.cls
    label_offset    ten digits
                    zeros up to a multiple of 512
    stride          the next row; after the last one, 1,024 zeros end the tar

Any WebDataset reader reads a shard as usual. `ShardReader` maps it as a strided array of records:
no tar parsing, no index file, any row in O(1).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from data_pipeline.shards import MOST_ROWS
from model.documents import Count, Positive
from model.errors import DataError

_BLOCK = 512
_MOST_ROW = 2**26  # bytes of a row
KEY_DIGITS, LABEL_DIGITS = 12, 10
END = bytes(2 * _BLOCK)  # two zero blocks close a tar

# Types of fields: rows of a shard, tokens of a view, codes of a codebook (a token is a uint16).
Rows = Annotated[Count, Field(le=MOST_ROWS)]
TokenCount = Annotated[Positive, Field(le=2**16)]
CodeCount = Annotated[Positive, Field(le=2**16)]


class Sample(NamedTuple):
    """A row. image: its index in the plan's list. label: its class. tokens: uint16 (V, L)."""

    image: int
    label: int
    tokens: NDArray[np.uint16]


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


@dataclass(frozen=True)
class Layout:
    """The byte layout of a row, which V (views) and L (tokens) determine."""

    views: int
    tokens: int

    def check(self) -> None:
        """Raise ValueError for rows that are too large for a shard."""
        if self.stride > _MOST_ROW:
            raise ValueError(
                f"{self.views} views of {self.tokens} tokens take more than {_MOST_ROW >> 20} MiB "
                "a row"
            )

    @property
    def npy_header(self) -> bytes:
        """Return the header of NumPy's format 1.0. It is written here so that no NumPy release can
        change a shard's bytes."""
        shape = f"({self.views}, {self.tokens})"
        description = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode()
        fill = -(10 + len(description) + 1) % 64
        body = description + b" " * fill + b"\n"
        return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body

    @property
    def npy_bytes(self) -> int:
        """Return the size of KEY.tokens.npy."""
        return len(self.npy_header) + 2 * self.views * self.tokens

    @property
    def tokens_offset(self) -> int:
        """Return the byte of a row at which its tokens begin."""
        return _BLOCK + len(self.npy_header)

    @property
    def label_offset(self) -> int:
        """Return the byte of a row at which its label begins."""
        return _BLOCK + _padded(self.npy_bytes) + _BLOCK

    @property
    def stride(self) -> int:
        """Return the number of bytes of a row."""
        return self.label_offset + _padded(LABEL_DIGITS)

    def fields(self) -> dict[str, dict[str, object]]:
        """Return the layout as it stands in `dataset.json`."""
        return {
            "index": {"offset": 0, "bytes": KEY_DIGITS, "encoding": "ascii digits"},
            "tokens": {
                "offset": self.tokens_offset,
                "dtype": "<u2",
                "shape": [self.views, self.tokens],
            },
            "label": {
                "offset": self.label_offset,
                "bytes": LABEL_DIGITS,
                "encoding": "ascii digits",
            },
        }

    def row(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's row. The tar headers fix mode, owner and time, so equal
        samples give equal bytes."""
        assert sample.tokens.shape == (self.views, self.tokens) and sample.tokens.dtype == np.uint16
        key = f"{sample.image:0{KEY_DIGITS}d}"
        npy = self.npy_header + sample.tokens.astype("<u2", copy=False).tobytes()
        label = f"{sample.label:0{LABEL_DIGITS}d}".encode()
        data = b"".join(
            _member(name, body)
            for name, body in ((f"{key}.tokens.npy", npy), (f"{key}.cls", label))
        )
        assert len(data) == self.stride
        return data


def _member(name: str, body: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # mtime 0, mode 0644, no owner
    info.size = len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(_padded(len(body)), b"\0")


def write_shard(file: BytesIO, samples: Iterable[Sample], layout: Layout) -> int:
    """Write a whole shard, and return its number of rows."""
    rows = 0
    for sample in samples:
        file.write(layout.row(sample))
        rows += 1
    file.write(END)
    return rows


def image_indices(content: bytes, layout: Layout) -> list[int]:
    """Return each row's image, as its index in the plan's list, from a whole shard. Raises
    ValueError if the bytes are no such shard."""
    rows, rest = divmod(len(content) - len(END), layout.stride)
    if rows < 1 or rest or not content.endswith(END):
        raise ValueError(f"{len(content)} bytes are no whole number of rows")
    return [int(content[r * layout.stride : r * layout.stride + KEY_DIGITS]) for r in range(rows)]


def shard_records(raw: NDArray[np.uint8], rows: int, layout: Layout) -> NDArray[np.void]:
    """View a shard's bytes, without a copy, as an array (rows,) of records with the fields index,
    tokens (V, L) and label."""
    fields = {
        "names": ["index", "tokens", "label"],
        "formats": [f"S{KEY_DIGITS}", ("<u2", (layout.views, layout.tokens)), f"S{LABEL_DIGITS}"],
        "offsets": [0, layout.tokens_offset, layout.label_offset],
        "itemsize": layout.stride,
    }
    return np.ndarray((rows,), np.dtype(fields), raw[: rows * layout.stride])  # type: ignore[call-overload]


def numbers(texts: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return keys or labels (N,) as numbers. Raises ValueError if one is not made of ASCII digits
    alone."""
    digits = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1) - np.uint8(ord("0"))
    if digits.size and digits.max() > 9:
        raise ValueError("has keys or labels that are not made of digits")
    return digits.astype(np.int64) @ 10 ** np.arange(digits.shape[1] - 1, -1, -1, dtype=np.int64)


def row_problem(records: NDArray[np.void], codes: int, classes: int) -> str | None:
    """Say what is wrong with a shard's rows, whose bytes may match their checksum; None if nothing
    is. codes, classes: how many there are."""
    try:
        numbers(records["index"])
        labels = numbers(records["label"])
    except ValueError as error:
        return str(error)
    if len(labels) and int(records["tokens"].max()) >= codes:
        return f"has tokens beyond the codebook ({codes})"
    if len(labels) and int(labels.max()) >= classes:
        return f"has labels beyond the {classes} classes"
    return None


class ShardReader:
    """A shard as arrays that read straight from its bytes: an open file, which stays open and is
    mapped, or memory.

    raw: all bytes, uint8. records: the rows, as `shard_records` gives them. Raises DataError if the
    shard has not `rows` rows of this layout, or not the xxh3 `checksum`, if one is given.
    """

    def __init__(
        self, source: BinaryIO | bytes, rows: int, layout: Layout, checksum: str | None = None
    ) -> None:
        self._source = source  # keeps a lock on the file
        expected = rows * layout.stride + len(END)
        size = len(source) if isinstance(source, bytes) else os.fstat(source.fileno()).st_size
        name = "in memory" if isinstance(source, bytes) else source.name
        if size != expected:
            raise DataError(
                f"the shard {name} has {size} bytes instead of {expected}; fetch or make it again"
            )
        self.raw: NDArray[np.uint8] = (
            np.frombuffer(source, np.uint8)
            if isinstance(source, bytes)
            else np.memmap(source, np.uint8, "r")
        )
        if (
            checksum is not None
            and (actual := xxhash.xxh3_128_hexdigest(self.raw.data)) != checksum
        ):
            raise DataError(
                f"the shard {name} is damaged (xxh3 {actual} instead of {checksum}); fetch or make "
                "it again"
            )
        self.records = shard_records(self.raw, rows, layout)
