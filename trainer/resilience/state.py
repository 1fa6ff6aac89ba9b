"""What a run knows of itself beside tensors: counters, statistics, true times, and which data it
leaves out.

The trainer's state is the same on all ranks, and a checkpoint carries it, so that a resumed run
decides as the undisturbed one does. Rewinds are kept in rewinds.json, since they count whichever
checkpoint a run goes on from.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from data_pipeline.storage import ObjectMissing, Store
from model.documents import Count, Record, first_problem, read_file
from model.errors import DataError
from trainer.run_folder import RunFolder, write_json

_LARGEST = 1 << 20  # bytes of rewinds.json


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value


# Earlier versions wrote null where it was not finite.
_Number = Annotated[float, BeforeValidator(_or_nan)]


class Row(BaseModel):
    """A step since the last metric line. loss: its mean over all ranks. norm: of the gradient.
    applied: whether the optimizer took the step."""

    loss: _Number
    norm: _Number
    applied: bool


class TrainerState(BaseModel):
    """What a checkpoint states of the run's course.

    rows: the steps since the last metric line.
    losses, norms: of applied steps, for the running statistics.
    nonfinite: how many steps were not applied; in_a_row: how many of them are the latest steps.
    suspects: the numbers of the latest steps, as far as they are out of line.
    train_seconds: time in steps that count. lost_seconds: time in which the run was down or
    starting, or made steps that were done again.
    starts: how often the run was started.
    seen: the wall clock when the state was saved, in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    rows: list[Row] = []
    losses: list[float] = []
    norms: list[float] = []
    nonfinite: int = 0
    in_a_row: int = 0
    suspects: list[int] = []
    train_seconds: float = 0.0
    lost_seconds: float = 0.0
    starts: int = 0
    seen: float = 0.0

    def started(self) -> None:
        """Count a start of the run from this state: all time since it was saved is lost. Where the
        clock went back, none is."""
        now = time.time()
        if self.seen:
            self.lost_seconds += max(0.0, now - self.seen)
        self.starts += 1
        self.seen = now

    def after_rewind(self, left: TrainerState) -> None:
        """Count a rewind to this state: what was trained between it and the state that the run
        leaves is lost. Starts and clock are the run's own, and not the checkpoint's."""
        lost = left.train_seconds - self.train_seconds
        self.lost_seconds, self.seen, self.starts = left.lost_seconds + lost, left.seen, left.starts


def read_rewinds(folder: RunFolder) -> list[dict[str, int]]:
    """The rewinds of a run: [{"step", "length"}]. From that step on, the data lie so many steps
    further. Raises DataError as `_rewinds`."""
    try:
        content = read_file(folder.rewinds, _LARGEST, DataError)
    except FileNotFoundError:
        return []
    return _rewinds(content, str(folder.rewinds))


def rewinds_on(store: Store) -> list[dict[str, int]]:
    """As `read_rewinds`, from the store that a run uploads to, or from a run folder as a store.
    Raises StorageError as well."""
    name = RunFolder("").rewinds.name
    try:
        content = store.read(name)
    except ObjectMissing:
        return []
    return _rewinds(content, f"{store.url}/{name}")


class _Rewind(Record):
    step: Count
    length: Count


def _rewinds(content: bytes, where: str) -> list[dict[str, int]]:
    """Parse rewinds.json. Raises DataError where it cannot be read: without the rewinds a run would
    take other data than it took."""
    try:
        return [entry.model_dump() for entry in TypeAdapter(list[_Rewind]).validate_json(content)]
    except ValidationError as error:
        raise DataError(
            f"{where} does not say which data were left out ({first_problem(error)}); restore it "
            "from a copy"
        ) from error


def add_rewind(folder: RunFolder, step: int, length: int) -> None:
    """Write a rewind down. It takes effect afterwards, so that a run that is killed in between does
    the same when it is started again."""
    write_json(folder.rewinds, [*read_rewinds(folder), {"step": step, "length": length}])


def data_step(rewinds: list[dict[str, int]], step: int) -> int:
    """The data step of a step: the number of the global batch that it takes."""
    return step + sum(entry["length"] for entry in rewinds if entry["step"] <= step)


def rewinds_before(rewinds: list[dict[str, int]], step: int) -> list[dict[str, int]]:
    """The rewinds that the first `step` steps of a run were made with. A checkpoint that states
    others was trained on other data."""
    return [entry for entry in rewinds if entry["step"] < step]
