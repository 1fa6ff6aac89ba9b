"""Which checkpoints and results belong to the run as it is now.

After a rewind, or when a save is done again, another checkpoint comes to stand under the same step;
results of the one before it no longer count. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from data_pipeline.storage import ObjectMissing, Store
from trainer.checkpointing.format import manifest_name, step_of_manifest
from trainer.evaluation.results import Result
from trainer.resilience.state import rewinds_before, rewinds_on
from trainer.run_folder import checkpoint_fingerprint

Rewinds = list[dict[str, int]]


class _File(BaseModel):
    sha256: str


class _Saved(BaseModel):
    """What tells one checkpoint from another, in its manifest. skipped: data that it was trained
    without."""

    skipped: Rewinds
    files: dict[str, _File]


class Course:
    """The course of a run: its rewinds, and the checkpoints that stand now.

    read: returns an object of the run's folder or store by its name, and raises ObjectMissing where
    there is none. What else it raises, methods raise.
    """

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

    def is_current(self, result: Result) -> bool:
        """Whether a result measured the checkpoint that stands under its step; where that one has
        expired, whether the run went through the checkpoint that was measured."""
        left_out, passed = result.left_out, rewinds_before(self.rewinds, result.step)
        if left_out is not None and left_out != passed:
            return False
        saved = self._saved(result.step)
        if saved is None or saved.skipped != passed:
            # Results of earlier versions do not say what was left out.
            return left_out is not None or not passed
        hashes = {name: file.sha256 for name, file in saved.files.items()}
        return result.checkpoint == checkpoint_fingerprint(hashes)


class StoredCourse(Course):
    """The course of a run by its folder, or by the store that it uploads to, as it is now.

    marks: by step, what changes when another checkpoint comes to stand under it. Raises
    StorageError.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(rewinds_on(store), store.read)
        self.marks: dict[int, Any] = {
            step: (entry.size, entry.modified, self.rewinds)
            for entry in store.list("checkpoints/")
            if (step := step_of_manifest(entry.name)) is not None
        }
