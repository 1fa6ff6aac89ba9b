"""Where a source lies: a folder, one tar, or a list of tars written with braces; each on disk or on
`s3://`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from data_pipeline.storage import Entry, ObjectMissing, Store, is_remote, open_store, split_url
from model.errors import DataError

MOST_TARS = 100_000  # names in a list with braces
_LONGEST = 4096  # characters of such a list
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_IN_BUCKET = re.compile(r"s3://[^/]*\{")
_LETTERS = re.compile(r"\{[A-Za-z]\.\.[A-Za-z]")


class Place(NamedTuple):
    """tars: their names in the store; none where the source is all that the store holds."""

    store: Store
    tars: tuple[str, ...]


def absolute(source: str | Path) -> str:
    """The same source, whatever the working directory."""
    text = str(source)
    return text if is_remote(text) else str(Path(text).absolute())


def locate(source: str | Path) -> Place:
    """Reads nothing but, for a path with braces, whether it exists as it stands. Raises DataError
    for a list that cannot be expanded."""
    text = str(source)
    if _IN_BUCKET.match(text):
        raise DataError(
            f"{text}: the braces must stand behind the bucket, as in "
            "s3://bucket/shard-{000..012}.tar"
        )
    names = _expanded(text)
    if names != [text]:
        start = text[: text.index("{")]
        folder = split_url(f"{start}x")[0]
        inside = len(folder.rstrip("/")) + 1 if "/" in start else 0
        tars = tuple(name[inside:] for name in names)
        for tar in tars:
            if not tar.endswith(".tar") or ".." in tar.split("/"):
                raise DataError(f"{text}: a list in braces names tars, and {tar} is none")
        return Place(open_store(folder), tars)
    if text.endswith(".tar") and not _exists(f"{text}/"):  # a folder may be called so
        folder, name = split_url(text)
        return Place(open_store(folder), (name,))
    return Place(open_store(text), ())


def tars_in(place: Place) -> list[Entry]:
    """The place's tars, in order, by one listing. Raises ObjectMissing where one is not there."""
    first, last = min(place.tars), max(place.tars)  # what these two have in common, all have
    prefix = first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ]
    found = {entry.name: entry for entry in place.store.list(prefix)}
    gone = [name for name in place.tars if name not in found]
    if gone:
        rest = len(gone) - 1
        others = f", nor {rest:,} other{'s' if rest > 1 else ''} named with it" if rest else ""
        raise ObjectMissing(f"there is no tar {place.store.url}/{gone[0]}{others}; check the path")
    return [found[name] for name in place.tars]


def images_store(source: str, tars: Collection[str]) -> Store:
    """The store that the images of a plan lie in.

    source: the plan's, or where the same images lie now: a folder, a tar, or a list in braces.
    tars: those that the plan's images lie in; none for a plan of single files. Raises DataError
    where the source is not that of the plan, StorageError where a tar is not there.
    """
    place = locate(source)
    if place.tars:
        others = sorted(set(tars) - set(place.tars))
        if others or not tars:
            planned = others[0] if others else "files of a folder"
            raise DataError(
                f"{source} is not what was planned: the plan's images lie in {planned}; give its "
                "folder"
            )
    if tars:
        tars_in(Place(place.store, tuple(sorted(tars))))
    return place.store


def _exists(path: str) -> bool:
    """On disk. Unlike Path.exists, false for names that are too long for a file."""
    return not is_remote(path) and os.access(path, os.F_OK)


def _expanded(text: str) -> list[str]:
    """As bash and WebDataset expand braces; bounded before anything is made. A path that exists
    stands for itself."""
    if "{" not in text or _exists(text):
        return [text]
    if len(text) > _LONGEST or (most := _most_names(text)) > MOST_TARS:
        size = f"{len(text):,} characters" if len(text) > _LONGEST else f"up to {most:,} names"
        raise DataError(
            f"{text[:80]}: this list has {size}; give at most {MOST_TARS:,} tars so, or their "
            "folder"
        )
    try:
        return list(braceexpand(text, escape=False))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{text[:80]}: the braces of this list do not match") from error


def _most_names(text: str) -> int:
    """At least as many as there are."""
    most = math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(text))
    most *= 52 ** len(_LETTERS.findall(text))
    commas: list[int] = []  # of the braces that are open
    for character in text:
        if character == "{":
            commas.append(0)
        elif character == "," and commas:
            commas[-1] += 1
        elif character == "}" and commas:
            most *= commas.pop() + 1
    return most
