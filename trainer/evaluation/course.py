"""Which checkpoints and results are of the run as it is now: behind a rewind, or where a save was
done again, another checkpoint comes to stand under the same step. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from data_pipeline.storage import ObjectMissing, Store
from trainer.checkpointing.format import manifest_name, step_of_manifest
from trainer.resilience.state import rewinds_before, rewinds_on
from trainer.run_folder import checkpoint_fingerprint

Rewinds = list[dict[str, int]]


class _File(BaseModel):
    sha256: str


class _Saved(BaseModel):
    """Of a manifest, what tells one checkpoint from another. skipped: data that it was trained
    without."""

    skipped: Rewinds
    files: dict[str, _File]


class Course:
    """rewinds: of the run. read: an object of the run's folder or store by its name, ObjectMissing
    where there is none; what else it raises, methods raise."""

    def __init__(self, rewinds: Rewinds, read: Callable[[str], bytes]) -> None:
        self.rewinds = rewinds

        @cache
        def saved(step: int) -> _Saved | None:
            try:
                return _Saved.model_validate_json(read(manifest_name(step)))
            except (ObjectMissing, ValidationError):
                return None

        self._saved = saved

    def is_left(self, step: int) -> bool:
        """Whether the checkpoint of that step was trained on data that a rewind leaves out."""
        saved = self._saved(step)
        return saved is not None and saved.skipped != rewinds_before(self.rewinds, step)

    def is_current(self, result: Mapping[str, Any]) -> bool:
        """Whether a result ("step", "checkpoint": a fingerprint, "left_out": data that it was
        trained without) measured the checkpoint of its step; of one that has expired, whether the
        run went through it."""
        step, left_out, passed = (
            result["step"],
            result.get("left_out"),
            rewinds_before(self.rewinds, result["step"]),
        )
        if left_out is not None and left_out != passed:
            return False
        saved = self._saved(step)
        if saved is None or saved.skipped != passed:
            return (
                left_out is not None or not passed
            )  # results of earlier versions do not say what was left out
        return bool(
            result.get("checkpoint")
            == checkpoint_fingerprint({n: file.sha256 for n, file in saved.files.items()})
        )


class StoredCourse(Course):
    """Of a run folder or of the store that a run uploads to, as it is now. marks: what changes when
    a checkpoint comes to stand in the place of another, by step. Raises StorageError."""

    def __init__(self, store: Store) -> None:
        super().__init__(rewinds_on(store), store.read)
        self.marks: dict[int, Any] = {
            step: (entry.size, entry.modified, self.rewinds)
            for entry in store.list("checkpoints/")
            if (step := step_of_manifest(entry.name)) is not None
        }
