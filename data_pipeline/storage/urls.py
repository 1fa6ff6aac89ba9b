"""Tars that are known by their urls alone: what such urls may say, and what all stores of them
share.

Nothing can be listed there and nothing written. A tar is read by range where the server can do so;
else it is streamed from its first byte to its last.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

from data_pipeline.storage.base import (
    Entry,
    SourceChanged,
    StorageError,
    Truncated,
    Unreachable,
    local_error,
)

PIPE = "pipe:"
# Of web servers, and of what webdataset's gopen reads with the programs curl, gsutil and ais.
WEB = frozenset({"http", "https", "hf"})
STREAMED = frozenset({"gs", "htgs", "sftp", "ftps", "scp", "ais"})
_SCHEME = re.compile(r"([a-z]+)://")
_STREAMED_TAG = "xxh3"  # begins the version of a tar that was streamed


def is_url(source: str | Path) -> bool:
    """Whether a source is read through its urls alone: on a web server, by a command (`pipe:`), or
    by what else webdataset opens."""
    text = str(source)
    scheme = _SCHEME.match(text)
    return text.startswith(PIPE) or (scheme is not None and scheme[1] in WEB | STREAMED)


def check_url(url: str) -> None:
    """Raise StorageError for a url that names no host and path, or may hold a secret. The message
    repeats nothing of it but its scheme."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    user = host.rpartition("@")[0]
    if not host or not path:
        raise StorageError(
            f"{scheme}:// without a host and a path names no tar; write the whole url"
        )
    if "?" in rest or "#" in rest or ":" in user or (user and scheme in WEB):
        raise StorageError(
            f"a url of {scheme}:// takes no key and secret: no user:password@ before the host, and "
            "nothing behind a ? or #. Plans and logs would show them; give credentials by "
            "~/.netrc, and for hf:// by HF_TOKEN"
        )


class ReadOnlyStore:
    """A store that nothing can be written to, and whose objects are known by other means than a
    listing. url: for messages."""

    def __init__(self, url: str) -> None:
        self.url = url

    def folders(self) -> list[str]:
        return []

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(())

    def create(self, name: str, content: bytes | Path) -> bool:
        raise self._read_only()

    def replace(self, name: str, content: bytes) -> None:
        raise self._read_only()

    def remove(self, name: str) -> None:
        raise self._read_only()

    def sweep(self) -> None:
        raise self._read_only()

    def _read_only(self) -> StorageError:
        return StorageError(
            f"{self.url} can only be read; write to a folder or to s3://bucket/prefix"
        )


class UrlStore(ReadOnlyStore):
    """Tars at urls.

    url: what their urls begin with, for messages and for the plan. names: of the tars, in order.
    versions: what each tar was when it was first seen, as far as the source says. sizes: in bytes,
    of the tars that were copied.
    """

    attempts = 1  # at copying a tar

    def __init__(self, url: str, names: tuple[str, ...]) -> None:
        super().__init__(url)
        self.names = names
        self.versions: dict[str, str] = {}
        self.sizes: dict[str, int] = {}

    @property
    def ranged(self) -> bool:
        """Whether any bytes of a tar can be read without those before them. Raises StorageError."""
        raise NotImplementedError

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield all bytes of a tar, in order. Raises StorageError."""
        raise NotImplementedError

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        raise NotImplementedError

    def expect(self, versions: Mapping[str, str], *, here: bool) -> None:
        """Hold the tars to what they were at another time.

        here: whether that was at these urls; if not, only a digest of the bytes can be compared.
        Raises SourceChanged now or when a tar is read.
        """
        for name, version in versions.items():
            if version and (here or version.startswith(_STREAMED_TAG)):
                self._seen(name, version)

    def copied(self, name: str) -> BinaryIO:
        """Stream a tar into a file without a name, which goes away when it is closed, in the folder
        that TMPDIR names. Raises SourceChanged if its bytes are not those that were expected, and
        StorageError."""
        for failures in range(1, self.attempts + 1):
            try:
                return self._copied(name)
            except (Truncated, Unreachable):
                if failures == self.attempts:
                    raise
        raise AssertionError("unreachable")

    def _copied(self, name: str) -> BinaryIO:
        digest, file = xxhash.xxh3_128(), temporary_file()
        try:
            for piece in self.pieces(name):
                digest.update(piece)
                written(file, piece)
            self.sizes[name] = file.tell()
            self._seen(name, f"{_STREAMED_TAG} {digest.hexdigest()}")
        except BaseException:
            file.close()
            raise
        return file

    def _seen(self, name: str, version: str) -> None:
        """Compare a tar's version with that of before, if both are of one kind."""
        before = self.versions.setdefault(name, version)
        if before != version and before.partition(" ")[0] == version.partition(" ")[0]:
            raise SourceChanged(
                f"{self.url}/{name} is another tar than was listed ({before}, now {version}); put "
                "the old one back, or plan it anew in an empty folder"
            )


def temporary_file() -> BinaryIO:
    """Make a file without a name: a killed process leaves nothing behind. Raises StorageError."""
    try:
        return tempfile.TemporaryFile(prefix="addp-")
    except OSError as error:
        raise local_error(error, tempfile.gettempdir()) from error


def written(file: BinaryIO, content: bytes) -> None:
    """Append to a temporary file, so that every reader sees it. Raises StorageError."""
    try:
        file.write(content)
        file.flush()
    except OSError as error:
        where = f"a copy of streamed images in {tempfile.gettempdir()} (TMPDIR)"
        raise local_error(error, where) from error
