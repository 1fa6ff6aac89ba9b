"""What the figures of evaluations are called on a report, which way is better, and how far they can
be trusted."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

from trainer.evaluation.reporting.records import Result, RunRecord

PARTS = {  # in the order of the page
    "accuracy": "Classifier",
    "knn": "Nearest neighbours on frozen features",
    "linear": "Linear probe on frozen features",
    "fid": "Samples beside real images (Inception)",
    "proxy": "Samples beside real images (EfficientNet: not FID)",
    "held-out": "Held-out data",
    "samples": "Samples",
}
UP, DOWN = "↑", "↓"
_WORDS = {  # (words, which way is better)
    "top1": ("top-1 accuracy", UP),
    "top5": ("top-5 accuracy", UP),
    "majority_class": ("the most common class", ""),
    "cross_entropy": ("cross-entropy, nats a masked token", DOWN),
    "unigram": ("unigram cross-entropy of the codes, nats a token", ""),
    "gain": ("under the unigram, nats a token", UP),
    "psnr": ("PSNR of reconstructions, dB", UP),
    "codebook_used": ("codebook in use", UP),
    "fid": ("FID", DOWN),
    "inception_score": ("Inception score", UP),
    "kid": ("KID", DOWN),
    "precision": ("precision", UP),
    "recall": ("recall", UP),
    "efficientnet_frechet_distance": ("Fréchet distance on EfficientNet features", DOWN),
    "efficientnet_score": ("EfficientNet score", UP),
    "efficientnet_kernel_distance": ("kernel distance on EfficientNet features", DOWN),
    "efficientnet_precision": ("precision on EfficientNet features", UP),
    "efficientnet_recall": ("recall on EfficientNet features", UP),
    "images": ("images that were classified", ""),
    "reference_images": ("real images", ""),
    "samples": ("samples", ""),
}
_VARIANTS = {
    "": "",
    "untrained_": "untrained encoder",
    "pixels_": "raw pixels",
}  # what a figure is compared with
_SPACE = "\N{NO-BREAK SPACE}"
_NEIGHBOURS = re.compile(r"(top\d+)_k(\d+)")
_ACCURACY = re.compile(r"top\d+(_k\d+)?")
_SHARES = ("codebook_used", "majority_class")  # besides accuracies
_COUNTS = ("images", "reference_images", "samples")
_UNPLOTTED = ("majority_class", "unigram", *_COUNTS)


class Figure(NamedTuple):
    """Its name in results, taken apart. base: without its variant."""

    part: str
    base: str
    variant: str

    @property
    def words(self) -> str:
        if found := _NEIGHBOURS.fullmatch(self.base):
            return f"{_WORDS.get(found[1], (found[1], ''))[0]}, k{_SPACE}={_SPACE}{found[2]}"
        return _WORDS.get(self.base, (self.base.replace("_", " "), ""))[0]

    @property
    def better(self) -> str:
        """An arrow, or nothing."""
        return UP if _ACCURACY.fullmatch(self.base) else _WORDS.get(self.base, ("", ""))[1]

    @property
    def is_share(self) -> bool:
        return bool(_ACCURACY.fullmatch(self.base)) or self.base in _SHARES

    @property
    def is_plotted(self) -> bool:
        return self.base not in _UNPLOTTED

    @property
    def order(self) -> tuple[object, ...]:
        """Parts as the page has them, numbers in names as numbers, what is compared with after the
        figure itself."""
        parts = list(PARTS)
        digits = re.split(r"(\d+)", self.base)
        natural = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in digits]
        place = parts.index(self.part) if self.part in parts else len(parts)
        return (
            place,
            self.part,
            self.base in (*_UNPLOTTED,),
            natural,
            list(_VARIANTS).index(self.variant),
        )

    @property
    def title(self) -> str:
        """Of a plot."""
        part = re.split(r" \(| on | beside ", PARTS.get(self.part, self.part))[0]
        return f"{part}: {self.words}{', %' if self.is_share else ''}{_SPACE}{self.better}".rstrip()

    @property
    def label(self) -> str:
        """In a table below the name of its part."""
        variant = f", {_VARIANTS[self.variant]}" if self.variant else ""
        return f"{self.words}{variant}{_SPACE}{self.better}".rstrip()


class Value(NamedTuple):
    """error: one standard error, or None where it is not known. Shares are in percent."""

    step: int
    value: float
    error: float | None
    is_share: bool

    def __str__(self) -> str:
        if self.is_share:
            return (
                f"{self.value:.1f}"
                + (f" ± {self.error:.1f}" if self.error is not None else "")
                + " %"
            )
        if self.value.is_integer() and abs(self.value) < 1e9:
            return f"{self.value:,.0f}"
        return f"{self.value:.4g}" + (f" ± {self.error:.2g}" if self.error is not None else "")


def standard_error(share: float, count: float | None) -> float | None:
    """Binomial, of a share of `count` images; None where the count is not known."""
    if count is None or count < 1 or not 0 <= share <= 1:
        return None
    return math.sqrt(share * (1 - share) / count)


def figures_of(result: Result) -> list[tuple[Figure, Value]]:
    """The spread that a result states of a figure (NAME_std) is that figure's error and none of its
    own."""
    found = []
    for name, value in result.figures.items():
        if name.endswith("_std") and name.removesuffix("_std") in result.figures:
            continue
        variant = next((v for v in _VARIANTS if v and name.startswith(v)), "")
        figure = Figure(result.part, name.removeprefix(variant), variant)
        error = result.figures.get(f"{name}_std")
        if _ACCURACY.fullmatch(figure.base):
            error = standard_error(value, result.figures.get("images"))
        scale = 100 if figure.is_share else 1
        shown = Value(
            result.step,
            value * scale,
            None if error is None else abs(error) * scale,
            figure.is_share,
        )
        found.append((figure, shown))
    return found


class Series(NamedTuple):
    """A line of a plot. run: its index on the page."""

    label: str
    run: int
    variant: str
    ema: bool
    values: list[Value]


def series_of(runs: list[RunRecord]) -> list[tuple[Figure, list[Series]]]:
    """Figures that several checkpoints have; what one is compared with (an untrained encoder, raw
    pixels, an average of the weights, other runs) comes with it."""
    plots: dict[Figure, dict[tuple[int, str, bool], list[Value]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for index, run in enumerate(runs):
        for result in run.results:
            for figure, value in figures_of(result):
                if figure.is_plotted:
                    line = (index, figure.variant, result.weights == "ema")
                    plots[figure._replace(variant="")][line].append(value)
    found = []
    for figure in sorted(plots, key=lambda f: f.order):
        lines = [
            Series(_label(runs[index], variant, ema), index, variant, ema, values)
            for (index, variant, ema), values in plots[figure].items()
        ]
        if any(len(line.values) > 1 for line in lines):
            found.append((figure, lines))
    return found


def _label(run: RunRecord, variant: str, ema: bool) -> str:
    return ", ".join(filter(None, (run.name, "average" if ema else "", _VARIANTS[variant])))


class Table(NamedTuple):
    """columns: runs, an average of the weights apart. parts: (title, rows); a row: (figure, value
    of each column)."""

    columns: list[str]
    parts: list[tuple[str, list[tuple[str, list[Value | None]]]]]

    @property
    def rows(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def newest_figures(runs: list[RunRecord]) -> Table:
    """The newest value of each figure in each run: what compares runs."""
    newest: dict[Figure, dict[tuple[int, bool], Value]] = defaultdict(dict)
    for index, run in enumerate(runs):
        for result in run.results:  # by step, so that the newest stays
            for figure, value in figures_of(result):
                newest[figure][index, result.weights == "ema"] = value
    columns = sorted({column for row in newest.values() for column in row})
    parts: dict[str, list[tuple[str, list[Value | None]]]] = defaultdict(list)
    for figure in sorted(newest, key=lambda f: f.order):
        row = [newest[figure].get(column) for column in columns]
        parts[PARTS.get(figure.part, figure.part)].append((figure.label, row))
    return Table([_label(runs[index], "", ema) for index, ema in columns], list(parts.items()))
