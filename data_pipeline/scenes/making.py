"""Makes a set of scenes: claims the folder, composes what is missing, writes tables and sheet."""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from data_pipeline.progress import Progress
from data_pipeline.scenes import licence
from data_pipeline.scenes.ade20k import write_tables
from data_pipeline.scenes.chunks import SceneRecord, chunks_of, is_made, make_chunks, read_chunk
from data_pipeline.scenes.coco import write_instances
from data_pipeline.scenes.contact_sheet import SHEET_SCENES, draw_sheet
from data_pipeline.scenes.files import files_of
from data_pipeline.scenes.settings import SPLITS, SceneSettings, Split, check_versions, claim_folder
from data_pipeline.storage.output import check_output, writing
from model.documents import Record
from model.errors import ConfigError
from model.files import whole_file, write_atomically

SHEET = "contact-sheet.png"


class Made(Record):
    """What stands in a folder of scenes now. composed: scenes that were not there before, in so
    many seconds."""

    training: int
    validation: int
    emoji: int
    classes: int
    composed: int
    seconds: float
    scenes_per_second: float


def make_scenes(out: Path, settings: SceneSettings, processes: int) -> Made:
    """Make the scenes that are missing in `out`, and write all that lists them.

    Raises ConfigError where the folder holds something else or another process makes scenes in it;
    StorageError, DataError.
    """
    check_output(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        claim = claim_folder(out, settings)
        chunks = chunks_of(settings)
        missing = [chunk for chunk in chunks if not is_made(out, chunk)]
        composed = sum(chunk.stop - chunk.start for chunk in missing)
        total = settings.training + settings.validation
        began = time.perf_counter()
        if missing:
            check_versions(out, claim)
        with writing(out):
            _sweep(out)
        with Progress("composing", total, "scenes", done=total - composed) as progress:
            for count in make_chunks(out, settings, missing, processes):
                progress.advance(count)
        seconds = time.perf_counter() - began
        with writing(out):
            emoji = _write_lists(out, settings)
    return Made(
        training=settings.training,
        validation=settings.validation,
        emoji=emoji,
        classes=len(settings.classes),
        composed=composed,
        seconds=round(seconds, 2),
        scenes_per_second=round(composed / seconds, 1) if composed else 0.0,
    )


def _write_lists(out: Path, settings: SceneSettings) -> int:
    """Write what is made of all records, and return the number of emoji in the scenes."""

    def records(split: Split) -> Iterator[tuple[int, SceneRecord]]:
        for chunk in chunks_of(settings):
            if chunk.split == split:
                yield from enumerate(read_chunk(out, chunk).scenes, chunk.start)

    write_atomically(out / licence.LICENCE_FILE, licence.TEXT.encode())
    write_tables(out, settings, ((split, *found) for split in SPLITS for found in records(split)))
    for split in SPLITS:
        write_instances(out, settings, split, functools.partial(records, split))
    shown = [
        (out / files_of("training", index)["picture"], record)
        for index, record in islice(records("training"), SHEET_SCENES)
    ]
    with whole_file(out / SHEET) as partial:
        draw_sheet(shown, settings.classes).save(partial, "PNG")
    return sum(len(record.annotations) for split in SPLITS for _, record in records(split))


def _sweep(out: Path) -> None:
    """Remove what a killed process was writing. No other process writes here now."""
    for left in out.rglob("*.*.[0-9]*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from making scenes in the same folder, where its file system has locks.
    Raises ConfigError if one does."""
    with writing(out):
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process makes scenes in {out}; wait for it, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks; two processes would write the same bytes
        yield
    finally:
        os.close(handle)
