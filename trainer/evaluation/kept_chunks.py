"""What was computed of chunks of images, kept on disk until the result is published, so that an
evaluator that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.images.images import BadImage
from data_pipeline.storage.output import writing
from model.files import write_atomically

log = logging.getLogger(__name__)
_CHUNKS_AHEAD = 1  # whole images take more memory than crops
T = TypeVar("T")


class KeptChunks:
    """A folder with a JSON document for each chunk that is computed.

    key: what the documents depend on. Documents of another key lie in another folder. Hosts need
    not share the folder: what a rank does not find there, it computes.
    """

    def __init__(self, folder: Path, key: object) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._folder = folder / digest[:16]

    def load(self, chunk: int) -> Any | None:
        """Return the document of a chunk; None where there is none that can be read."""
        try:
            return json.loads(self._file(chunk).read_bytes())
        except (OSError, ValueError):
            return None

    def keep(self, chunk: int, document: Any) -> None:
        """Write the document of a chunk, whole or not at all. Raises StorageError."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(chunk), json.dumps(document).encode(), durable=False)

    def remove(self) -> None:
        """Remove all documents of this key."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, chunk: int) -> Path:
        return self._folder / f"{chunk:06d}.json"


def read_ahead(
    chunks: Iterable[Sequence[int]], read: Callable[[int], T], threads: int
) -> Iterator[list[T]]:
    """Read images by their rows, chunk after chunk; threads read the next chunk meanwhile.

    An image that cannot be read (BadImage) is left out, with a warning.
    """
    remaining = iter(chunks)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="annotated")

    def begin() -> list[list[Future[T]]]:
        return [[pool.submit(read, row) for row in rows] for rows in islice(remaining, 1)]

    try:
        begun = deque(some for _ in range(1 + _CHUNKS_AHEAD) for some in begin())
        while begun:
            images = _readable(begun.popleft())
            begun.extend(begin())
            yield images
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _readable(reading: list[Future[T]]) -> list[T]:
    images = []
    for image in reading:
        try:
            images.append(image.result())
        except BadImage as error:
            log.warning("left out: %s", error)
    return images
