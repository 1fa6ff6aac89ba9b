"""Pictures -> V seeded views -> token shards -> `dataset.json`.

    python -m data_pipeline.tokenize PICTURES OUT --tokenizer tokenizer.safetensors

The unit of work is one shard: a fixed list of pictures, in a seeded order. A finished shard appears by one rename and
is never written again, so a job that was interrupted goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import xxhash
from rich.console import Console
from rich.progress import Progress

from data_pipeline.dataset import Manifest, Quarantined, ShardEntry, write_atomically, write_manifest
from data_pipeline.pictures import Picture, PictureSource, Split, class_folders, read_picture
from data_pipeline.shards import Layout, Sample, write_shard
from data_pipeline.views import ViewRecipe, make_view
from model.errors import ADDPError, DataError
from model.randomness import orders
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network

PLAN = "plan.json"


def make_plan(
    source: PictureSource, planned: list[Picture], recipe: ViewRecipe, tokenizer_hash: str, rows: int
) -> dict[str, object]:
    """The frozen work list: which picture goes to which shard and row. Stored beside the data."""
    return {
        "format": "addp-plan-1",
        "pictures": [picture.id for picture in planned],
        "labels": [picture.label for picture in planned],
        "classes": list(source.classes),
        "rows": rows,
        "views": recipe.model_dump(mode="json"),
        "tokenizer": tokenizer_hash,
    }


@torch.no_grad()
def encode(tokenizer: VQTokenizer, views: Iterable[np.ndarray], batch: int) -> np.ndarray:
    """uint8 arrays (H, W, 3), taken `batch` at a time -> uint16 (N, L)."""
    device = tokenizer.codebook.device
    parts = []
    views = iter(views)
    while chunk := list(islice(views, batch)):
        images = torch.from_numpy(np.stack(chunk)).to(device)
        parts.append(tokenizer.encode(images.permute(0, 3, 1, 2).float() / 255).cpu().numpy().astype(np.uint16))
    return np.concatenate(parts) if parts else np.empty((0, tokenizer.config.tokens), np.uint16)


def tokenize_shard(
    pictures: list[tuple[int, Picture]], tokenizer: VQTokenizer, recipe: ViewRecipe, batch: int
) -> tuple[bytes, int, list[Quarantined]]:
    """One shard's bytes, its rows, and the pictures that could not be read. The same input gives the same bytes."""
    good: list[tuple[int, int]] = []
    bad: list[Quarantined] = []

    def views() -> Iterator[np.ndarray]:
        for index, picture in pictures:
            try:
                image = read_picture(picture.path)
            except DataError as error:
                bad.append(Quarantined(id=picture.id, reason=str(error.__cause__ or error)))
                continue
            good.append((index, picture.label))
            for view in range(recipe.views):
                yield make_view(image, picture.id, view, recipe)

    tokens = encode(tokenizer, views(), batch).reshape(-1, recipe.views, tokenizer.config.tokens)
    if not good:
        return b"", 0, bad
    file = BytesIO()
    samples = (Sample(index, label, t) for (index, label), t in zip(good, tokens, strict=True))
    rows = write_shard(file, samples, Layout(recipe.views, tokenizer.config.tokens))
    return file.getvalue(), rows, bad


def tokenize(
    source: PictureSource, out: Path, tokenizer: VQTokenizer, recipe: ViewRecipe, *, rows: int = 1024, batch: int = 128,
    bad_limit: float = 0.01, seed: int = 0,
) -> Manifest:  # fmt: skip
    """Make what is missing of the data set in `out` and finish it. rows: of a shard. batch: views encoded at once.

    bad_limit: share of unreadable pictures above which the job stops (one is always let pass, unless it is 0); those
    let pass are listed in `dataset.json`.
    Raises DataError where `out` holds another data set's plan, or too many pictures are unreadable.
    """
    if recipe.size != tokenizer.config.image_size:
        raise DataError(f"views of {recipe.size} px do not fit a tokenizer for {tokenizer.config.image_size} px")
    planned = [source.pictures[i] for i in orders(seed, "plan", 0, 1, len(source.pictures))[0]]
    tokenizer_hash = fingerprint(tokenizer)
    plan = make_plan(source, planned, recipe, tokenizer_hash, rows)
    plan_bytes = json.dumps(plan).encode()
    if (out / PLAN).exists() and (out / PLAN).read_bytes() != plan_bytes:
        raise DataError(f"{out} holds tokens of other pictures, views or another tokenizer; choose an empty folder")
    write_atomically(out / PLAN, plan_bytes)

    listed = list(enumerate(planned))
    entries: list[ShardEntry] = []
    bad: list[Quarantined] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("tokenizing", total=len(listed))
        for k, start in enumerate(range(0, len(listed), rows)):
            entry, quarantined = _finished(out, k) or _make(
                out, k, listed[start : start + rows], tokenizer, recipe, batch
            )
            entries += [entry] if entry.rows else []
            bad += quarantined
            if len(bad) > (max(1.0, bad_limit * len(listed)) if bad_limit else 0):
                named = "; ".join(f"{q.id}: {q.reason}" for q in bad[:3])
                raise DataError(
                    f"{len(bad)} of {len(listed)} pictures cannot be read, more than the limit {bad_limit:.1%}: {named}"
                )
            progress.update(task, completed=min(start + rows, len(listed)))
    if not entries:
        raise DataError(f"none of the {len(listed)} pictures can be read: {bad[0].id}: {bad[0].reason}")
    layout = Layout(recipe.views, tokenizer.config.tokens)
    manifest = Manifest(
        shards=tuple(entries), stride=layout.stride,
        fields=layout.fields(), codebook_size=tokenizer.config.codebook_size,
        tokens=tokenizer.config.tokens, views=recipe, tokenizer=tokenizer_hash, classes=source.classes,
        quarantined=tuple(bad),
    )  # fmt: skip
    write_manifest(out, manifest)
    return manifest


def _make(
    out: Path, k: int, pictures: list[tuple[int, Picture]], tokenizer: VQTokenizer, recipe: ViewRecipe, batch: int
) -> tuple[ShardEntry, list[Quarantined]]:
    content, count, bad = tokenize_shard(pictures, tokenizer, recipe, batch)
    entry = ShardEntry(
        name=f"tokens-{k:06d}.tar", rows=count, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        xxh3=xxhash.xxh3_128_hexdigest(content),
    )  # fmt: skip
    if count:
        write_atomically(out / entry.name, content)
    part = {"shard": entry.model_dump(), "quarantined": [q.model_dump() for q in bad]}
    write_atomically(out / "parts" / f"{k:06d}.json", json.dumps(part).encode())  # last: it vouches for the shard
    return entry, bad


def _finished(out: Path, k: int) -> tuple[ShardEntry, list[Quarantined]] | None:
    path = out / "parts" / f"{k:06d}.json"
    if not path.exists():
        return None
    part = json.loads(path.read_text())
    entry = ShardEntry(**part["shard"])
    shard = out / entry.name
    if entry.rows and not (shard.exists() and shard.stat().st_size == entry.bytes):
        return None
    return entry, [Quarantined(**q) for q in part["quarantined"]]


def main(
    pictures: Annotated[Path, typer.Argument(help="folder of class folders")],
    out: Annotated[Path, typer.Argument(help="folder of the token data set")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer weights (.safetensors)")],
    split: Annotated[str, typer.Option(help="train: all but the held-out pictures; val: those; all")] = "train",
    held_out: Annotated[float, typer.Option(help="share of held-out pictures, fixed by the hash of their names")] = 0.1,
    views: Annotated[int, typer.Option(help="V, augmented views of each picture; 1 with --center")] = 10,
    center: Annotated[bool, typer.Option("--center", help="one centre crop a picture, for evaluation")] = False,
    min_scale: Annotated[float, typer.Option(help="smallest share of a picture's area in a random crop")] = 0.2,
    rows: Annotated[int, typer.Option(help="pictures a shard")] = 1024,
    batch: Annotated[int, typer.Option(help="views encoded at once")] = 128,
    bad_limit: Annotated[float, typer.Option(help="share of unreadable pictures above which the job stops")] = 0.01,
    seed: Annotated[int, typer.Option(help="seed of the plan and the views")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Turn pictures into a token data set. Interrupted, run it again: it goes on where it stopped."""
    network = load_network(tokenizer, "tokenizer")
    assert isinstance(network, VQTokenizer)
    network.eval().to(device)
    size = network.config.image_size
    recipe = (
        ViewRecipe.center(size) if center else ViewRecipe(size=size, views=views, scale=(min_scale, 1.0), seed=seed)
    )
    splits: dict[str, Split] = {"train": "train", "val": "val", "all": "all"}
    if split not in splits:
        raise typer.BadParameter(f"{split}: one of train, val, all", param_hint="--split")
    source = class_folders(pictures, splits[split], held_out)
    manifest = tokenize(source, out, network, recipe, rows=rows, batch=batch, bad_limit=bad_limit, seed=seed)
    print(f"{out}: {manifest.rows} pictures, {len(manifest.shards)} shards, {len(manifest.quarantined)} quarantined")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except ADDPError as error:
        raise SystemExit(f"error: {error}") from None
