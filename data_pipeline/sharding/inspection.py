"""What is in a token data set: counts, histograms, and a page that shows rows as images again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.images.image_grid import GAP, image_grid
from data_pipeline.shards.format import numbers
from data_pipeline.shards.manifest import Manifest
from data_pipeline.storage import Store
from data_pipeline.streaming.fetch import Fetcher
from data_pipeline.streaming.shard_cache import Shards
from model.errors import ConfigError
from model.vq import VQTokenizer
from model.weights import fingerprint, load_tokenizer

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_MOST_VIEWS = 10
_CLASSES = 10  # the largest, shown one by one


class Inspection(NamedTuple):
    """What was read of a data set.

    classes (C,), codes (K,): how often each occurs in the rows that were read. rows: a few of these
    rows, uint16 (N, V, L). labels: their labels, (N,).
    """

    shards_read: int
    rows_read: int
    classes: NDArray[np.int64]
    codes: NDArray[np.int64]
    rows: NDArray[np.uint16]
    labels: NDArray[np.int64]

    def summary(self, manifest: Manifest) -> dict[str, object]:
        """Return the numbers that `addp tokenize inspect --json` prints."""
        share = self.codes[self.codes > 0] / self.codes.sum()
        return {
            "rows": manifest.rows,
            "shards": len(manifest.shards),
            "bytes": sum(s.bytes for s in manifest.shards),
            "views": manifest.views.views,
            "tokens": manifest.tokens,
            "codebook_size": manifest.codebook_size,
            "classes": len(manifest.classes),
            "quarantined": len(manifest.quarantined),
            "tokenizer": manifest.tokenizer,
            "precision": manifest.precision,
            "fingerprint": manifest.fingerprint,
            "bytes_per_row": manifest.stride,
            "overhead": manifest.stride / (2 * manifest.views.views * manifest.tokens),
            "read": {
                "shards": self.shards_read,
                "rows": self.rows_read,
                "codes_used": int((self.codes > 0).sum()),
                "code_perplexity": _perplexity(share),
                "smallest_class": int(self.classes.min()),
                "largest_class": int(self.classes.max()),
            },
        }

    def table(self, manifest: Manifest) -> list[tuple[str, str, str]]:
        """Return lines (what, its number, shares and remarks) for people. Classes and codes are
        counted in the rows that were read."""
        rows, bad, views = manifest.rows, len(manifest.quarantined), manifest.views.views
        size, overhead = (
            sum(s.bytes for s in manifest.shards) / 2**20,
            manifest.stride / (2 * views * manifest.tokens),
        )
        used = self.codes[self.codes > 0] / self.codes.sum()
        names = manifest.class_titles or manifest.classes
        largest = np.argsort(-self.classes, kind="stable")[:_CLASSES]
        more = len(names) - len(largest)
        return [
            ("images", f"{rows:,}", f"{_share(rows, rows + bad)} of {rows + bad:,} planned"),
            ("quarantined", f"{bad:,}", _share(bad, rows + bad)),
            (
                "shards",
                f"{len(manifest.shards):,}",
                f"{self.shards_read:,} read, with {self.rows_read:,} images",
            ),
            (
                "MiB",
                f"{size:,.1f}",
                f"{manifest.stride:,} bytes an image, {overhead:.2f} times its tokens",
            ),
            ("views", f"{views:,}", f"an image, of {manifest.tokens:,} tokens each"),
            (
                "codes",
                f"{len(self.codes):,}",
                f"{len(used):,} used ({_share(len(used), len(self.codes))}), perplexity "
                f"{_perplexity(used):,.1f}",
            ),
            (
                "classes",
                f"{len(names):,}",
                f"{self.classes.min():,} to {self.classes.max():,} images each",
            ),
            *(
                (f"  {names[i]}", f"{self.classes[i]:,}", _share(self.classes[i], self.rows_read))
                for i in largest
            ),
            *([("  ...", f"{more:,}", "classes more")] if more else []),
            ("tokenizer", "", f"{manifest.tokenizer[:16]}, {manifest.precision}"),
            ("fingerprint", "", manifest.fingerprint[:16]),
        ]


def _share(part: int | np.int64, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _perplexity(shares: NDArray[np.float64]) -> float:
    """Return the perplexity of shares above 0 that sum to 1."""
    return float(np.exp(-(shares * np.log(shares)).sum()))


def inspect(store: Store, manifest: Manifest, shards: int, shown: int) -> Inspection:
    """Read `shards` shards (0: all), spread evenly, and keep `shown` rows, spread evenly over the
    first of them. Raises ShardDamaged for a shard that a run would refuse, and StorageError."""
    count = len(manifest.shards)
    chosen = (
        range(count)
        if not shards
        else sorted({int(i) for i in np.linspace(0, count - 1, min(shards, count))})
    )
    classes = np.zeros(len(manifest.classes), np.int64)
    codes = np.zeros(manifest.codebook_size, np.int64)
    kept: list[NDArray[np.uint16]] = []
    labels: list[NDArray[np.int64]] = []
    rows = 0
    with closing(Fetcher(retry_seconds=0.0, incident=lambda record: None)) as fetcher:
        reader = Shards(store, manifest, fingerprint="", cache=None, fetcher=fetcher, keep=1)
        for k in chosen:
            records = reader.open(k).records
            shard_labels = numbers(records["label"])
            classes += np.bincount(shard_labels, minlength=len(classes))
            codes += np.bincount(records["tokens"].ravel(), minlength=len(codes))
            rows += len(records)
            if not kept:
                at = np.unique(
                    np.linspace(0, len(records) - 1, min(shown, len(records))).astype(int)
                )
                kept, labels = [records["tokens"][at]], [shard_labels[at]]
    return Inspection(
        len(chosen), rows, classes, codes, np.concatenate(kept), np.concatenate(labels)
    )


def tokenizer_of(manifest: Manifest, path: Path) -> VQTokenizer:
    """Load the tokenizer at `path`. Raises ConfigError if the data set was not made with it."""
    network = load_tokenizer(path)
    if fingerprint(network) != manifest.tokenizer:
        raise ConfigError(
            f"{path} is not the tokenizer that the data set was made with "
            f"({manifest.tokenizer[:12]})"
        )
    return network


@torch.no_grad()
def draw(inspection: Inspection, manifest: Manifest, tokenizer: VQTokenizer | None) -> Figure:
    """Draw the page: with a tokenizer, rows decoded to images, a row's views side by side; below
    them the histograms."""
    figure = plt.figure(figsize=(11, 9 if tokenizer else 4), layout="constrained")
    below: Any = figure
    if tokenizer:
        halves: Any = figure.subfigures(2, 1, height_ratios=(5, 4))
        top, below = halves
        views = inspection.rows[:, :_MOST_VIEWS].astype(np.int64)
        ids = torch.from_numpy(views.reshape(-1, manifest.tokens))
        images = torch.cat(
            [tokenizer.decode(tokenizer.embed(chunk)) for chunk in torch.split(ids, 16)]
        )
        axis = top.subplots()
        side = images.shape[-1]
        axis.imshow(np.asarray(image_grid(images, columns=views.shape[1])), interpolation="nearest")
        names = manifest.class_titles or manifest.classes
        axis.set_yticks(
            [GAP + (side + GAP) * i + side / 2 for i in range(len(views))],
            [names[label][:24] for label in inspection.labels],
        )
        axis.set_xticks([])
        axis.set_title(
            f"{len(views)} of {manifest.rows} rows, decoded; {views.shape[1]} of "
            f"{manifest.views.views} views"
        )
    left, right = below.subplots(1, 2)
    for axis, counts, title in (
        (left, inspection.classes, f"images of each of {len(inspection.classes)} classes"),
        (
            right,
            np.sort(inspection.codes)[::-1],
            f"uses of each of {len(inspection.codes)} codes, most used first",
        ),
    ):
        axis.bar(np.arange(len(counts)), counts, width=1.0, color="#2a6fbb")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"in {inspection.shards_read} of {len(manifest.shards)} shards", fontsize=9)
    return figure
