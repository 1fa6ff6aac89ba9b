"""How ZeRO sends gradients and weights: DeepSpeed's settings for it, and the memory that its
buffers take.

What DeepSpeed 0.19.8 does with them, by its source:

stage 0     After the backward pass, gradients are copied into a bucket, averaged, and copied back;
            bucket after bucket.
stage 1, 2  The backward pass copies gradients into a bucket, in the order in which they come. What
            a full bucket holds is averaged over the ranks, and this rank's share is copied out of
            it. With `overlap_comm` there are two: one is sent while the other is filled.
stage 3     The same with one bucket. Weights are gathered for the module that needs them, and the
            next `stage3_prefetch_bucket_size` of them ahead of their use.
bf16 in 1   An optimizer of its own, with whole float32 gradients, which are sent after the backward
            pass. It reads none of these settings.
"""

from __future__ import annotations

from typing import Any

from trainer.engine.precision import Mode

# Elements that are sent together. 200 MB keep a network busy, and the last bucket, which nothing
# hides, is a tenth of DeepSpeed's default of 5e8.
BUCKET = 50_000_000


def zero_settings(stage: int, world_size: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` for a network of so many trained parameters.

    These settings are left at their defaults:

    - `contiguous_gradients` (true). Without buckets that are kept, DeepSpeed waits for the device
      before it sends each of them. Stage 1 pays for them with one more copy of each gradient.
    - `round_robin_gradients` (false). It deals out parameters, and not runs of elements, to ranks
      that copy gradients to host memory. Without offload there is nothing to gain.
    - `allgather_bucket_size`. It is not read: each group of parameters is gathered at once.
    - `stage3_max_reuse_distance` and `stage3_max_live_parameters` (1e9). A network below a billion
      parameters stays gathered from its forward to its backward pass, and is gathered once a step.
    """
    settings: dict[str, Any] = {
        "stage": stage,
        # DeepSpeed allocates a bucket in full, also where the whole network is smaller.
        "reduce_bucket_size": min(BUCKET, max(parameters, 1)),
    }
    if stage in (1, 2):
        # At the end of an overlapped backward pass the host waits for the device. One rank has
        # nothing to gain for that.
        settings["overlap_comm"] = world_size > 1
        # DeepSpeed reduces by an all-reduce in either case. With `reduce_scatter`, it first copies
        # the bucket together, and then back.
        settings["reduce_scatter"] = False
    elif stage == 3:
        settings["overlap_comm"] = True
        settings["stage3_prefetch_bucket_size"] = BUCKET
    return settings


def bucket_bytes(stage: int, world_size: int, parameters: int, mode: Mode) -> int:
    """Bytes of the buckets that one rank fills in a step."""
    if stage == 1 and mode.weights == "bfloat16":
        return 0
    if stage == 0:
        return 4 * min(BUCKET, parameters) if world_size > 1 else 0  # sent in float32
    settings = zero_settings(stage, world_size, parameters)
    buckets = 2 if stage < 3 and settings["overlap_comm"] else 1
    # Stages 2 and 3 send what the backward pass makes, stage 1 what it adds up in float32.
    width = 4 if stage == 1 else mode.width
    size: int = settings["reduce_bucket_size"]
    return buckets * size * width
