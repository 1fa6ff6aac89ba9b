"""The only file that touches Ray: a sharding job on a cluster, one shard a task.

Ray schedules: one task for each accelerator or CPU slot at a time, tasks of killed workers and
nodes again elsewhere. A worker process loads the tokenizer once and keeps it for the tasks that
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
    """This worker process's job."""
    import torch

    if settings.device == "cpu":
        torch.set_num_threads(settings.threads or 1)
    return settings.open()


def _make_shard(settings: JobSettings, shard: int) -> ShardReceipt | ADDPError:
    """A user's mistake is returned, not raised: Ray would wrap it into a trace."""
    try:
        (receipt,) = _job(settings).run([shard])
    except ADDPError as error:
        return error
    return receipt


def run_on_ray(
    settings: JobSettings, shards: list[int], address: str | None, progress: Callable[[int], None]
) -> Iterator[ShardReceipt]:
    """Make and store these shards; yield their receipts as they are done. Raises the first shard's
    ADDPError, and ConfigError where Ray is not installed or not to be reached."""
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
        on_gpu = settings.device == "cuda" or (
            settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        )
        settings = settings._replace(device="cuda" if on_gpu else "cpu")
        slots: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": settings.threads or 1}
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
