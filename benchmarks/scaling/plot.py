"""The two curves: images/s, and the share of perfect scaling, over the number of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.scaling.model import Prediction

_DASHES = ["-", "-", "-", "-", "--"]  # curves that nearly coincide both show


class Curve(NamedTuple):
    """One setting. images: of a step."""

    label: str
    images: int
    predictions: list[Prediction]

    def efficiencies(self) -> list[float]:
        alone = self.predictions[0]
        return [p.efficiency(alone) for p in self.predictions]

    def last_above(self, least: float) -> int:
        """Return the largest number of GPUs up to which the efficiency is at least that."""
        last = 1
        for prediction, share in zip(self.predictions, self.efficiencies(), strict=True):
            if share < least:
                break
            last = prediction.gpus
        return last


def draw(curves: list[Curve], least: float, title: str, to: Path) -> None:
    """Draw all curves, with a dot where the efficiency is last above the least one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rate, share) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for number, curve in enumerate(curves):
        gpus = [p.gpus for p in curve.predictions]
        last = curve.last_above(least)
        dot = {"marker": "o", "markevery": [gpus.index(last)]}
        style = {"color": f"C{number}", "ls": _DASHES[number % len(_DASHES)], **dot}
        rates = [curve.images / p.seconds for p in curve.predictions]
        rate.plot(gpus, rates, label=f"{curve.label}: to {last}", **style)
        share.plot(gpus, curve.efficiencies(), **style)
    first = curves[0].predictions[0]
    ends = [1, curves[0].predictions[-1].gpus]
    alone = curves[0].images / first.seconds
    rate.plot(ends, [alone * n for n in ends], ":", color="grey", label="perfect")
    share.axhline(least, ls=":", color="grey")
    ticks = [p.gpus for p in curves[0].predictions]
    for axis in (rate, share):
        axis.set(xscale="log", xlabel="GPUs", xticks=ticks, xticklabels=ticks)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    rate.set(yscale="log", ylabel="images/s")
    share.set(ylabel="share of perfect scaling", ylim=(0, 1.05))
    entries = rate.get_legend_handles_labels()
    heading = f"at least {100 * least:g} % of perfect scaling, up to so many GPUs (dots)"
    figure.legend(*entries, title=heading, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(title)
    figure.savefig(to, dpi=110)
