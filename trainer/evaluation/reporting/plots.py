"""The plots of a report: SVGs that take their colours from the page, legible in light and in dark.

Only numbers of a run go into them, never its text: titles and legends are the page's.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

from trainer.evaluation.measures.intervals import Interval

COLORS = 6  # --s0 .. --s5 of the page
_INK = "#010200"  # stands for the page's text color until the SVG is written
_STYLES: dict[str, Any] = {"solid": "-", "dashed": "--", "dotted": ":", "fine": (0, (1, 3))}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.3,
    "text.parse_math": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _INK,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
}


class Line(NamedTuple):
    """A line of a plot.

    steps, values: of the same length; a NaN among the values is a gap. bars: the ends of each
    value's bar, or None for none. style: solid, dashed, dotted or fine.
    """

    label: str
    color: int
    style: str
    steps: list[float]
    values: list[float]
    bars: list[Interval | None] | None = None


class Plot(NamedTuple):
    """A plot on the page. lines: what its legend names. note: its caption."""

    title: str
    svg: Markup
    lines: list[Line]
    note: str = ""


def plot(
    title: str,
    lines: list[Line],
    levels: list[Line] | None = None,
    *,
    points: bool = False,
    note: str = "",
) -> Plot:
    """Draw lines against the step. levels: lines of one value, drawn from side to side."""
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": title}):
        canvas = Canvas(figsize=(4.0, 2.6), layout="constrained")
        axis = canvas.add_subplot()
        steps = [step for line in lines for step in line.steps]
        apart = (max(steps) - min(steps)) / 150 if any(line.bars for line in lines) else 0.0
        for index, line in enumerate(lines):
            # Side by side, so that bars do not hide bars.
            beside = [step + apart * (index - (len(lines) - 1) / 2) for step in line.steps]
            drawn: dict[str, Any] = {
                "color": _stand_in(line.color),
                "linestyle": _STYLES[line.style],
                "linewidth": 1.5,
            }
            marks: dict[str, Any] = (
                {"marker": "o", "markersize": 4} if points or len(line.values) == 1 else {}
            )
            axis.errorbar(
                beside, line.values, _lengths(line), capsize=2.5, elinewidth=1, **drawn, **marks
            )
        for level in levels or []:
            axis.axhline(
                level.values[0],
                color=_stand_in(level.color),
                linestyle=_STYLES[level.style],
                linewidth=1.2,
            )
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
        axis.grid(alpha=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_alpha(0.5)
        data = io.StringIO()
        canvas.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    return Plot(title, _for_page(data.getvalue()), lines + (levels or []), note)


def _lengths(line: Line) -> list[list[float]] | None:
    """How far the bars reach below and above the values."""
    if line.bars is None:
        return None
    none = Interval(math.nan, math.nan)
    ends = [(value, bar or none) for value, bar in zip(line.values, line.bars, strict=True)]
    return [[value - bar.low for value, bar in ends], [bar.high - value for value, bar in ends]]


def _stand_in(color: int) -> str:
    return f"#0101{color % COLORS:02x}"


def _for_page(svg: str) -> Markup:
    """The SVG with the page's colours in place of those that stood for them, and without what only
    a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z]+[A-Za-z0-9.]*_\d+"', "", svg)  # of groups, which nothing refers to
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(
        r"#0101(0\d)", lambda match: f"var(--s{int(match[1])})", svg.replace(_INK, "currentColor")
    )
    return Markup(svg)  # of numbers alone
