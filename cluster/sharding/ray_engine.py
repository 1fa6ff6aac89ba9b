"""Runs a sharding job on a Ray cluster, one shard a task. No other file imports Ray.

Ray runs one task at a time on each accelerator or CPU slot, and gives the tasks of a killed worker
or node to another. A worker process loads the tokenizer once and keeps it for the tasks that
follow. What is done is what the store lists, so a lost driver costs nothing but the shards in the
making.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from data_pipeline.sharding.receipts import ShardReceipt
from data_pipeline.sharding.tokenize import JobSettings, TokenizeJob
from model.errors import ADDPError, ConfigError

_LOST_WORKERS = 100  # times that one shard may lose its worker before the job gives up


@lru_cache(maxsize=1)
def _job(settings: JobSettings) -> TokenizeJob:
    """Open the job, once in each worker process."""
    import torch

    if settings.options.device == "cpu":
        torch.set_num_threads(settings.options.threads or 1)
    return settings.open()


def _make_shard(settings: JobSettings, shard: int) -> ShardReceipt | ADDPError:
    """Make and store a shard, and return its receipt. A user's mistake is returned, not raised: Ray
    would wrap it into a trace."""
    try:
        (receipt,) = _job(settings).run([shard])
    except ADDPError as error:
        return error
    return receipt


def run_on_ray(
    settings: JobSettings, shards: list[int], address: str | None, progress: Callable[[int], None]
) -> Iterator[ShardReceipt]:
    """Make and store these shards, and yield their receipts as they are done.

    address: of a running cluster, or "auto"; None starts one on this machine. progress: called with
    the number of images of each finished shard. Raises the first ADDPError of a shard, and
    ConfigError if Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("the ray engine needs Ray: pip install 'addp[ray]'") from error
    try:
        if address and ":" in address.removeprefix("ray://"):  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}"
        ) from error
    try:
        options = settings.options
        on_gpu = options.device == "cuda" or (
            options.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        )
        chosen = options.model_copy(update={"device": "cuda" if on_gpu else "cpu"})
        settings = settings._replace(options=chosen)
        slots: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": options.threads or 1}
        task = ray.remote(**slots, max_retries=_LOST_WORKERS)(_make_shard)
        waiting = [task.remote(settings, shard) for shard in shards]
        while waiting:
            done, waiting = ray.wait(waiting)
            for receipt in ray.get(done):
                if isinstance(receipt, ADDPError):
                    raise receipt
                progress(receipt.shard.rows + len(receipt.quarantined))
                yield receipt
    finally:
        ray.shutdown()
