"""What a detector is called with."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from tests.trainer.launching import SMALL
from tests.trainer.objectives.test_dense import options
from trainer.config.reading import load_config
from trainer.objectives.registry import make_objective


def test_instances_come_to_the_device_as_they_were_read(scenes: Path, tmp_path: Path) -> None:
    words = [*SMALL, *options("detect", scenes, None), "detector.jitter.size=40"]
    with closing(make_objective(load_config(None, [f"run={tmp_path}", *words]))) as made:
        batch = made.batch(0, 2, 3)
        inputs = made.inputs(batch, 0, torch.device("cpu"))
    assert inputs["images"].dtype == torch.float32 and inputs["images"].shape == (3, 3, 40, 40)
    assert np.array_equal((inputs["images"] * 255).round().byte().numpy(), batch.images)
    assert inputs["sizes"] == [found.size for found in batch.instances]
    assert sum(len(found.labels) for found in batch.instances) > 3
    for found, given in zip(batch.instances, inputs["instances"], strict=True):
        assert np.array_equal(given["masks"].numpy(), found.masks())
        assert np.array_equal(given["boxes"].numpy(), found.boxes)
        assert np.array_equal(given["labels"].numpy(), found.labels)
