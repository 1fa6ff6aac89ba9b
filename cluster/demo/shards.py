"""The demo's token shards, made in this process as `addp tokenize plan`, `run` and `finalize` make
them."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.images.location import absolute
from data_pipeline.images.sources import open_source
from data_pipeline.images.split import Split, of_split
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.progress import Progress
from data_pipeline.sharding.plan import make_plan
from data_pipeline.sharding.receipts import finalize, survey
from data_pipeline.sharding.tokenize import JobSettings, plan_recipe, run_locally
from data_pipeline.storage import open_store
from model.weights import load_tokenizer

_HELD_OUT = 0.1  # as evaluations have it
_ROWS = 512  # images a shard


def make_shards(images: Path, out: Path, weights: Path, split: Split, views: ViewRecipe) -> None:
    """Make the missing shards of a split, and the list of them all.

    images: class folders. out: the data set. weights: the file of the tokenizer. Raises ADDPError.
    """
    source, store = open_source(images), open_store(str(out), closed=True)
    plan = make_plan(
        store,
        absolute(str(images)),
        of_split(source.images(), split, _HELD_OUT),
        plan_recipe(load_tokenizer(weights), views, rows=_ROWS),
        lambda: (source.classes.names, source.classes.titles),
    )
    missing = survey(store, plan).missing(plan)
    settings = JobSettings(absolute(str(out)), str(weights.resolve()))
    with Progress("tokenizing", sum(plan.rows_of(k) for k in missing), "images") as progress:
        for _ in run_locally(settings, missing, progress.advance):
            pass
    finalize(store, plan)
