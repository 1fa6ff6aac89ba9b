"""One self-contained HTML page about a demo: figures with their targets, loss curves, and what the networks make.

python -m trainer.report runs/demo --pictures PICTURES
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
import torch
import typer
import yaml
from PIL import Image
from torch import Tensor

from data_pipeline.picture_grid import picture_grid
from model.masking import DenoisingMasks, masked_count
from model.randomness import orders
from trainer.config import load_config
from trainer.evaluate import held_out_pictures
from trainer.objectives import load_frozen
from trainer.run_folder import RunFolder, replace_text

mpl.use("Agg")
from matplotlib import pyplot as plt

_SHOWN = 8
_RATIOS = (0.99, 0.9, 0.75, 0.6, 0.51)


class Figure(NamedTuple):
    """A figure beside what it must reach, both formatted; met is None where nothing is asked."""

    name: str
    value: str
    target: str
    met: bool | None


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def collect_figures(out: Path) -> list[Figure]:
    """The table of the demo: what was reached, what was asked, and whether it was missed."""
    tokenizer, predictor, addp = (
        read_json(RunFolder(out / name).evaluation / "held-out.json") for name in ("tokenizer", "predictor", "addp")
    )
    probe = read_json(RunFolder(out / "addp").evaluation / "probe.json")
    losses = [float(row["loss"]) for row in RunFolder(out / "addp").read_metrics()]
    first, last = float(np.mean(losses[:3])), float(np.mean(losses[-3:]))
    rows = [
        Figure("reconstruction PSNR", f"{tokenizer['psnr']:.2f} dB", ">= 19 dB", tokenizer["psnr"] >= 19),
        Figure("codebook in use", f"{tokenizer['codebook_used']:.0%}", ">= 50 %", tokenizer["codebook_used"] >= 0.5),
        Figure("unigram cross-entropy of the codes", f"{predictor['unigram']:.3f} nat", "", None),
        Figure(
            "predictor, masked tokens", _nats(predictor),
            "0.7 nat under the unigram", predictor["gain"] >= 0.7,
        ),
        Figure(
            "ADDP, masked tokens", _nats(addp),
            "0.5 nat under the unigram", addp["gain"] >= 0.5,
        ),
        Figure("ADDP training loss", f"{first:.3f} to {last:.3f}", "clearly falling", last < 0.95 * first),
    ]  # fmt: skip
    for kind in ("knn", "linear"):
        trained, untrained, pixels = (probe[name][kind] for name in ("trained", "untrained", "pixels"))
        name = {"knn": "kNN", "linear": "linear probe"}[kind]
        rows += [
            Figure(f"{name}, trained encoder", f"{trained:.1%}", f"> untrained ({untrained:.1%})", trained > untrained),
            Figure(f"{name}, beside raw pixels", f"{trained:.1%}", f"> pixels ({pixels:.1%})", trained > pixels),
        ]
    rows.append(Figure("most common class", f"{probe['majority_class']:.1%}", "", None))
    return rows


def _nats(figures: dict[str, float]) -> str:
    return f"{figures['cross_entropy']:.3f} nat ({figures['gain']:.3f} under the unigram)"


def _png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def loss_curves(out: Path) -> str:
    """One plot for each training, as PNG in base64."""
    names = ("tokenizer", "predictor", "addp")
    figure, axes = plt.subplots(1, len(names), figsize=(12, 3.2), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        rows = RunFolder(out / name).read_metrics()
        axis.plot([r["step"] for r in rows], [float(r["loss"]) for r in rows], color="#2a6fbb")
        axis.set(title=name, xlabel="step", ylabel="training loss", yscale="log" if name == "tokenizer" else "linear")
        axis.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, dpi=110)
    plt.close(figure)
    return base64.b64encode(data.getvalue()).decode()


@torch.no_grad()
def network_pictures(out: Path, pixels: Tensor) -> dict[str, str]:
    """Reconstructions, and x_t of a few noise levels, of held-out pictures (N, 3, H, W)."""
    frozen = load_frozen(load_config(RunFolder(out / "addp").path / "config.resolved.yaml"))
    ids = frozen.tokenizer.encode(pixels)
    reconstruction = frozen.tokenizer.decode(frozen.tokenizer.embed(ids))
    length = ids.shape[1]
    ranks = torch.from_numpy(orders(0, "report", 0, len(ids), length)).argsort(1)
    columns = [pixels]
    for ratio in _RATIOS:
        count = masked_count(length, ratio)
        mask = ranks < count
        columns.append(frozen(ids, DenoisingMasks(mask, mask, count)).x_t)
    noisy = torch.stack([*columns, reconstruction], 1).flatten(0, 1)
    pairs = torch.cat([pixels, reconstruction])
    return {
        "reconstructions": _png(picture_grid(pairs, columns=len(pixels), zoom=3)),
        "noisy": _png(picture_grid(noisy, columns=len(_RATIOS) + 2, zoom=3)),
    }


def write_report(out: Path, pictures: Path, figures: list[Figure]) -> Path:
    """Writes OUT/report.html and returns its path."""
    addp = RunFolder(out / "addp")
    config = load_config(addp.path / "config.resolved.yaml")
    pixels, _, _ = held_out_pictures(pictures, config.tokenizer.sizes.image_size, config.data.held_out)
    chosen = pixels[:: max(1, len(pixels) // _SHOWN)][:_SHOWN]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("trainer", "."), autoescape=True)
    page = environment.get_template("report.html").render(
        figures=figures,
        curves=loss_curves(out),
        samples=_png(Image.open(addp.samples / "grid.png")),
        sampler=read_json(addp.samples / "grid.json"),
        steps=_png(Image.open(addp.samples / "grid-steps.png")),
        ratios=_RATIOS,
        environment=read_json(addp.path / "environment.json"),
        configuration=yaml.safe_dump(yaml.safe_load((addp.path / "config.resolved.yaml").read_text()), sort_keys=False),
        **network_pictures(out, chosen),
    )
    replace_text(out / "report.html", page)
    return out / "report.html"


def main(
    out: Annotated[Path, typer.Argument(help="folder of a demo's runs")],
    pictures: Annotated[Path, typer.Option(help="folder of class folders")],
) -> None:
    """Write OUT/report.html, print the table of figures and the page's path."""
    figures = collect_figures(out)
    path = write_report(out, pictures, figures)
    for figure in figures:
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        print(f"{figure.name:36s} {figure.value:42s} {figure.target:28s} {verdict}")
    print(path.resolve())


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
