"""Where a source of images lies: a folder, one tar, or a list of tars written with braces; each on
disk or on `s3://`. Tars may also lie at other urls that webdataset opens."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from data_pipeline.storage import (
    Entry,
    ObjectMissing,
    StorageError,
    Store,
    is_remote,
    open_store,
    split_url,
)
from data_pipeline.storage.urls import PIPE, WEB, check_url, is_url
from model.errors import ConfigError, DataError

MOST_TARS = 100_000  # names in a list with braces
_LONGEST = 4096  # characters of such a list
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_IN_BUCKET = re.compile(r"s3://[^/]*\{")
_LETTERS = re.compile(r"\{[A-Za-z]\.\.[A-Za-z]")


class ImageLocation(NamedTuple):
    """A store, and the names of the tars in it that are the source; none if all of the store is."""

    store: Store
    tars: tuple[str, ...]


def absolute(source: str | Path) -> str:
    """Return the same source as a name that does not depend on the working directory. Raises
    StorageError for a url that cannot be read, or may hold a secret."""
    text = _path(source)
    if is_url(text):
        if not text.startswith(PIPE):
            check_url(text)
        return text
    return text if is_remote(text) else str(Path(text).absolute())


def recorded(source: str | Path) -> str:
    """Return a source as a plan stores it: absolute, and without the command of a pipe, which may
    hold a secret and must be the user's own word each time."""
    return PIPE if str(source).startswith(PIPE) else absolute(source)


def locate(source: str | Path, *, commands: bool = False) -> ImageLocation:
    """Find out where a source lies. No image is read, and no folder listed.

    A path with braces that exists stands for itself. commands: whether the source is the user's own
    word, and may be a command (`pipe:`). Raises DataError for a list that cannot be expanded, and
    for one that names something else than tars; ConfigError for a command that is not allowed.
    """
    text = _path(source)
    if is_url(text):
        return _at_urls(text, commands)
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
        return ImageLocation(open_store(folder), tars)
    if text.endswith(".tar") and not _exists(f"{text}/"):  # a folder may be called so
        folder, name = split_url(text)
        return ImageLocation(open_store(folder), (name,))
    return ImageLocation(open_store(text), ())


def _at_urls(text: str, commands: bool) -> ImageLocation:
    """Return the location of tars at urls; no request is made, and no command run."""
    scheme = text.partition(":")[0]
    if scheme == "pipe":
        if not commands:
            raise ConfigError(
                "pipe: runs a command, which must be your own word: name it on the command line "
                "(addp tokenize plan, and run --source) or as data.images of a run; a plan, an "
                "evaluation and annotated images run none"
            )
        return _stream(PIPE, {f"{i:06d}.tar": one for i, one in enumerate(_expanded(text))})
    check_url(text)
    if text.partition("://")[2].partition("/")[0].count("{"):
        raise DataError(f"{text}: the braces must stand behind the host")
    names = _expanded(text)
    start = text.partition("{")[0] if names != [text] else text
    folder, _, name = start.rpartition("/")
    if (not name and names == [text]) or not all(one.endswith(".tar") for one in names):
        raise DataError(
            f"{text}: {scheme}:// lists no folder; name the tars, as in "
            f"{folder}/shard-{{000..012}}.tar"
        )
    inside = {one[len(folder) + 1 :]: one for one in names}
    if scheme not in WEB:
        return _stream(folder, inside)
    from data_pipeline.storage.http import HttpStore

    return ImageLocation(HttpStore(folder, tuple(inside)), tuple(inside))


def _stream(url: str, opened: dict[str, str]) -> ImageLocation:
    from data_pipeline.storage.streams import StreamStore

    return ImageLocation(StreamStore(url, opened), tuple(opened))


def tars_in(location: ImageLocation) -> list[Entry]:
    """Find the location's tars by one listing, and return them in its order. Raises ObjectMissing
    if one is not there."""
    first, last = min(location.tars), max(location.tars)  # what these two have in common, all have
    prefix = first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ]
    listed = {entry.name: entry for entry in location.store.list(prefix)}
    gone = [name for name in location.tars if name not in listed]
    if gone:
        rest = len(gone) - 1
        others = f", nor {rest:,} other{'s' if rest > 1 else ''} named with it" if rest else ""
        raise ObjectMissing(
            f"there is no tar {location.store.url}/{gone[0]}{others}; check the path"
        )
    return [listed[name] for name in location.tars]


def images_store(source: str, tars: Collection[str], *, commands: bool = False) -> Store:
    """Return the store that the images of a plan lie in.

    source: the plan's source, or where the same images lie now: a folder, a tar, or a list in
    braces. tars: the tars that the plan's images lie in; none for a plan of single files. commands:
    as for `locate`. Raises DataError if the source is not that of the plan, StorageError if a tar
    is not there, ConfigError for a plan that was made of a command.
    """
    if source == PIPE:
        raise ConfigError(
            "the plan was made of a command (pipe:), which plans do not store: give it again, as "
            "addp tokenize run --source 'pipe:...'"
        )
    location = locate(source, commands=commands)
    if location.tars:
        others = sorted(set(tars) - set(location.tars))
        if others or not tars:
            planned = others[0] if others else "files of a folder"
            raise DataError(
                f"{source} is not what was planned: the plan's images lie in {planned}; give its "
                "folder"
            )
    if tars:
        tars_in(ImageLocation(location.store, tuple(sorted(tars))))
    return location.store


def _path(source: str | Path) -> str:
    """Return a source without `file://`, which stands before a path. Raises StorageError."""
    text = str(source)
    path = text.removeprefix("file://")
    if path != text and not path.startswith("/"):
        raise StorageError(f"{text}: behind file:// stands an absolute path, as in file:///data")
    return path


def _exists(path: str) -> bool:
    """Whether a path exists on disk. Unlike Path.exists, it is false for a name that is too long
    for a file."""
    return not is_url(path) and not is_remote(path) and os.access(path, os.F_OK)


def _expanded(text: str) -> list[str]:
    """Expand braces as bash and WebDataset do. The number of names is bounded before any is made.
    A path that exists stands for itself."""
    if "{" not in text or _exists(text):
        return [text]
    shown = PIPE if text.startswith(PIPE) else text[:80]
    if len(text) > _LONGEST or (most := _most_names(text)) > MOST_TARS:
        size = f"{len(text):,} characters" if len(text) > _LONGEST else f"up to {most:,} names"
        raise DataError(
            f"{shown}: this list has {size}; give at most {MOST_TARS:,} tars so, or their folder"
        )
    try:
        return list(braceexpand(text, escape=False))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: the braces of this list do not match") from error


def _most_names(text: str) -> int:
    """Return an upper bound of the number of names that a list stands for."""
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
