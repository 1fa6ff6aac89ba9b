"""Find out whether a run would start on these ranks: each says what it has and sees; none trains.

    addp train CONFIG --hostfile hosts --check

starts this module on each host, by the launcher that would start the run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from data_pipeline.storage import is_remote, open_store
from model.errors import ADDPError
from trainer.config.arguments import parse_rank
from trainer.config.changes import alike
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives, is_lost_rank, own_device
from trainer.distributed.meeting import join_ranks
from trainer.resilience.leaving import leave
from trainer.run_folder import EXIT_CONFIG

T = TypeVar("T")
_MEETING = 120.0  # seconds in which the ranks must meet, and then answer each other
_SAME = (  # on all hosts
    "python",
    "torch",
    "deepspeed",
    "numpy",
    "code",
    "configuration",
)
_ROOT = Path(__file__).parents[2]


def check(path: Path | None, overrides: list[str]) -> int:
    """Compare what all ranks have and see; all of them call this together.

    Rank 0 prints a table of the ranks, and what is wrong. Returns the exit code of the process.
    """
    join_ranks(_MEETING)
    collectives = Collectives(_MEETING)
    row = {"host": platform.node(), "python": platform.python_version(), "code": _code_digest()}
    row |= {name: _version(name) for name in ("torch", "deepspeed", "numpy")}
    problems: list[str] = []
    config = _tried("the configuration", lambda: load_config(path, overrides), problems)
    row["configuration"] = (
        hashlib.sha256(json.dumps(alike(config)).encode()).hexdigest()[:8]
        if config
        else "unreadable"
    )
    row["run folder"] = _shared_folder(config, collectives, problems)
    for name, place in _places(config).items() if config else ():
        is_seen = _tried(name, partial(_look, place), problems)
        row[name] = "seen" if is_seen else "NOT SEEN"
    row["collectives"] = _try_collectives(problems)
    rows = collectives.all_gather((row, problems))
    faults = wrong(rows)
    if collectives.rank == 0:
        _print_table(rows)
        for line in faults:
            print(f"- {line}", flush=True)
        if not faults:
            print(
                f"{collectives.world_size} ranks meet, are alike, and see what the run needs",
                flush=True,
            )
    collectives.barrier()  # a launcher ends the others as soon as one ends with an error
    return EXIT_CONFIG if faults else 0


def wrong(rows: list[tuple[dict[str, str], list[str]]]) -> list[str]:
    """Return all problems of all ranks, and what differs from rank 0.

    rows: for each rank, its row of the table by the columns' names, and its problems.
    """
    first = rows[0][0]
    lines = [f"{row['host']}: {problem}" for row, problems in rows for problem in problems]
    for row, _ in rows[1:]:
        lines += [
            f"{name} differs: {first[name]} on {first['host']}, {row[name]} on {row['host']}"
            for name in _SAME
            if row[name] != first[name]
        ]
    return lines


def _print_table(rows: list[tuple[dict[str, str], list[str]]]) -> None:
    table = Table()
    for name in rows[0][0]:
        table.add_column(name, overflow="fold")
    for row, _ in rows:
        table.add_row(*(row.get(name, "") for name in rows[0][0]))
    Console(width=None if os.isatty(1) else 160).print(table)


def _tried(what: str, work: Callable[[], T], problems: list[str]) -> T | None:
    """Return what `work` returns; None, and one more problem, where it fails."""
    try:
        return work()
    except (ADDPError, OSError) as error:
        problems.append(f"{what}: {error}")
        return None


def _code_digest() -> str:
    """A short digest of this program's files: machines may hold different checkouts."""
    digest = hashlib.sha256()
    for package in ("model", "data_pipeline", "trainer", "cluster"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _version(name: str) -> str:
    """Return the installed version of a package, or "missing"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _shared_folder(config: RunConfig | None, collectives: Collectives, problems: list[str]) -> str:
    """Find out whether all ranks see the same run folder: rank 0 leaves a file for the others."""
    first = collectives.all_gather(
        config.run / f"check-{uuid.uuid4().hex[:8]}" if config else None
    )[0]
    if first is None:
        return ""
    # Hosts may have the storage at different places.
    mark = config.run / first.name if config else first
    # What rank 0 is about to make, innermost first, so that it can be removed again.
    made = [folder for folder in (mark.parent, *mark.parent.parents) if not folder.exists()]
    if collectives.rank == 0:
        _tried("the run folder", lambda: _leave(mark), problems)
    collectives.barrier()
    seen = mark.exists()
    collectives.barrier()
    if collectives.rank == 0:
        mark.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
    elif not seen:
        problems.append(
            f"{mark.parent} is not the run folder that rank 0 sees; put it on storage that all "
            "hosts share"
        )
    return "shared" if seen else "NOT SHARED"


def _leave(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _places(config: RunConfig) -> dict[str, str]:
    """What the run reads, or needs to be there, by the keys of the configuration."""
    data, upload = config.data, config.checkpoint.upload
    wanted = {"data.tokens": data.tokens, "data.images": data.images}
    if upload and is_remote(upload):  # a folder is made by the first upload
        wanted["checkpoint.upload"] = upload
    wanted |= {f"data.mixture {i}": place for i, place in enumerate(data.mixture)}
    for name in ("tokenizer", "predictor", "addp"):
        weights = getattr(config, name).weights
        wanted[f"{name}.weights"] = str(weights) if weights else None
    return {name: place for name, place in wanted.items() if place}


def _look(place: str) -> bool:
    """Return True where something is there; on object storage, credentials are needed to see it.

    Raises StorageError or OSError where there is nothing, or it cannot be seen.
    """
    if is_remote(place):
        next(iter(open_store(place).list()), None)
    else:
        Path(place).stat()
    return True


def _try_collectives(problems: list[str]) -> str:
    """Sum a number over all ranks by the library that training would use, and name the library."""
    device = own_device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        group = dist.new_group(backend=backend)
        value = torch.ones(1, device=device)
        dist.all_reduce(value, group=group)
    except RuntimeError as error:
        if is_lost_rank(error) and backend == "gloo":
            raise
        problems.append(f"{backend}: {str(error).splitlines()[0]}")
        return f"{backend} FAILS"
    return backend


def main(arguments: list[str] | None = None) -> int:
    """Run the check on this rank. Returns the exit code."""
    code = check(*parse_rank(__doc__ or "", arguments))
    dist.destroy_process_group()
    return code


if __name__ == "__main__":
    leave(main)
