"""Makes scenes in chunks, each by one process. A record, written last, tells what a chunk holds; a
chunk whose record or files are not whole is made again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from data_pipeline.scenes.annotations import Annotation, annotate
from data_pipeline.scenes.composition import compose
from data_pipeline.scenes.files import is_whole, write_scene
from data_pipeline.scenes.settings import SPLITS, SceneSettings, Split
from data_pipeline.storage.output import writing
from model.documents import MIB, Record, parse_record, read_file
from model.errors import DataError
from model.files import write_atomically

_SCENES = 16  # of a chunk: a second's work at most sizes


class SceneRecord(Record):
    """What was written for a scene. checksums: of its files, by kind."""

    background: str
    annotations: list[Annotation]
    checksums: dict[str, str]


class ChunkRecord(Record):
    """The scenes of a chunk, in their order."""

    scenes: list[SceneRecord]


class Chunk(NamedTuple):
    """The scenes `start` to `stop` - 1 of a split."""

    split: Split
    start: int
    stop: int

    @property
    def record(self) -> str:
        return f"records/{self.split}-{self.start // _SCENES:05d}.json"


def chunks_of(settings: SceneSettings) -> list[Chunk]:
    """Return the chunks of a set, in the order of their scenes."""
    return [
        Chunk(split, start, min(start + _SCENES, settings.scenes(split)))
        for split in SPLITS
        for start in range(0, settings.scenes(split), _SCENES)
    ]


def read_chunk(out: Path, chunk: Chunk) -> ChunkRecord:
    """Return the record of a chunk. Raises DataError if it is missing or damaged."""
    where = out / chunk.record
    try:
        content = read_file(where, 64 * MIB, DataError)
    except FileNotFoundError:
        raise DataError(f"{where} is missing; make the scenes again") from None
    record = parse_record(ChunkRecord, content, str(where), DataError)
    if len(record.scenes) != chunk.stop - chunk.start:
        raise DataError(f"{where} is not of {chunk.stop - chunk.start} scenes; remove it")
    return record


def is_made(out: Path, chunk: Chunk) -> bool:
    """Whether all files of a chunk are there, and hold what was written."""
    try:
        record = read_chunk(out, chunk)
    except DataError:
        return False
    return all(
        is_whole(out, chunk.split, chunk.start + i, scene.checksums)
        for i, scene in enumerate(record.scenes)
    )


def make_chunk(out: Path, settings: SceneSettings, chunk: Chunk) -> int:
    """Compose the scenes of a chunk, write their files and then its record, and return how many
    scenes it has. Raises OSError, DataError."""
    scenes = []
    for index in range(chunk.start, chunk.stop):
        scene = compose(settings, chunk.split, index)
        checksums = write_scene(out, chunk.split, index, scene, settings.classes)
        scenes.append(
            SceneRecord(
                background=scene.background, annotations=annotate(scene), checksums=checksums
            )
        )
    content = ChunkRecord(scenes=scenes).model_dump_json().encode() + b"\n"
    write_atomically(out / chunk.record, content)
    return len(scenes)


def make_chunks(
    out: Path, settings: SceneSettings, chunks: list[Chunk], processes: int
) -> Iterator[int]:
    """Make chunks, and yield the number of scenes of each when it is done.

    Raises DataError if a process dies, or the packages that hold the emoji are not installed;
    StorageError if a file cannot be written.
    """
    processes = min(processes, len(chunks))
    with writing(out):
        if processes < 2:
            for chunk in chunks:
                yield make_chunk(out, settings, chunk)
        else:
            yield from _on_processes(out, settings, chunks, processes)


def _on_processes(
    out: Path, settings: SceneSettings, chunks: list[Chunk], processes: int
) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    pool = ProcessPoolExecutor(processes, context, _end_with_parent)
    try:
        for future in as_completed(pool.submit(make_chunk, out, settings, c) for c in chunks):
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that made scenes in {out} was killed, perhaps for want of memory; the same "
            "command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when the one that started it does, which may be killed: it would wait
    for work without end. A Ctrl-C reaches both, and is for the other one to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
