"""What each attention backend does on a device: a table for people, and a report for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from model.attention import Probe, table
from model.device import usable_device
from model.precision import keep_float32


def attention_report(device: str) -> dict[str, Any]:
    """Try every backend in every dtype on a device, and return for each whether it works, why not,
    and its deviations. Raises ConfigError for a device that cannot be used."""
    usable_device(device)
    keep_float32()

    def row(probe: Probe) -> dict[str, Any]:
        return {
            "works": probe.works,
            "reason": probe.reason,
            "forward": probe.forward,
            "backward": probe.backward,
        }

    dtypes = {
        dtype: {p.backend: row(p) for p in probes}
        for dtype, probes in table(torch.device(device)).items()
    }
    return {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dtypes": dtypes,
    }


def attention_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield a report's lines for people. The first backend of a dtype that works computes."""
    yield f"attention on {report['device']}, torch {report['torch']}: the first that works computes"
    yield f"{'dtype':10}{'backend':10}{'works':7}{'forward':>9}{'backward':>10}  reason"
    for dtype, rows in report["dtypes"].items():
        for backend, row in rows.items():
            forward, backward = (
                "-" if v is None else f"{v:.1e}" for v in (row["forward"], row["backward"])
            )
            works = "yes" if row["works"] else "no"
            line = f"{dtype:10}{backend:10}{works:7}{forward:>9}{backward:>10}  {row['reason']}"
            yield line.rstrip()
