"""The signs of life of this node's ranks, as this node sees them.

A rank writes the same file to two places, each by a thread of its own:

    a folder in the memory of this machine    ours for one attempt; named by ADDP_HEARTBEATS
    RUN/heartbeats/                           for everybody else, on storage that all nodes share

What is newer counts: a full, slow or lost run folder makes no rank look silent. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from cluster.supervise.history import Name
from cluster.supervise.limits import BeatAges
from model.documents import Count, Record, read_file
from model.errors import DataError
from trainer.run_folder import NEAR_HEARTBEATS, RunFolder

_LOOK = 0.5  # seconds between two looks
_LARGEST = 64 << 10  # bytes of a sign
_MEMORY = Path("/dev/shm")


class Sign(Record):
    """What a rank writes, as far as it is used here."""

    model_config = Record.model_config | {"extra": "ignore"}

    time: float
    section: Name
    step: Count = 0
    host: str = ""
    pid: int = 0
    reason: str = ""


class Signs:
    """Reads the signs of some ranks, of one attempt. Made before the ranks start.

    Each place is read in a thread of its own: one that hangs does not hide the other.
    """

    def __init__(self, folder: RunFolder, name: str, ranks: Iterable[int]) -> None:
        """name: of this node, which no other node of the run has."""
        self._near = _near_folder(folder, name)
        files = {rank: folder.heartbeat(rank) for rank in ranks}
        near = {rank: self._near / file.name for rank, file in files.items()} if self._near else {}
        self._ages = BeatAges()
        self._places = [
            _Place(near, "near signs of life", ours=True),
            _Place(files, "signs of life", ours=False),
        ]

    @property
    def environment(self) -> Mapping[str, str]:
        """What the ranks have to find in their environment."""
        return {NEAR_HEARTBEATS: str(self._near)} if self._near else {}

    def latest(self, rank: int) -> Sign | None:
        """Return the last sign of a rank; None where it has given none in this attempt."""
        signs = [place.latest[rank] for place in self._places if rank in place.latest]
        return max(signs, key=lambda sign: sign.time, default=None)

    def age(self, rank: int, otherwise: float) -> float:
        """Return the age of a rank's last sign in seconds. otherwise: where it has given none."""
        sign = self.latest(rank)
        if sign is None:
            return otherwise
        return self._ages.age(rank, (sign.time, sign.section, sign.step), time.monotonic())

    def looked(self, rank: int) -> float:
        """Return when the last look for a rank's sign began, by the monotonic clock: there where it
        leaves its last word first; or, where it has left none there, in both places."""
        near, far = self._places
        return near.looked if rank in near.latest else min(near.looked, far.looked)

    def look_at_once(self) -> None:
        """Look now: a rank has ended, and may have left a word."""
        for place in self._places:
            place.wake.set()

    def close(self) -> None:
        """Look no more."""
        for place in self._places:
            place.closed = True
            place.wake.set()
        if self._near:
            shutil.rmtree(self._near, ignore_errors=True)


class _Place:
    """latest: by rank, of this attempt alone. looked: when the last look began."""

    def __init__(self, files: Mapping[int, Path], name: str, *, ours: bool) -> None:
        """ours: whether the files are in a folder that is made for this attempt."""
        self._files, self._ours = files, ours
        self.latest: dict[int, Sign] = {}
        self.looked = 0.0
        self.wake, self.closed = threading.Event(), False
        threading.Thread(target=self._look_again, daemon=True, name=name).start()

    def _look_again(self) -> None:
        # In the run folder, what the first look finds is of an earlier attempt. In our own nothing
        # is: a look that comes late may find the only word that a rank leaves.
        old = {} if self._ours else {rank: _read(file) for rank, file in self._files.items()}
        while not self.closed:
            begun = time.monotonic()
            for rank, file in self._files.items():
                sign = _read(file)
                if sign is not None and sign != old.get(rank) and sign.host == platform.node():
                    self.latest[rank] = sign
            self.looked = begun
            self.wake.wait(_LOOK)
            self.wake.clear()


def _read(file: Path) -> Sign | None:
    try:
        return Sign.model_validate_json(read_file(file, _LARGEST, DataError))
    except (FileNotFoundError, DataError, ValidationError):
        return None


def _near_folder(folder: RunFolder, name: str) -> Path | None:
    """Make an empty folder, where an earlier attempt of this node may have left one. None where it
    cannot be made."""
    whose = hashlib.sha256(f"{folder.path.absolute()}\0{name}".encode(errors="replace"))
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    path = parent / f"addp-heartbeats-{os.getuid()}-{whose.hexdigest()[:16]}"
    shutil.rmtree(path, ignore_errors=True)
    try:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:  # it is not ours
            return Path(tempfile.mkdtemp(prefix="addp-heartbeats-", dir=parent))
    except OSError:
        return None
    return path
