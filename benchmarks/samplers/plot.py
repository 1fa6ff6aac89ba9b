"""The plot of the study: quality against network passes, a line for each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.samplers.settings import BASELINE
from benchmarks.samplers.summary import DISTANCE, grouped, mean

_PANELS = {
    DISTANCE: "Fréchet distance on EfficientNet features ↓",
    "efficientnet_precision": "precision ↑",
    "efficientnet_recall": "recall ↑",
}


def draw(rows: list[dict[str, Any]], title: str, to: Path) -> None:
    """Draw means over seeds with their standard errors, and FID where all rows have it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = _PANELS | ({"fid": "FID ↓"} if all("fid" in row for row in rows) else {})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels), 4.2), layout="constrained"
    )
    groups = grouped(rows)
    # Families with as many passes would hide each other: they stand side by side.
    families = sorted({family for family, _ in groups}, key=lambda f: (f != BASELINE, f))
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axis, (metric, label) in zip(axes, panels.items(), strict=True):
        for place, family in enumerate(families):
            points = {p: group for (f, p), group in sorted(groups.items()) if f == family}
            means = [mean([row[metric] for row in group]) for group in points.values()]
            shift = 1 + 0.012 * (place - len(families) / 2)
            axis.errorbar(
                [passes * shift for passes in points],
                [m.value for m in means],
                [m.error for m in means],  # none is drawn of one seed, where it is NaN
                label=family,
                marker="o",
                markersize=3,
                capsize=2,
                color="black" if family == BASELINE else colours[place % len(colours)],
                linewidth=2 if family == BASELINE else 1,
                zorder=3 if family == BASELINE else 2,
            )
        numbers = sorted({passes for _, passes in groups})
        ends = (0.85 * numbers[0], 1.18 * numbers[-1])
        axis.set(xscale="log", xlabel="network passes a sample", title=label, xlim=ends)
        axis.set_xticks(numbers, [str(n) for n in numbers])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, fontsize=8, loc="outside lower center")
    figure.suptitle(title, fontsize=9)
    figure.savefig(to, dpi=110)
