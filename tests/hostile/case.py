"""What a hostile case is: a command, what stands in its folder, and how the command has to end."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OWN_CODES = (1, 2, 74, 77, 78, 79)  # of a user's mistake; see `addp --help`


@dataclass(frozen=True)
class Case:
    """name: what is odd, in words. command: arguments of `addp`, or a module's name and its
    arguments, by `module`.

    make: puts what is odd into the folder that the command runs in. says: what the one paragraph
    must hold, in any case of letters. code: the exit code, one or several. 0 is for commands that
    have to live with what is odd.
    """

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...] = ()
    code: int | tuple[int, ...] = 1
    make: Callable[[Path], None] = field(default=lambda folder: None)
    module: str = "cluster.cli"

    @property
    def codes(self) -> tuple[int, ...]:
        return (self.code,) if isinstance(self.code, int) else self.code


def text_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A `make` of one file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def gzip_bomb(head: bytes, mib: int) -> bytes:
    """`head` and so many MiB of zeros, packed at once: a block that refers to none before it may
    stand many times. Its checksum is wrong, which only a reader of all of it finds out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + first + mib * block + b"\x03\x00" + bytes(8)
