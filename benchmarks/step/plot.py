"""The bar chart: where the time of a step goes, variant by variant."""

from __future__ import annotations

from pathlib import Path

_COLOURS = {
    "tokenisation": "#8c564b",
    "predictor": "#1f77b4",
    "VQ decoder": "#ff7f0e",
    "encoder": "#2ca02c",
    "decoder": "#98df8a",
    "loss": "#bcbd22",
    "backward": "#9467bd",
    "optimizer": "#d62728",
    "rest": "#c7c7c7",
}


def draw(
    seconds: dict[str, dict[str, float]], micro: dict[str, int], clock: str, title: str, to: Path
) -> None:
    """Draw a bar for each variant. seconds: of each variant, the seconds of each stage by that
    clock; micro: the images of its step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(seconds)[::-1]
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.6 * len(names)), layout="constrained")
    ends = dict.fromkeys(names, 0.0)
    for stage, colour in _COLOURS.items():
        widths = [seconds[n].get(stage, 0.0) / micro[n] * 1e3 for n in names]
        axis.barh(names, widths, 0.62, left=list(ends.values()), color=colour, label=stage)
        ends = {n: end + w for (n, end), w in zip(ends.items(), widths, strict=True)}
    for row, end in enumerate(ends.values()):
        axis.annotate(f" {1e3 / end:.3g} images/s", (end, row), va="center", fontsize=8)
    xlabel = "CPU ms an image" if clock == "cpu" else "ms an image"
    axis.set(xlabel=xlabel, title=title, xlim=(0, 1.2 * max(ends.values())))
    figure.legend(ncols=len(_COLOURS), fontsize=7, loc="outside lower center")
    figure.savefig(to, dpi=110)
