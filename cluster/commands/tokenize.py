"""`addp tokenize`: plan, run, status, finalize, verify, inspect."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipeline.sharding.options import BAD_LIMIT, JobOptions, PlanOptions
from model.errors import ConfigError, DataError
from trainer.config.bounds import YEAR
from trainer.config.options import AsJson, from_models

if TYPE_CHECKING:
    from data_pipeline.images.class_names import ClassNames
    from data_pipeline.images.streamed import StreamedShards
    from data_pipeline.sharding.job_status import Known
    from data_pipeline.sharding.plan import Plan
    from data_pipeline.sharding.receipts import ShardReceipt
    from data_pipeline.sharding.tokenize import JobSettings
    from data_pipeline.shards.manifest import Manifest
    from data_pipeline.storage import Store

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Images -> token shards: `plan` freezes the work, `run` does it on many machines, "
    "`finalize` ends it.\n\n"
    "Folders and s3://bucket/prefix alike. docs/tokenize.md walks through ImageNet.",
)

Out = Annotated[
    str, typer.Argument(help="the data set: a folder or s3://bucket/prefix", show_default=False)
]
Tokenizer = Annotated[
    Path, typer.Option(help="tokenizer weights: ours, or the official .ckpt", show_default=False)
]


def _print(as_json: bool, values: dict[str, Any], text: str) -> None:
    print(json.dumps(values) if as_json else text)


@app.command()
@from_models
def plan(
    source: Annotated[
        str,
        typer.Argument(
            help="class folders, a tar, or tars as 'DIR/x-{000..012}.tar'; local, s3://, or tars "
            "at https://, hf://, 'pipe:COMMAND' and what else webdataset opens"
        ),
    ],
    out: Out,
    tokenizer: Tokenizer,
    *,
    options: PlanOptions,
    as_json: AsJson = False,
) -> None:
    """List the images and fix which one goes to which shard and row.

    Run again, it must give the same plan.
    """
    from pydantic import ValidationError

    from data_pipeline.images.location import recorded
    from data_pipeline.images.sources import open_source
    from data_pipeline.images.split import of_split
    from data_pipeline.images.streamed import StreamedShards
    from data_pipeline.progress import Progress
    from data_pipeline.sharding.plan import make_plan
    from data_pipeline.sharding.tokenize import plan_recipe
    from data_pipeline.storage import is_remote, open_store
    from data_pipeline.storage.output import check_apart, check_output
    from data_pipeline.storage.urls import PIPE, UrlStore
    from model.documents import first_problem
    from model.weights import load_tokenizer

    check_apart(out, source)
    if not is_remote(out):
        check_output(Path(out))
    network = load_tokenizer(tokenizer)
    try:
        recipe = plan_recipe(
            network,
            options.view_recipe(network.config.image_size),
            precision=options.precision,
            rows=options.rows,
            seed=options.seed,
        )
    except ValidationError as error:
        raise ConfigError(f"no such views can be made: {first_problem(error)}") from error
    names, labels = _given_classes(options)
    with Progress("listing", None, "images") as progress:
        listed = open_source(source, names, labels, commands=True)
        made = make_plan(
            open_store(out, closed=True),
            recorded(source),
            of_split(listed.images(), options.split, options.held_out),
            recipe,
            lambda: (listed.classes.names, listed.classes.titles),
            versions=listed.store.versions if isinstance(listed.store, UrlStore) else {},
            progress=progress.set,
        )
    streamed = isinstance(listed, StreamedShards)
    values = {
        "images": made.images,
        "shards": made.shards,
        "classes": len(made.classes),
        "plan": made.identity,
        "by_range": not streamed,
    }
    again = " --source 'pipe:...'" if made.source == PIPE else ""
    text = (
        f"{out}: {made.images:,} images of {len(made.classes)} classes in {made.shards:,} shards "
        f"({listed.kind}); next: addp tokenize run {out} --tokenizer {tokenizer}{again}"
    )
    if isinstance(listed, StreamedShards):
        text += f"\n{_what_streaming_means(listed, made.shards)}"
    _print(as_json, values, text)


def _what_streaming_means(source: StreamedShards, shards: int) -> str:
    sizes = source.streams.sizes.values()
    return (
        f"{source.store.url} cannot be read by range. So each of the {shards:,} shards streams the "
        f"tars that it needs once, in order: up to {len(sizes):,} tars of "
        f"{sum(sizes) / 1e9:,.3f} GB. Copy the tars into a folder or to S3 to avoid it, or plan "
        "with more --rows"
    )


def _given_classes(options: PlanOptions) -> tuple[ClassNames | None, list[str] | None]:
    """Read (class names, classes of the validation images) from the files that are given; a file
    for one of them goes before the devkit, which has both. Raises DataError."""
    from data_pipeline.images.class_names import read_class_names, read_devkit, read_labels

    names, labels = read_devkit(options.devkit) if options.devkit else (None, None)
    if options.class_names:
        names = read_class_names(options.class_names)
    if options.labels:
        labels = read_labels(options.labels)
    return names, labels


@app.command()
@from_models
def run(
    out: Out,
    tokenizer: Tokenizer,
    *,
    shards: Annotated[
        str, typer.Option(help="i/N: every N-th shard from the i-th, i = 0..N-1 (Slurm arrays)")
    ] = "0/1",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="this process, or a Ray cluster")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="of a running cluster, or auto; else one starts here")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="where the images lie now, if not where they were planned: as for plan"),
    ] = None,
    options: JobOptions,
    then_finalize: Annotated[
        bool, typer.Option("--finalize", help="write dataset.json if nothing is missing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the missing shards.

    Start it on as many machines as you like, kill it, start it again: the bytes are the same.
    """
    from data_pipeline.images.location import absolute
    from data_pipeline.progress import Progress
    from data_pipeline.sharding.job_status import count
    from data_pipeline.sharding.plan import read_plan
    from data_pipeline.sharding.quarantine import check_bad
    from data_pipeline.sharding.receipts import survey
    from data_pipeline.sharding.tokenize import JobSettings
    from data_pipeline.storage import open_store

    store = open_store(out, closed=True)
    planned = read_plan(store)
    i, n = _share(shards)
    present = survey(store, planned)
    known: Known = {}
    before = count(store, planned, present, known)
    settings = JobSettings(
        absolute(out), str(tokenizer.resolve()), source and absolute(source), options, before
    )
    mine = [k for k in present.missing(planned) if k % n == i]
    started, images, bad, made = time.monotonic(), 0, 0, 0
    with Progress("tokenizing", sum(planned.rows_of(k) for k in mine), "images") as progress:
        for receipt in _make_shards(engine, settings, mine, ray_address, progress.advance):
            made += 1
            images += receipt.shard.rows
            bad += len(receipt.quarantined)
            if receipt.quarantined:
                progress.note(f"{bad:,} quarantined")
                # A worker checks its own images; here are those of all workers on Ray.
                check_bad(planned, before.quarantined + bad, receipt.quarantined, options.bad_limit)
    seconds = time.monotonic() - started
    present = survey(store, planned)
    missing = present.missing(planned)
    totals = count(store, planned, present, known)
    values: dict[str, Any] = {
        "made": made,
        "images": images,
        "planned": totals.planned,
        "stored": totals.stored,
        "quarantined": totals.quarantined,
        "missing": len(missing),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 3),
    }
    if missing:
        ending = f"{len(missing):,} shards missing"
    elif then_finalize:
        values["fingerprint"] = _finalized(store, planned, options.bad_limit).fingerprint
        ending = "dataset.json is written"
    else:
        ending = f"next: addp tokenize finalize {out}"
    text = (
        f"{out}: made {made:,} shards, {images:,} images in {seconds:.0f} s; the data set: "
        f"{totals.text}; {ending}"
    )
    _print(as_json, values, text)


def _finalized(store: Store, planned: Plan, bad_limit: float) -> Manifest:
    from data_pipeline.progress import Progress
    from data_pipeline.sharding.receipts import finalize

    with Progress("finalizing", planned.shards, "shards") as progress:
        return finalize(store, planned, bad_limit, progress.set)


def _share(text: str) -> tuple[int, int]:
    """Read `i/N`. Raises ConfigError."""
    try:
        i, n = (int(number) for number in text.split("/"))
    except ValueError:
        i, n = -1, 0
    if not 0 <= i < n:
        raise ConfigError(
            f"--shards {text}: write i/N with i = 0..N-1, as in --shards $SLURM_ARRAY_TASK_ID/64"
        )
    return i, n


def _make_shards(
    engine: str,
    settings: JobSettings,
    shards: list[int],
    ray_address: str | None,
    progress: Callable[[int], None],
) -> Iterator[ShardReceipt]:
    """Make the shards by an engine, and return the receipt of each as it is stored."""
    if engine == "ray":
        from cluster.sharding.ray_engine import run_on_ray

        return run_on_ray(settings, shards, ray_address, progress)
    from data_pipeline.sharding.tokenize import run_locally

    return run_locally(settings, shards, progress)


@app.command()
def status(
    out: Out,
    watch: Annotated[
        bool, typer.Option("--watch", help="follow a running job until its last shard")
    ] = False,
    every: Annotated[
        float, typer.Option(help="seconds between looks, with --watch", min=0.1, max=YEAR)
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Say what is done, missing and quarantined, at what rate, and when it will end.

    With --json and --watch it prints a line at each look.
    """
    from data_pipeline.progress import Progress
    from data_pipeline.sharding.job_status import job_status
    from data_pipeline.sharding.plan import read_plan
    from data_pipeline.sharding.receipts import survey
    from data_pipeline.storage import open_store

    store = open_store(out, closed=True)
    planned = read_plan(store)
    known: Known = {}
    job = job_status(store, planned, survey(store, planned), known)
    with Progress("tokenizing", planned.shards, "shards", done=job.done, shown=watch) as progress:
        while watch and job.missing:
            if as_json:
                print(json.dumps(job._asdict()), flush=True)
            time.sleep(every)
            job = job_status(store, planned, survey(store, planned), known)
            progress.set(job.done)
            progress.note(f"{job.quarantined:,} quarantined")
    _print(as_json, job._asdict(), f"{out}: {job.text}")


@app.command("finalize")
def finalize_command(
    out: Out,
    bad_limit: Annotated[
        float, typer.Option(help="share of unreadable images above which it refuses", min=0, max=1)
    ] = BAD_LIMIT,
    as_json: AsJson = False,
) -> None:
    """Merge the receipts of all shards into dataset.json.

    Refuses gaps, duplicates, and shards of other tokenizers or views.
    """
    from data_pipeline.sharding.plan import read_plan
    from data_pipeline.sharding.quarantine import Totals
    from data_pipeline.storage import open_store

    store = open_store(out, closed=True)
    planned = read_plan(store)
    manifest = _finalized(store, planned, bad_limit)
    totals = Totals(planned.images, manifest.rows, len(manifest.quarantined))
    values = {
        "planned": totals.planned,
        "rows": manifest.rows,
        "quarantined": totals.quarantined,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
    }
    text = (
        f"{out}: {totals.text}; {len(manifest.shards):,} shards; fingerprint "
        f"{manifest.fingerprint[:16]}"
    )
    _print(as_json, values, text)


@app.command("verify")
def verify_command(out: Out, as_json: AsJson = False) -> None:
    """Read every byte and check it against dataset.json.

    Exits with 1 where something does not match.
    """
    from data_pipeline.progress import Progress
    from data_pipeline.sharding.verify import totals_of, verify
    from data_pipeline.shards.manifest import MANIFEST, read_manifest
    from data_pipeline.storage import open_store

    store = open_store(out, closed=True)
    manifest = read_manifest(store)
    totals = totals_of(store, manifest)
    quarantined = len(manifest.quarantined)
    problems: list[dict[str, str]] = []
    if totals and totals.lost:
        problem = f"does not add up: {totals.text}; remove it, and finalize again"
        problems.append({"shard": MANIFEST, "problem": problem})
    with Progress("verifying", len(manifest.shards), "shards") as progress:
        for check in verify(store, manifest):
            problems += [{"shard": check.name, "problem": problem} for problem in check.problems]
            progress.advance()
    lines = [f"{p['shard']} {p['problem']}" for p in problems]
    damaged = len({p["shard"] for p in problems} - {MANIFEST})
    images = (
        totals.text
        if totals
        else f"{manifest.rows:,} stored, {quarantined:,} quarantined, of an unknown plan"
    )
    summary = f"{out}: {images}; {len(manifest.shards):,} shards, {damaged} of them damaged"
    values = {
        "shards": len(manifest.shards),
        "planned": totals and totals.planned,
        "rows": manifest.rows,
        "quarantined": quarantined,
        "problems": problems,
        "sound": not problems,
    }
    _print(as_json, values, "\n".join([*lines, summary]))
    if lines:
        raise DataError(f"{out} is not sound: {lines[0]}")


@app.command()
def inspect(
    out: Out,
    *,
    tokenizer: Annotated[
        Path | None, typer.Option(help="its weights, to decode rows back to images")
    ] = None,
    page: Annotated[Path, typer.Option(help="PNG to write")] = Path("inspect.png"),
    shards: Annotated[
        int,
        typer.Option(
            help="shards to read for the histograms, spread evenly; 0: all", min=0, max=10**9
        ),
    ] = 8,
    rows: Annotated[int, typer.Option(help="rows to decode", min=1, max=64)] = 6,
    as_json: AsJson = False,
) -> None:
    """Print a table of counts and shares, and draw a page of what the data set holds.

    The page has histograms of classes and code usage, and a few rows decoded back to images.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from data_pipeline.sharding import inspection
    from data_pipeline.shards.manifest import read_manifest
    from data_pipeline.storage import open_store
    from data_pipeline.storage.output import IMAGES, check_output

    check_output(page, (*IMAGES, ".pdf", ".svg"))
    store = open_store(out, closed=True)
    manifest = read_manifest(store)
    network = inspection.tokenizer_of(manifest, tokenizer) if tokenizer else None
    with Console(stderr=True).status("reading shards"):
        contents = inspection.inspect(store, manifest, shards, rows)
        page.parent.mkdir(parents=True, exist_ok=True)
        inspection.draw(contents, manifest, network).savefig(page, dpi=110)
    if as_json:
        print(json.dumps({**contents.summary(manifest), "page": str(page)}))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for row in contents.table(manifest):
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    print(f"drawn: {page}")
