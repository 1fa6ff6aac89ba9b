"""`addp data`: how fast a data set is read here, what is in a batch, where a sample lies, and how
other libraries read it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from model.documents import Settings
from model.errors import ConfigError
from trainer.config.bounds import LARGEST_BATCH, YEAR
from trainer.config.options import LARGEST_SEED, AsJson, Zoom, from_models, step_option

if TYPE_CHECKING:
    from cluster.commands.reading import Reading
    from data_pipeline.streaming.loader import TokenLoader

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Look at a token data set as a run reads it: its speed, the contents of a batch, and "
    "where a sample lies; and see how other libraries read it.",
)

Tokens = Annotated[
    str | None,
    typer.Argument(help="the data set, a folder or s3://bucket/prefix; with --run not needed"),
]
OfRun = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="run folder, or s3:// that a run uploads to: data set, batch, seed, window, stripes, "
        "cache and tokenizer are those of the run, unless they are given here",
    ),
]


class ReadingOptions(Settings):
    """How data are read, as the command line says it. None: as the run reads them, or else as
    `cluster/commands/reading.py` says."""

    global_batch: int | None = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description="samples of one optimizer step over all ranks; without --run 1024",
    )
    seed: int | None = Field(
        None, ge=-LARGEST_SEED - 1, le=LARGEST_SEED, description="the run's seed; without --run 0"
    )
    window: int | None = Field(
        None, ge=1, le=10**6, description="the run's data.window; without --run 16"
    )
    stripes: int | None = Field(
        None, ge=1, le=10**6, description="the run's data.stripes; without --run 1"
    )
    cache: Path | None = Field(None, description="folder on a local disk for shards from s3://")


def _open(asked: Reading) -> TokenLoader:
    from rich.console import Console

    console = Console(stderr=True)
    return asked.open(lambda record: console.print(f"[yellow]{json.dumps(record)}"))


@app.command()
@from_models
def bench(
    tokens: Tokens = None,
    run: OfRun = None,
    *,
    seconds: Annotated[float, typer.Option(help="how long to read", min=0.1, max=YEAR)] = 10.0,
    options: ReadingOptions,
    as_json: AsJson = False,
) -> None:
    """Read batches as fast as they come, in one process, and say how many samples a second."""
    from rich.console import Console

    from cluster.commands.reading import reading

    asked = reading(tokens, run, options)
    loader, batch = _open(asked), asked.global_batch
    started = time.perf_counter()
    loader.batch(0, 0, batch)
    first = time.perf_counter() - started
    cpu, began, step, longest = time.process_time(), time.perf_counter(), 1, 0.0
    with Console(stderr=True).status("reading"):
        while (now := time.perf_counter()) - began < seconds:
            loader.batch(step, 0, batch)
            longest = max(longest, time.perf_counter() - now)
            step += 1
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    loader.close()
    samples = (step - 1) * batch
    values = {
        "samples_per_second": round(samples / wall),
        "samples_per_cpu_second": round(samples / cpu),
        "megabytes_per_second": round(2 * loader.manifest.tokens * samples / wall / 1e6, 1),
        "first_batch_ms": round(1000 * first, 1),
        "longest_wait_ms": round(1000 * longest, 1),
        "epochs": round(step / loader.schedule.steps_per_epoch, 2),
        "samples": sum(shards.manifest.rows for shards in loader.shards),
        "global_batch": batch,
    }
    print(
        json.dumps(values)
        if as_json
        else "\n".join(f"{key:24s} {value:,}" for key, value in values.items())
    )


@app.command()
@from_models
def preview(
    tokens: Tokens = None,
    run: OfRun = None,
    *,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="weights of the tokenizer that made the tokens; else the run's"),
    ] = None,
    step: Annotated[int, step_option("step of the run, as in its metrics.jsonl")] = 0,
    count: Annotated[
        int, typer.Option(help="how many samples, from the first of the step on", min=1, max=4096)
    ] = 32,
    options: ReadingOptions,
    page: Annotated[Path, typer.Option(help="image file to write, as .png")] = Path("preview.png"),
    zoom: Zoom = 1,
) -> None:
    """Decode the first samples of a step back to images: what the network saw there."""
    from cluster.commands.reading import reading
    from data_pipeline.storage.output import IMAGES, check_output

    check_output(page, IMAGES)
    asked = reading(tokens, run, options)
    weights = tokenizer or asked.tokenizer
    if weights is None:
        raise ConfigError(
            "give --tokenizer FILE, the weights of the tokenizer that made the tokens"
            + (f"; {run} does not name them" if run else "")
        )
    import torch

    from data_pipeline.images.image_grid import image_grid
    from data_pipeline.sharding.inspection import tokenizer_of

    loader = _open(asked)
    network = tokenizer_of(loader.manifest, weights)
    samples = loader.batch(asked.data_step(step), 0, min(count, asked.global_batch))
    ids = torch.from_numpy(samples.ids.astype("int64"))
    loader.close()
    with torch.no_grad():
        images = torch.cat([network.decode(network.embed(chunk)) for chunk in torch.split(ids, 16)])
    page.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=max(1, round(len(images) ** 0.5)), zoom=zoom).save(page)
    print(page)


@app.command()
@from_models
def order(
    step: Annotated[int, step_option("step of the run, as in its metrics.jsonl")],
    tokens: Tokens = None,
    run: OfRun = None,
    *,
    offset: Annotated[
        int, typer.Option(help="first sample in the global batch", min=0, max=LARGEST_BATCH)
    ] = 0,
    count: Annotated[int, typer.Option(help="how many samples", min=1, max=LARGEST_BATCH)] = 1,
    options: ReadingOptions,
    as_json: AsJson = False,
) -> None:
    """Say which samples a step read: shard, row, view, label, and the image's name where the plan
    is still there.

    With --run, data that the run left out after a rewind are taken into account: what is listed is
    what the step read in the end.
    """
    from cluster.commands.provenance import Names
    from cluster.commands.reading import reading
    from model.documents import printable

    asked = reading(tokens, run, options)
    if offset + count > asked.global_batch:
        raise ConfigError(
            f"--offset {offset} --count {count} reach beyond the global batch of "
            f"{asked.global_batch}"
        )
    loader, data_step = _open(asked), asked.data_step(step)
    names = Names(loader)
    labels = loader.batch(data_step, offset, count).labels
    entries: list[dict[str, Any]] = []
    for i in range(count):
        location = loader.where(data_step, offset + i)
        entry: dict[str, Any] = {"step": step, "offset": offset + i}
        if data_step != step:
            entry["data_step"] = data_step  # where the step's data lie in the order, after rewinds
        entry |= {"padding": True} if location is None else names.of(location, int(labels[i]))
        entries.append(entry)
    loader.close()
    if as_json:
        print(json.dumps(entries))
    else:
        for entry in entries:
            print("  ".join(f"{key} {printable(str(value))}" for key, value in entry.items()))


@app.command("read-with")
def read_with(
    tokens: Annotated[
        str, typer.Argument(help="the data set: a folder or s3://bucket/prefix", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Print the three lines by which webdataset, torch's DataLoader and Ray Data read its
    shards."""
    from cluster.commands.other_readers import reading_lines
    from data_pipeline.images.location import absolute
    from data_pipeline.shards.manifest import read_manifest
    from data_pipeline.storage import open_store

    manifest = read_manifest(open_store(tokens, closed=True))
    lines = reading_lines(absolute(tokens), [shard.name for shard in manifest.shards])
    if as_json:
        print(json.dumps(lines))
    else:
        print("\n\n".join(f"# {library}\n{text}" for library, text in lines.items()))
