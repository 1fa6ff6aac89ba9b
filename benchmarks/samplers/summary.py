"""What the rows of the study say: means over seeds, and the best family by number of passes."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from benchmarks.samplers.settings import BASELINE

DISTANCE = "efficientnet_frechet_distance"


class Mean(NamedTuple):
    """Of some seeds. error: the standard error of the mean; NaN of one seed."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g}" + ("" if math.isnan(self.error) else f" ± {self.error:.2g}")


def mean(values: list[float]) -> Mean:
    """Return the mean and its standard error."""
    n = len(values)
    return Mean(
        statistics.mean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    )


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the rows of each family and number of passes."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["passes"]), []).append(row)
    return groups


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each family and number of passes."""
    names = (DISTANCE, "efficientnet_precision", "efficientnet_recall")
    names += ("fid",) if any("fid" in row for row in rows) else ()
    lines = [
        "| family | passes | distance | precision | recall |"
        + (" FID |" if "fid" in names else ""),
        "|---" * (2 + len(names)) + "|",
    ]
    for (family, passes), group in sorted(grouped(rows).items(), key=lambda item: item[0][::-1]):
        cells = [str(mean([row[name] for row in group])) for name in names if name in group[0]]
        lines.append(f"| {family} | {passes} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_of_each(rows: list[dict[str, Any]]) -> str:
    """Say which family has the lowest distance with each number of passes, and how far it is from
    the published sampler, seed by seed."""
    groups, lines = grouped(rows), []
    for passes in sorted({passes for _, passes in groups}):
        baseline = {row["seed"]: row[DISTANCE] for row in groups.get((BASELINE, passes), [])}
        here = {family: group for (family, p), group in groups.items() if p == passes}
        best = min(here, key=lambda family: statistics.mean(r[DISTANCE] for r in here[family]))
        changes = [
            100 * (row[DISTANCE] / baseline[row["seed"]] - 1)
            for row in here[best]
            if row["seed"] in baseline
        ]
        beside = f", {mean(changes)} % beside {BASELINE}" if changes else ""
        lines.append(f"{passes} passes: {best}{beside}")
    return "\n".join(lines)
