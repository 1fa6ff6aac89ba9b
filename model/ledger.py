"""Deviations from a reference, and the verdict on them, for `model.parity` and
`trainer.trajectory`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.attention import in_use
from model.errors import WeightsError


class Ledger:
    """The deviations so far. A quantity that is added several times keeps its largest deviation.

    tolerances: the largest deviation allowed, by group of quantities.
    """

    def __init__(self, tolerances: dict[str, float]) -> None:
        self.tolerances = tolerances
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, group: str, deviation: float) -> None:
        """Add a quantity's deviation."""
        tolerance, seen = self.tolerances[group], self.rows.get(name)
        if seen is None or not (math.isnan(seen["deviation"]) or deviation <= seen["deviation"]):
            self.rows[name] = {
                "deviation": deviation,
                "tolerance": tolerance,
                "holds": deviation <= tolerance,
            }

    def tensor(self, name: str, group: str, ours: Tensor, reference: Tensor) -> None:
        """Add the largest absolute difference over the reference's largest absolute value. Raises
        WeightsError if the shapes differ."""
        ours, reference = ours.detach().double().cpu()[: reference.shape[0]], reference.double()
        if ours.shape != reference.shape:
            raise WeightsError(
                f"{name} has the shape {tuple(ours.shape)}, but the parity folder's has "
                f"{tuple(reference.shape)}"
            )
        self.add(
            name,
            group,
            float((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-12)),
        )

    def ids(self, name: str, ours: Tensor, reference: Tensor) -> None:
        """Add the share of ids that differ."""
        self.add(name, "ids", float((ours.cpu().long() != reference.long()).double().mean()))

    def report(self, folder: Path, device: str, dtype: str, **more: Any) -> dict[str, Any]:
        """Return what a parity command prints, and `verdict` sums up."""
        return {
            "folder": folder.name,
            "device": device,
            "dtype": dtype,
            "torch": torch.__version__,
            "attention": ", ".join(in_use(torch.device(device).type)),
            **more,
            "holds": all(row["holds"] for row in self.rows.values()),
            "quantities": self.rows,
        }


def verdict(report: dict[str, Any]) -> str:
    """Sum up a `Ledger.report` in one line, which names the quantity that is furthest off its
    bound."""
    where = f"({report['dtype']}, {report['device']})"
    rows: dict[str, dict[str, Any]] = report["quantities"]
    if report["holds"]:
        return f"parity holds: {len(rows)} quantities within their bounds {where}"
    failing = {name: row for name, row in rows.items() if not row["holds"]}

    def excess(name: str) -> float:
        deviation, tolerance = failing[name]["deviation"], failing[name]["tolerance"]
        return float("inf") if math.isnan(deviation) or not tolerance else deviation / tolerance

    worst = max(failing, key=excess)
    row = failing[worst]
    return (
        f"parity FAILS: {len(failing)} of {len(rows)} quantities are off their bounds {where}; the "
        f"worst, {worst}, is {row['deviation']:.2g} off, allowed {row['tolerance']:.2g}"
    )
