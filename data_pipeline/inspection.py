"""What is in a token data set: counts, histograms, and a page that shows rows as pictures again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.dataset import Manifest
from data_pipeline.picture_grid import picture_grid
from data_pipeline.shards import shard_records
from data_pipeline.storage import Store
from model.errors import ConfigError
from model.vq import VQTokenizer
from model.weights import fingerprint, load_tokenizer

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_MOST_VIEWS = 10


class Inspection(NamedTuple):
    """classes (C,), codes (K,): counts in the rows that were read. rows: a few of them: (N, V, L). labels: (N,)."""

    shards_read: int
    rows_read: int
    classes: NDArray[np.int64]
    codes: NDArray[np.int64]
    rows: NDArray[np.uint16]
    labels: NDArray[np.int64]

    def summary(self, manifest: Manifest) -> dict[str, object]:
        share = self.codes[self.codes > 0] / self.codes.sum()
        return {
            "rows": manifest.rows, "shards": len(manifest.shards), "bytes": sum(s.bytes for s in manifest.shards),
            "views": manifest.views.views, "tokens": manifest.tokens, "codebook_size": manifest.codebook_size,
            "classes": len(manifest.classes), "quarantined": len(manifest.quarantined),
            "tokenizer": manifest.tokenizer, "precision": manifest.precision, "fingerprint": manifest.fingerprint,
            "bytes_per_row": manifest.stride,
            "overhead": manifest.stride / (2 * manifest.views.views * manifest.tokens),
            "read": {
                "shards": self.shards_read, "rows": self.rows_read, "codes_used": int((self.codes > 0).sum()),
                "code_perplexity": float(np.exp(-(share * np.log(share)).sum())),
                "smallest_class": int(self.classes.min()), "largest_class": int(self.classes.max()),
            },
        }  # fmt: skip


def inspect(store: Store, manifest: Manifest, shards: int, shown: int) -> Inspection:
    """Read `shards` shards (0: all), spread evenly, and keep `shown` rows, spread evenly over the first of them."""
    count = len(manifest.shards)
    chosen = range(count) if not shards else sorted({int(i) for i in np.linspace(0, count - 1, min(shards, count))})
    classes = np.zeros(len(manifest.classes), np.int64)
    codes = np.zeros(manifest.codebook_size, np.int64)
    kept: list[NDArray[np.uint16]] = []
    labels: list[NDArray[np.int64]] = []
    rows = 0
    for k in chosen:
        entry = manifest.shards[k]
        records = shard_records(np.frombuffer(store.read(entry.name), np.uint8), entry.rows, manifest.layout)
        found = records["label"].astype(np.int64)
        classes += np.bincount(found, minlength=len(classes))
        codes += np.bincount(records["tokens"].ravel(), minlength=len(codes))
        rows += entry.rows
        if not kept:
            at = np.unique(np.linspace(0, entry.rows - 1, min(shown, entry.rows)).astype(int))
            kept, labels = [records["tokens"][at]], [found[at]]
    return Inspection(len(chosen), rows, classes, codes, np.concatenate(kept), np.concatenate(labels))


def tokenizer_of(manifest: Manifest, path: Path) -> VQTokenizer:
    """The tokenizer at `path`. Raises ConfigError where the data set was not made with it."""
    network = load_tokenizer(path)
    if fingerprint(network) != manifest.tokenizer:
        raise ConfigError(f"{path} is not the tokenizer that the data set was made with ({manifest.tokenizer[:12]})")
    return network


@torch.no_grad()
def draw(inspection: Inspection, manifest: Manifest, tokenizer: VQTokenizer | None) -> Figure:
    """The page: rows decoded to pictures, a row's views side by side (with a tokenizer); histograms below."""
    figure = plt.figure(figsize=(11, 9 if tokenizer else 4), layout="constrained")
    below: Any = figure
    if tokenizer:
        parts: Any = figure.subfigures(2, 1, height_ratios=(5, 4))
        top, below = parts
        views = inspection.rows[:, :_MOST_VIEWS].astype(np.int64)
        ids = torch.from_numpy(views.reshape(-1, manifest.tokens))
        pictures = torch.cat([tokenizer.decode(tokenizer.embed(part)) for part in torch.split(ids, 16)])
        axis = top.subplots()
        side = pictures.shape[-1]
        axis.imshow(np.asarray(picture_grid(pictures, columns=views.shape[1])), interpolation="nearest")
        names = manifest.class_titles or manifest.classes
        axis.set_yticks(
            [2 + (side + 2) * i + side / 2 for i in range(len(views))],
            [names[label][:24] for label in inspection.labels],
        )
        axis.set_xticks([])
        axis.set_title(
            f"{len(views)} of {manifest.rows} rows, decoded; {views.shape[1]} of {manifest.views.views} views"
        )
    left, right = below.subplots(1, 2)
    for axis, counts, title in (
        (left, inspection.classes, f"pictures of each of {len(inspection.classes)} classes"),
        (right, np.sort(inspection.codes)[::-1], f"uses of each of {len(inspection.codes)} codes, most used first"),
    ):
        axis.bar(np.arange(len(counts)), counts, width=1.0, color="#2a6fbb")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"in {inspection.shards_read} of {len(manifest.shards)} shards", fontsize=9)
    return figure
