"""The lines by which other libraries read a token data set."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from data_pipeline.storage import is_remote

_NAME = re.compile(r"(.*?)(\d+)\.tar")
_WORKERS = 4  # of a DataLoader; more than there are shards would have nothing to read


def reading_lines(url: str, shards: Sequence[str]) -> dict[str, str]:
    """Return three lines of Python for each library: webdataset, torch's DataLoader over it, and
    Ray Data. url: of the data set, absolute. shards: the names of its shards, in order."""
    source = f"{url.rstrip('/')}/{_in_braces(shards)}"
    if is_remote(url):  # webdataset reads S3 by a command
        source = f"pipe:aws s3 cp {shlex.quote(source)} -"
    opened = f"webdataset.WebDataset({source!r}, shardshuffle=False)"
    fields = '"tokens.npy", "cls"'
    return {
        "webdataset": (
            f"import webdataset\nshards = {opened}\nsamples = shards.decode().to_tuple({fields})"
        ),
        "torch": (
            f"import torch, webdataset\nsamples = {opened}.decode().to_tuple({fields})\n"
            "batches = torch.utils.data.DataLoader(samples, batch_size=256, "
            f"num_workers={min(_WORKERS, len(shards))})"
        ),
        "ray": (
            f'import ray\nshards = ray.data.read_webdataset({url!r}, file_extensions=["tar"])\n'
            f"samples = shards.select_columns([{fields}])"
        ),
    }


def _in_braces(names: Sequence[str]) -> str:
    """Return one text that stands for all these names."""
    if len(names) == 1:
        return names[0]
    numbers = [found[2] if (found := _NAME.fullmatch(name)) else "" for name in names]
    first, last = numbers[0], numbers[-1]
    start = names[0].removesuffix(f"{first}.tar")
    if first and last:
        counted = range(int(first), int(last) + 1)
        if list(names) == [f"{start}{i:0{len(first)}d}.tar" for i in counted]:
            return f"{start}{{{first}..{last}}}.tar"
    return f"{{{','.join(names)}}}"
