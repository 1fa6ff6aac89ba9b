"""Checks that a job's source is there. While it is not, a missing image says nothing about the
image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.streamed import only_streams
from data_pipeline.sharding.plan import Plan, shard_images
from data_pipeline.storage import (
    AccessDenied,
    BucketMissing,
    LocalStore,
    ObjectMissing,
    StorageError,
    Store,
    TooShort,
)

T = TypeVar("T")
_SHARDS, _IMAGES = 4, 4  # the sample: so many shards, and so many images of each


class SourceCheck:
    """Looks for a job's source. out: the store of the plan. source: the store that the plan's
    images lie in now."""

    def __init__(self, out: Store, plan: Plan, source: Store) -> None:
        self._out, self._plan, self._source = out, plan, source

    def before_work(self) -> None:
        """Raise StorageError if no image of a sample is there. (`images_store` has looked for the
        tars.) What can only be streamed is looked at when a shard needs it."""
        if not only_streams(self._source):
            self._find_source(None)

    def confirm(self, absent: Sequence[ImageEntry], present: ImageEntry | None) -> None:
        """Confirm that these images are gone, and not their source, which is looked for before and
        after them.

        present: an image that could be read beside them, if any. Raises StorageError if the source
        is not there, or one of the images is there after all.
        """
        if not absent:
            return
        if tar := next((p.object for p in absent if p.offset is not None), None):
            raise self._tar_is_gone(tar)
        self._find_source(present)
        for image in absent:
            if self._is_there(image.object, 0):
                raise StorageError(
                    f"{self._source.url}/{image.object} could not be read and now it can: the "
                    "source comes and goes; run it again once it stays"
                )
        self._find_source(present)

    @cached_property
    def _witnesses(self) -> list[ImageEntry]:
        """Return the images of a sample that are there. Raises StorageError if none is."""
        sample = [
            image
            for shard in _spread(range(self._plan.shards), _SHARDS)
            for _, image in _spread(shard_images(self._out, self._plan, shard), _IMAGES)
        ]
        witnesses = [p for p in sample if self._is_there(p.object, p.offset or 0)]
        if not witnesses:
            raise StorageError(
                f"{self._source.url}: none of the {len(sample)} planned images that were looked "
                f"for can be read, as {sample[0].id}: {self._state()}; mount the source, or say "
                "with --source where it lies now"
            )
        return witnesses

    def _find_source(self, present: ImageEntry | None) -> None:
        known = ([present] if present else []) + self._witnesses
        if not any(self._is_there(p.object, p.offset or 0) for p in known):
            raise StorageError(
                f"{self._source.url} went away while it was read ({known[0].id} was there): "
                f"{self._state()}; mount it, and run it again"
            )

    def _is_there(self, name: str, offset: int) -> bool:
        try:
            self._source.read(name, offset, 1)
        except TooShort:
            return True
        except ObjectMissing:
            return False
        except AccessDenied:
            if not isinstance(self._source, LocalStore):
                raise
            return False
        return True

    def _state(self) -> str:
        try:
            first = next(iter(self._source.list()), None)
        except BucketMissing:
            return "there is no such folder"
        except AccessDenied:
            return "it may not be listed"
        return (
            "it is empty, as a mount point is"
            if first is None
            else f"it holds other files, as {first.name}"
        )

    def _tar_is_gone(self, tar: str) -> StorageError:
        return StorageError(
            f"{self._source.url}/{tar}: this tar of planned images cannot be read; mount the "
            "source, or say with --source where it lies now"
        )


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the items, evenly spread."""
    return (
        [items[i * len(items) // count] for i in range(count)]
        if len(items) > count
        else list(items)
    )
