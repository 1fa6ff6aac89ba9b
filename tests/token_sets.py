"""Token data sets of known content, without a tokenizer: sample n has label n and tokens that name
it and the view."""

from __future__ import annotations

import hashlib
from io import BytesIO

import numpy as np
import xxhash

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.shards.format import Layout, Sample, write_shard
from data_pipeline.shards.manifest import MANIFEST, Manifest, ShardEntry, manifest_bytes
from data_pipeline.storage import Store

TOKENS = 16
TOKENIZER = "7" * 64


def tokens_of(sample: int, view: int, length: int = TOKENS) -> np.ndarray:
    """(L,): the sample's number in two tokens, the view, then a pattern."""
    values = np.arange(length, dtype=np.uint16) + np.uint16(sample % 50)
    values[:3] = sample // 1000, sample % 1000, view
    return values


def write_tokens(
    store: Store,
    rows_per_shard: list[int],
    *,
    views: int = 2,
    first: int = 0,
    length: int = TOKENS,
    tokenizer: str = TOKENIZER,
    codes: int = 1024,
) -> Manifest:
    """first: number of the first sample, so that several sets can be told apart. codes: K, tokens
    modulo it."""
    layout, entries, number = Layout(views, length), [], first
    for k, rows in enumerate(rows_per_shard):
        file = BytesIO()
        samples = (
            Sample(n, n, np.stack([tokens_of(n, v, length) % codes for v in range(views)]))
            for n in range(number, number + rows)
        )
        write_shard(file, samples, layout)
        number += rows
        content = file.getvalue()
        store.create(f"tokens-{k:06d}.tar", content)
        entries.append(
            ShardEntry(
                name=f"tokens-{k:06d}.tar",
                rows=rows,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                xxh3=xxhash.xxh3_128_hexdigest(content),
            )
        )
    manifest = Manifest(
        shards=tuple(entries),
        stride=layout.stride,
        fields=layout.fields(),
        codebook_size=codes,
        tokens=length,
        views=ViewRecipe(size=16, views=views),
        tokenizer=tokenizer,
        classes=tuple(f"class {i}" for i in range(number)),
    )
    store.create(MANIFEST, manifest_bytes(manifest))
    return manifest


def samples_of(ids: np.ndarray) -> list[int]:
    """Numbers of the samples in a batch of ids (B, L)."""
    return (ids[:, 0].astype(int) * 1000 + ids[:, 1]).tolist()
