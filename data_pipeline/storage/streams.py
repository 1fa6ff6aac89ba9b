"""Tars that webdataset's `gopen` opens, as streams: the output of a command (`pipe:`), and what
curl, gsutil and ais fetch. No other file imports webdataset."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping

from data_pipeline.storage.base import CHUNK, Entry, StorageError, StreamFailed, TooShort
from data_pipeline.storage.urls import PIPE, UrlStore


class StreamStore(UrlStore):
    """Tars that can only be read from their first byte on. opened: what gopen opens, by the names
    of the tars. No message repeats a command."""

    def __init__(self, url: str, opened: Mapping[str, str]) -> None:
        super().__init__(url, tuple(opened))
        self._opened = opened

    @property
    def ranged(self) -> bool:
        return False

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the names. What is behind them is not known before it was read, nor its size."""
        yield from (Entry(name, 0, 0.0) for name in self.names if name.startswith(prefix))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self.copied(name) as file:
            file.seek(start)
            content = file.read() if length is None else file.read(length)
        if length is not None and len(content) != length:
            raise TooShort(f"{self.url}/{name} ends before byte {start + length}", content)
        return content

    def pieces(self, name: str) -> Iterator[bytes]:
        from webdataset.gopen import gopen  # takes a second to import

        try:
            with gopen(self._opened[name]) as stream:
                while piece := stream.read(CHUNK):
                    yield piece
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise self._failed(name, error) from None  # its text has the command

    def _failed(self, name: str, error: Exception) -> StorageError:
        what, status = f"{self.url}/{name}", re.search(r": exit (-?\d+) ", str(error))
        program = "the command" if self.url == PIPE else "the program that fetches it"
        if status:
            return StreamFailed(
                f"{what}: {program} ended with status {status[1]}; what it said stands above. Run "
                "it by hand until it writes the whole tar and ends with 0"
            )
        if isinstance(error, FileNotFoundError):
            return StreamFailed(
                f"{what}: {error.filename} is not installed, which webdataset reads such urls with"
            )
        if isinstance(error, ValueError):
            return StreamFailed(
                f"{what}: webdataset refuses to open it; WDS_SECURE=1 forbids commands"
            )
        return StreamFailed(f"{what}: {program} failed ({type(error).__name__})")
