"""What the demo must reach and what it reached: printed at its end, and kept for its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_pipeline.storage import LocalStore
from trainer.evaluation.measures.intervals import ENDS, OVER
from trainer.evaluation.results import read_results
from trainer.run_folder import TARGETS, RunFolder, write_json

# What the encoder's features are measured by: name, benchmark, metric, what they have to be ahead
# of, and whether all of the lead's interval has to lie above 0. On 185 images an interval reaches 6
# points each way, and the leads of the probes are 2 to 7 points: one training does not always show
# them clearly. What else features are compared with is shown.
_FEATURES = (
    ("original found (top 1)", "retrieval", "top1", ("untrained", "pixels", "colour"), True),
    ("kNN (k = 20)", "knn", "top1_k20", ("untrained",), False),
    ("linear probe", "linear", "top1", ("untrained",), False),
)
_OTHERS = {"untrained": "untrained encoder", "pixels": "raw pixels", "colour": "mean colour"}
_ASKED = {True: "clearly above 0 ", False: "above 0 ", None: ""}
# Of dense transfer, if the demo went on to it: run, benchmark, metric, name, and the least value.
_DENSE = (
    ("segment", "segmentation", "miou", "segmenter, mean IoU of held-out scenes", 0.4),
    ("detect", "detection", "box_ap50", "detector, box AP50 of held-out scenes", 0.2),
)


class Target(NamedTuple):
    """A value and what it must reach, both as text; met is None where nothing is asked."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None


def collect_targets(out: Path) -> list[Target]:
    """Return the demo's targets, with what its runs reached by their evaluations and metric lines.

    out: the demo's folder.
    """
    tokenizer, predictor, addp = (
        _newest(out / name) for name in ("tokenizer", "predictor", "addp")
    )
    psnr, used = tokenizer("held-out", "psnr"), tokenizer("held-out", "codebook_used")
    losses = [float(row["loss"]) for row in RunFolder(out / "addp").read_metrics()]
    first, last = (sum(few) / len(few) for few in (losses[:3], losses[-3:]))
    targets = [
        Target("reconstruction PSNR", f"{psnr:.2f} dB", ">= 19 dB", psnr >= 19),
        Target("codebook in use", f"{used:.0%}", ">= 50 %", used >= 0.5),
        Target("unigram cross-entropy of the codes", f"{predictor('held-out', 'unigram'):.3f} nat"),
        _nats("predictor, masked tokens", predictor, 0.7),
        _nats("ADDP, masked tokens", addp, 0.5),
        Target(
            "ADDP training loss",
            f"{first:.3f} to {last:.3f}",
            "clearly falling",
            last < 0.95 * first,
        ),
    ]
    for name, benchmark, key, asked, clearly in _FEATURES:
        metrics = _metrics(out / "addp", benchmark)
        targets.append(Target(f"{name}, trained encoder", _share(metrics, key)))
        targets += [
            _ahead(metrics, key, name, other, clearly if other in asked else None)
            for other in _OTHERS
            if f"{other}_{key}" in metrics
        ]
    targets.append(Target("most common class", f"{addp('knn', 'majority_class'):.1%}"))
    if any(result.benchmark == "proxy" for result in read_results(LocalStore(out / "addp"))):
        distance = addp("proxy", "efficientnet_frechet_distance")
        name = "samples, Fréchet distance on EfficientNet features"
        targets.append(Target(name, f"{distance:.1f}"))
    for run, benchmark, metric, name, least in _DENSE:
        if any(result.benchmark == benchmark for result in read_results(LocalStore(out / run))):
            share = _newest(out / run)(benchmark, metric)
            targets.append(Target(name, f"{share:.1%}", f">= {least:.0%}", share >= least))
    return targets


def _nats(name: str, measured: Callable[[str, str], float], least: float) -> Target:
    """Return the target of a network that predicts masked tokens: how far it is under the unigram.

    name: of the target. least: what is asked for, in nat.
    """
    entropy, gain = measured("held-out", "cross_entropy"), measured("held-out", "gain")
    return Target(
        name,
        f"{entropy:.3f} nat ({gain:.3f} under the unigram)",
        f"{least} nat under it",
        gain >= least,
    )


def _share(metrics: dict[str, float], name: str) -> str:
    """Return a share in percent, with its interval."""
    return f"{100 * metrics[name]:.1f} %{_ends(metrics, name, '')}"


def _ahead(
    metrics: dict[str, float], key: str, name: str, other: str, clearly: bool | None
) -> Target:
    """Return how far the trained encoder is ahead of something else, in points. clearly: whether
    all of the interval has to lie above 0, or only the lead; None where nothing is asked."""
    difference = f"{key}{OVER}{other}"
    # Earlier versions counted no intervals.
    points = metrics.get(difference, metrics[key] - metrics[f"{other}_{key}"])
    low = metrics.get(difference + ENDS[0], points)
    return Target(
        f"{name}, ahead of {_OTHERS[other]}",
        f"{100 * points:+.1f} points{_ends(metrics, difference, '+')}",
        f"{_ASKED[clearly]}({_share(metrics, f'{other}_{key}')})",
        None if clearly is None else (low if clearly else points) > 0,
    )


def _ends(metrics: dict[str, float], name: str, sign: str) -> str:
    ends = [f"{100 * metrics[name + end]:{sign}.1f}" for end in ENDS if name + end in metrics]
    return f" [{', '.join(ends)}]" if ends else ""


def _metrics(run: Path, benchmark: str) -> dict[str, float]:
    """Return what a benchmark measured at the newest checkpoint that has it."""
    results = read_results(LocalStore(run))
    return dict(next(r for r in reversed(results) if r.benchmark == benchmark).numbers)


def _newest(run: Path) -> Callable[[str, str], float]:
    """Return a function that gives a benchmark's metric at the newest checkpoint that has it."""
    return lambda benchmark, metric: _metrics(run, benchmark)[metric]


def show_targets(out: Path, unmeasured: str | None = None) -> None:
    """Print the targets, and keep them with the ADDP run. unmeasured: why a quick demo has none."""
    targets = [Target("quick demo", unmeasured)] if unmeasured else collect_targets(out)
    for t in targets:
        verdict = {True: "met", False: "MISSED", None: ""}[t.met]
        # The verdict stands first: narrow terminals cut lines.
        print(f"{verdict:6s}  {t.name:52s} {t.value:36s} {t.target}".rstrip())
    write_json(RunFolder(out / "addp").evaluation / TARGETS, [t._asdict() for t in targets])
