"""Token data sets for tests, made as the commands make them, in this process."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.images.location import images_store
from data_pipeline.images.sources import open_source
from data_pipeline.images.split import Split, of_split
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.encoder import TokenEncoder
from data_pipeline.sharding.options import OnBad
from data_pipeline.sharding.plan import Plan, make_plan
from data_pipeline.sharding.quarantine import NOTHING, Totals
from data_pipeline.sharding.receipts import finalize, survey
from data_pipeline.sharding.tokenize import TokenizeJob, plan_recipe
from data_pipeline.shards.manifest import Manifest
from data_pipeline.storage import open_store
from model.vq import VQTokenizer


def plan(
    images: Path | str,
    out: Path | str,
    tokenizer: VQTokenizer,
    recipe: ViewRecipe,
    *,
    rows: int = 1024,
    split: Split = "all",
) -> Plan:
    source = open_source(images)
    return make_plan(
        open_store(out),
        str(images),
        of_split(source.images(), split, 0.1),
        plan_recipe(tokenizer, recipe, rows=rows),
        lambda: (source.classes.names, source.classes.titles),
    )


def job(
    planned: Plan,
    out: Path | str,
    tokenizer: VQTokenizer,
    *,
    batch: int = 32,
    on_bad: OnBad = "quarantine",
    bad_limit: float = 0.01,
    before: Totals = NOTHING,
) -> TokenizeJob:
    encoder = TokenEncoder(tokenizer, batch=batch)
    return TokenizeJob(
        open_store(out),
        planned,
        images_store(planned.source, planned.objects),
        encoder,
        on_bad=on_bad,
        bad_limit=bad_limit,
        before=before,
    )


def tokenize(
    images: Path | str,
    out: Path | str,
    tokenizer: VQTokenizer,
    recipe: ViewRecipe,
    *,
    rows: int = 1024,
    split: Split = "all",
    batch: int = 32,
) -> Manifest:
    """Plan, make what is missing, finalize."""
    planned = plan(images, out, tokenizer, recipe, rows=rows, split=split)
    store = open_store(out)
    list(job(planned, out, tokenizer, batch=batch).run(survey(store, planned).missing(planned)))
    return finalize(store, planned)
