"""`addp data`: how fast a data set is read here, what is in a batch, and where a sample lies."""

from __future__ import annotations

import json
import time
from functools import cache as cache_results
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from data_pipeline.loader import LoaderOptions, TokenLoader
from data_pipeline.pictures import Picture
from data_pipeline.plan import read_plan, shard_pictures
from data_pipeline.storage import ObjectMissing, open_store
from model.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="A token data set as a run reads it: speed, contents of a batch, place of a sample (docs/streaming.md).",
)  # fmt: skip
_console = Console(stderr=True)

Tokens = Annotated[str, typer.Argument(help="the data set: a folder or s3://bucket/prefix", show_default=False)]
GlobalBatch = Annotated[int, typer.Option(help="samples of one optimizer step over all ranks", min=1)]
Seed = Annotated[int, typer.Option(help="the run's seed")]
Window = Annotated[int, typer.Option(help="the run's data.window", min=1)]
Stripes = Annotated[int, typer.Option(help="the run's data.stripes", min=1)]
Cache = Annotated[Path | None, typer.Option(help="cache folder for shards from s3://")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object, for scripts")]


def _loader(tokens: str, batch: int, seed: int, window: int, stripes: int, cache: Path | None) -> TokenLoader:
    options = LoaderOptions(window=window, stripes=stripes, cache=cache)
    return TokenLoader(
        tokens, global_batch=batch, seed=seed, options=options,
        incident=lambda record: _console.print(f"[yellow]{json.dumps(record)}"),
    )  # fmt: skip


@app.command()
def bench(
    tokens: Tokens,
    global_batch: GlobalBatch = 1024,
    seconds: Annotated[float, typer.Option(help="how long to read", min=0.1)] = 10.0,
    seed: Seed = 0,
    window: Window = 16,
    stripes: Stripes = 1,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Read batches as fast as they come, in one process, and say how many samples a second that is."""
    loader = _loader(tokens, global_batch, seed, window, stripes, cache)
    started = time.perf_counter()
    loader.batch(0, 0, global_batch)
    first = time.perf_counter() - started
    cpu, began, step, longest = time.process_time(), time.perf_counter(), 1, 0.0
    with _console.status("reading"):
        while (now := time.perf_counter()) - began < seconds:
            loader.batch(step, 0, global_batch)
            longest = max(longest, time.perf_counter() - now)
            step += 1
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    loader.close()
    samples = (step - 1) * global_batch
    values = {
        "samples_per_second": round(samples / wall), "samples_per_cpu_second": round(samples / cpu),
        "megabytes_per_second": round(2 * loader.manifest.tokens * samples / wall / 1e6, 1),
        "first_batch_ms": round(1000 * first, 1), "longest_wait_ms": round(1000 * longest, 1),
        "epochs": round(step / loader.schedule.steps_per_epoch, 2), "samples": loader.manifest.rows,
    }  # fmt: skip
    _print(as_json, values)


@app.command()
def preview(
    tokens: Tokens,
    tokenizer: Annotated[Path, typer.Option(help="weights of the tokenizer that made them", show_default=False)],
    step: Annotated[int, typer.Option(help="of the run", min=0)] = 0,
    count: Annotated[int, typer.Option(help="samples, from the first of the step on", min=1)] = 32,
    global_batch: GlobalBatch = 1024,
    seed: Seed = 0,
    window: Window = 16,
    stripes: Stripes = 1,
    cache: Cache = None,
    page: Annotated[Path, typer.Option(help="PNG to write")] = Path("preview.png"),
    zoom: Annotated[int, typer.Option(help="enlarge each picture so many times", min=1)] = 1,
) -> None:
    """Decode the first samples of a step back to pictures: what the network saw there."""
    import torch

    from data_pipeline.inspection import tokenizer_of
    from data_pipeline.picture_grid import picture_grid

    loader = _loader(tokens, global_batch, seed, window, stripes, cache)
    network = tokenizer_of(loader.manifest, tokenizer)
    ids = torch.from_numpy(loader.batch(step, 0, min(count, global_batch)).ids.astype("int64"))
    loader.close()
    with torch.no_grad():
        pictures = torch.cat([network.decode(network.embed(part)) for part in torch.split(ids, 16)])
    page.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(pictures, columns=max(1, round(len(pictures) ** 0.5)), zoom=zoom).save(page)
    print(page)


@app.command()
def order(
    tokens: Tokens,
    step: Annotated[int, typer.Option(help="of the run, as in metrics.jsonl", min=0)],
    offset: Annotated[int, typer.Option(help="first sample in the global batch", min=0)] = 0,
    count: Annotated[int, typer.Option(help="samples", min=1)] = 1,
    global_batch: GlobalBatch = 1024,
    seed: Seed = 0,
    window: Window = 16,
    stripes: Stripes = 1,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Which samples a step read: shard, row, view, label, and the picture's name where the plan is still there."""
    if offset + count > global_batch:
        raise ConfigError(f"--offset {offset} --count {count} reach beyond the global batch of {global_batch}")
    loader = _loader(tokens, global_batch, seed, window, stripes, cache)
    store = open_store(tokens)
    try:
        plan = read_plan(store)
    except ObjectMissing:
        plan = None
    numbers = {shard.name: number for number, shard in enumerate(loader.manifest.shards)}

    @cache_results
    def listed(shard: int) -> dict[int, Picture]:
        assert plan is not None
        return dict(shard_pictures(store, plan, shard))

    found: list[dict[str, Any]] = []
    labels = loader.batch(step, offset, count).labels
    for i in range(count):
        place = loader.where(step, offset + i)
        if place is None:
            found.append({"step": step, "offset": offset + i, "padding": True})
            continue
        label = int(labels[i])
        entry: dict[str, Any] = {
            "step": step, "offset": offset + i, "epoch": place.epoch, "shard": place.shard, "row": place.row,
            "view": place.view, "label": label, "class": loader.manifest.classes[label],
        }  # fmt: skip
        if plan is not None:
            picture = int(loader.shards[0].open(numbers[place.shard]).records["index"][place.row])
            entry |= {"picture": listed(picture // plan.recipe.rows)[picture].id, "source": plan.source}
        found.append(entry)
    loader.close()
    if as_json:
        print(json.dumps(found))
    else:
        for entry in found:
            print("  ".join(f"{key} {value}" for key, value in entry.items()))


def _print(as_json: bool, values: dict[str, Any]) -> None:
    print(json.dumps(values) if as_json else "\n".join(f"{key:24s} {value:,}" for key, value in values.items()))
