"""What a configuration needs of each node: what it reads, where it writes, and that both are fast
enough for its checkpoints."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from data_pipeline.images.location import locate
from data_pipeline.storage import Store, is_remote, open_store
from data_pipeline.storage.output import writable
from data_pipeline.storage.urls import is_url
from data_pipeline.streaming.shard_cache import ShardCache
from model.errors import ADDPError
from trainer import costs
from trainer.config.schema import RunConfig
from trainer.objectives.registry import users_of
from trainer.preflight.finding import Finding, size
from trainer.preflight.node.disk import nearest_folder
from trainer.run_folder import RunFolder

_MIB = 2**20
_FILE_BYTES = 64 * _MIB  # written to find how fast a run folder is
_BLOCKS = 8  # MiB that are written before each is certain
_ENOUGH_SECONDS = 2.0
_OBJECT_BYTES = 8 * _MIB  # put to find how fast a store is
_MFU = 0.4  # share of a GPU's peak that training reaches, as `addp plan` assumes
_NETWORK_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "cifs", "ceph", "beegfs", "fuse.s3fs")
_MOUNTS = Path("/proc/self/mounts")


class Cadence(NamedTuple):
    """How often a run saves, and how much. size: bytes of one checkpoint, all ranks' files
    together. every: steps between two. seconds: between two; None where nobody knows."""

    size: float
    every: int
    seconds: float | None


def cadence(config: RunConfig, ranks: int) -> Cadence:
    """Return how often a run saves. Its own metrics tell, where it has run before; else a GPU's
    peak does. ranks: of the run."""
    step = _measured_step(config) or _modelled_step(config, ranks)
    every = config.checkpoint.every
    return Cadence(costs.checkpoint_bytes(config), every, None if step is None else step * every)


def _measured_step(config: RunConfig) -> float | None:
    rows = RunFolder(config.run).read_metrics()[-50:]
    seconds = [row["seconds_per_step"] for row in rows if row.get("seconds_per_step")]
    return statistics.median(seconds) if seconds else None


def _modelled_step(config: RunConfig, ranks: int) -> float | None:
    peak = costs.device_peak()
    if peak is None:
        return None
    operations = sum(costs.image_operations(config))
    return operations * config.batch.global_batch / (peak * _MFU * ranks)


def places(config: RunConfig) -> dict[str, str]:
    """Return what the run reads, or needs to be there, by the keys of the configuration."""
    data, upload = config.data, config.checkpoint.upload
    wanted = {"data.tokens": data.tokens, "data.images": data.images}
    if upload and is_remote(upload):  # a folder is made by the first upload
        wanted["checkpoint.upload"] = upload
    wanted |= {f"data.mixture {i}": place for i, place in enumerate(data.mixture)}
    for name in ("tokenizer", "predictor", "addp"):
        weights = getattr(config, name).weights
        wanted[f"{name}.weights"] = str(weights) if weights else None
    return {name: place for name, place in wanted.items() if place}


def check_places(config: RunConfig) -> Iterator[Finding]:
    """Check that this node sees what the run reads."""
    wanted = places(config)
    unseen = 0
    for key, place in wanted.items():
        try:
            _look(place)
        except (ADDPError, OSError) as error:
            unseen += 1
            found = f"{key} is not seen: {error}"
            todo = "put it where all nodes see it, or give this node the mount or the credentials"
            yield Finding("data and weights", "FAILED", found, todo)
    if not unseen:
        yield Finding("data and weights", "ok", f"seen: {', '.join(wanted) or 'none needed'}")


def _look(place: str) -> None:
    """Raise StorageError or OSError where there is nothing, or it cannot be seen. On object storage
    that needs credentials."""
    if is_url(place):
        next(iter(locate(place, commands=True).store.list()), None)
    elif is_remote(place):
        next(iter(open_store(place).list()), None)
    else:
        Path(place).stat()


def check_cache(config: RunConfig, mounts: Path = _MOUNTS) -> Iterator[Finding]:
    """Check the folder that keeps shards from a store. mounts: the system's list of them."""
    folder = config.data.cache
    if folder is None or config.objective not in users_of("data.cache"):
        return
    name = "data.cache"
    there = writable(folder)
    if (kind := file_system(there, mounts)) in _NETWORK_SYSTEMS:
        found = f"{folder} lies on a network file system ({kind})"
        yield Finding(name, "warning", found, "give a folder on a disk of each node")
    if there == folder:
        ShardCache(folder, 0, print).check()
    free, wanted = shutil.disk_usage(there).free, config.data.cache_gib * 2**30
    found = f"{folder} has {size(free)} free; the cache may take {size(wanted)}"
    if free < wanted:
        todo = "make room, or lower data.cache_gib; shards that do not fit stay in memory"
        yield Finding(name, "warning", found, todo)
    else:
        yield Finding(name, "ok", found)


def file_system(folder: Path, mounts: Path = _MOUNTS) -> str:
    """Return the kind of the file system that holds a folder; empty where that is not known."""
    kind, longest = "", -1
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        point = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        if point and folder.is_relative_to(point) and len(point) >= longest:
            kind, longest = fields[2], len(point)
    return kind


def measure_writing(folder: Path, count: int = _FILE_BYTES) -> float:
    """Return the bytes a second at which a file is written to a folder, until it is on the disk.
    Nothing is left behind. count: bytes; less on a slow disk. Raises OSError."""
    block, written = os.urandom(_MIB), 0
    began = time.perf_counter()
    with tempfile.TemporaryFile(prefix=".addp-check-", dir=folder) as file:
        while written < count and time.perf_counter() - began < _ENOUGH_SECONDS:
            for _ in range(_BLOCKS):
                file.write(block)
            written += _BLOCKS * len(block)
            file.flush()
            os.fsync(file.fileno())
        return written / (time.perf_counter() - began)


def check_saving(
    config: RunConfig, saves: Cadence, nodes: int, rate: float, grace: float
) -> Iterator[Finding]:
    """Check that this node can write its part of each checkpoint in time, and has the memory for a
    copy of it.

    rate: bytes a second, while all nodes wrote. grace: seconds that a run has to save when it is
    asked to stop.
    """
    name, part = "saving", saves.size / nodes
    seconds = part / rate
    found = (
        f"{config.run} takes {size(rate)}/s from this node: its part of a checkpoint, "
        f"{size(part)}, in {seconds:.1f} s"
    )
    if saves.seconds is not None and seconds > saves.seconds:
        found += f", and one is made every {saves.seconds:.1f} s"
        todo = "use faster storage, or raise checkpoint.every"
        yield Finding(name, "FAILED", found, todo, shared=True)
    elif seconds > grace:
        found += f", and a run that is asked to stop is killed after {grace:g} s"
        todo = f"start it with --grace above {seconds:.0f}, and warn it as long before"
        yield Finding(name, "FAILED", found, todo, shared=True)
    else:
        yield Finding(name, "ok", found)
    available = psutil.virtual_memory().available
    if config.checkpoint.asynchronous and part > available:
        found = f"a copy of its part of a checkpoint takes {size(part)} of memory"
        todo = f"set checkpoint.asynchronous=false: only {size(available)} are available"
        yield Finding("memory", "FAILED", found, todo)


def check_room(config: RunConfig, saves: Cadence) -> Iterator[Finding]:
    """Check that the checkpoints which are kept fit into the run folder."""
    folder = RunFolder(config.run)
    there = sum(f.stat().st_size for f in folder.checkpoints.glob("*/*") if f.is_file())
    free = shutil.disk_usage(nearest_folder(folder.path)).free
    kept = config.checkpoint.keep + 1  # the newest is written before an old one goes
    found = (
        f"{size(free)} free; a checkpoint takes {size(saves.size)}, {kept} of them "
        f"{size(kept * saves.size)}"
    )
    if free + there < kept * saves.size:
        todo = "make room, choose another folder, or lower checkpoint.keep"
        yield Finding("disk space", "FAILED", found, todo, shared=True)
    else:
        yield Finding("disk space", "ok", found)


def check_store(config: RunConfig, saves: Cadence, count: int = _OBJECT_BYTES) -> Iterator[Finding]:
    """Check that the store of `checkpoint.upload` takes each checkpoint before the next one is
    made. count: bytes of the object that is put, read and removed."""
    url, name = config.checkpoint.upload, "checkpoint.upload"
    if url is None:
        return
    try:
        put, read = _measure_place(url, count)
    except (ADDPError, OSError) as error:
        todo = "check the url, the credentials and the network of the node of rank 0"
        yield Finding(name, "FAILED", str(error), todo)
        return
    seconds = saves.size / put
    found = (
        f"{config.checkpoint.upload} takes {size(put)}/s and gives {size(read)}/s: a checkpoint, "
        f"{size(saves.size)}, in {seconds:.1f} s"
    )
    if saves.seconds is not None and seconds > saves.seconds:
        found += f", and one is made every {saves.seconds:.1f} s: some are not uploaded"
        todo = "raise checkpoint.every, or use a store that is nearer"
        yield Finding(name, "warning", found, todo, shared=True)
    elif saves.seconds is None:
        todo = f"make checkpoint.every ({saves.every}) take longer than that"
        yield Finding(name, "ok", found, todo)
    else:
        yield Finding(name, "ok", found)


def _measure_place(url: str, count: int) -> tuple[float, float]:
    """Measure a store, or a folder that need not exist yet, of which nothing is left behind."""
    if is_remote(url):
        return measure_store(open_store(url), count)
    with tempfile.TemporaryDirectory(prefix=".addp-check-", dir=writable(Path(url))) as scratch:
        return measure_store(open_store(scratch), count)


def measure_store(store: Store, count: int) -> tuple[float, float]:
    """Return the bytes a second at which a store takes an object, and gives it back. The object is
    removed. Raises StorageError."""
    name, content = f"addp-check-{uuid.uuid4().hex}", os.urandom(count)
    with tempfile.NamedTemporaryFile(prefix="addp-check-") as file:
        file.write(content)
        file.flush()
        began = time.perf_counter()
        store.create(name, Path(file.name))
    put = time.perf_counter() - began
    try:
        began = time.perf_counter()
        same = store.read(name) == content
        got = time.perf_counter() - began
    finally:
        store.remove(name)
    if not same:
        raise _damaged(store, name)
    return count / put, count / got


def _damaged(store: Store, name: str) -> ADDPError:
    return ADDPError(f"{store.url}/{name} does not hold what was just written")
