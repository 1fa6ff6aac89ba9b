"""Where a sample of a data set comes from: its shard and row, its class, and the image's name."""

from __future__ import annotations

from functools import cache
from typing import Any

from data_pipeline.images.images import ImageEntry
from data_pipeline.sharding.plan import PLAN, Plan, read_plan, shard_images
from data_pipeline.storage import ObjectMissing
from data_pipeline.streaming.loader import SampleLocation, TokenLoader
from model.errors import DataError


class Names:
    """Describes where a sample lies in the words of its data set, its class and its image."""

    def __init__(self, loader: TokenLoader) -> None:
        self._sets = {shards.store.url: shards for shards in loader.shards}
        self._plans = {url: _plan_of(loader, url) for url in self._sets}
        self._numbers = {
            url: {shard.name: number for number, shard in enumerate(shards.manifest.shards)}
            for url, shards in self._sets.items()
        }

    def of(self, location: SampleLocation, label: int) -> dict[str, Any]:
        shards, plan = self._sets[location.dataset], self._plans[location.dataset]
        entry: dict[str, Any] = {"dataset": location.dataset} if len(self._sets) > 1 else {}
        entry |= {
            "epoch": location.epoch,
            "shard": location.shard,
            "row": location.row,
            "view": location.view,
            "label": label,
            "class": shards.manifest.classes[label],
        }
        if plan is not None:
            number = self._numbers[location.dataset][location.shard]
            image = int(shards.open(number).records["index"][location.row])
            shard = image // plan.recipe.rows
            listed = self._listed(location.dataset, shard) if shard < plan.shards else {}
            if image not in listed:
                raise DataError(
                    f"{location.dataset}/{PLAN} is not the plan of this data set: it has no image "
                    f"{image}; remove it, or put back the one that the data set was made by"
                )
            entry |= {"image": listed[image].id, "source": plan.source}
        return entry

    @cache  # noqa: B019 - one command, one object
    def _listed(self, dataset: str, shard: int) -> dict[int, ImageEntry]:
        plan = self._plans[dataset]
        assert plan is not None
        return dict(shard_images(self._sets[dataset].store, plan, shard))


def _plan_of(loader: TokenLoader, url: str) -> Plan | None:
    store = next(shards.store for shards in loader.shards if shards.store.url == url)
    try:
        return read_plan(store)
    except ObjectMissing:
        return None
