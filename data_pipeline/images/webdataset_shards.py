"""WebDataset shards as a source of images: which members of a tar belong together, and what their
label is."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from data_pipeline.images.class_names import ClassNames
from data_pipeline.images.images import SUFFIXES, ImageEntry, is_image
from data_pipeline.images.tar_members import Member, ObjectReader, members
from data_pipeline.storage import Entry, Store
from model.errors import DataError

# The fields that may hold a label, and the most bytes that one may have.
_LABELS = {"cls": 64, "json": 2**20}
_MOST_CLASSES = 1_000_000  # if they have no names: a number of ten digits is no label
_INTEGER = re.compile(r"\d{1,9}", re.ASCII)


class WebDatasetShards:
    """Tars with KEY.jpg (or another image) and its label beside it: KEY.cls, or "label" or "cls" in
    KEY.json.

    As in WebDataset, a key is a member's name up to the first dot behind its folder, and a key's
    members follow each other. Members with other or longer extensions (KEY.txt, KEY.seg.png) are
    other fields, and not read.
    """

    kind: Literal["webdataset"] = "webdataset"

    def __init__(
        self, store: Store, tars: Iterable[Entry], names: ClassNames | None = None
    ) -> None:
        self.store, self._tars = store, tars
        self._named = names
        self._largest = -1

    @property
    def classes(self) -> ClassNames:
        return self._named or ClassNames(tuple(str(i) for i in range(self._largest + 1)))

    def images(self) -> Iterator[ImageEntry]:
        """Yield the images. Raises DataError for a key with no or several images, without a label,
        or with one that is no label."""
        for tar in self._tars:
            labels = ObjectReader(self.store, tar.name, tar.size)
            fields = members(self.store, tar.name, tar.size, wanted=_wanted)
            for key, group in itertools.groupby(fields, key=lambda field: _split(field.name)[0]):
                where = f"{self.store.url}/{tar.name}: {key}"
                image, label = _sample(where, list(group), labels)
                if image is None:
                    continue
                if label is None:
                    raise DataError(
                        f"{where} has no label (.cls, or label in .json); ImageNet's validation "
                        "tar takes its labels from --devkit or --labels"
                    )
                classes = len(self._named.names) if self._named else _MOST_CLASSES
                if label >= classes:
                    raise DataError(
                        f"{where} has label {label}, but {classes:,} classes are named or can be"
                    )
                self._largest = max(self._largest, label)
                yield ImageEntry(
                    f"{tar.name}/{image.name}", label, tar.name, image.size, image.offset
                )


def _split(name: str) -> tuple[str, str]:
    """Split a name into (key, extension in lower case), as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _wanted(name: str) -> bool:
    key, extension = _split(name)
    return is_image(name) or (extension in _LABELS and not key.endswith("/") and key != "")


def _sample(
    where: str, group: list[Member], labels: ObjectReader
) -> tuple[Member | None, int | None]:
    """Return (image, label) of one key; None for both if the key has neither."""
    fields: dict[str, Member] = {}
    for member in group:
        extension = _split(member.name)[1]
        if extension in fields:
            raise DataError(
                f"{where} has two members .{extension}; each image needs a key of its own"
            )
        fields[extension] = member
    images = [extension for extension in fields if f".{extension}" in SUFFIXES]
    if len(images) > 1:
        raise DataError(
            f"{where} has several images (.{', .'.join(images)}); each needs a key of its own"
        )
    label = None
    for extension in _LABELS:
        if extension in fields:
            label = _label(where, extension, fields[extension], labels, label)
    if images:
        return fields[images[0]], label
    longer = [extension for extension in fields if extension not in _LABELS]
    if longer or label is not None:
        other = (
            f"only .{longer[0]}; a key ends at the first dot"
            if longer
            else f"only a label; known are {_KNOWN}"
        )
        raise DataError(f"{where} has no image, {other}")
    return None, None


_KNOWN = ", ".join(sorted(SUFFIXES))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping. Raises ValueError for a key that stands twice, of which a parser would
    silently take the last."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice")
    return mapping


def _label(
    where: str, extension: str, member: Member, labels: ObjectReader, known: int | None
) -> int | None:
    """Return the label in a field of a key, or `known`, the label that another field gave. Raises
    DataError."""
    if member.size > _LABELS[extension]:
        raise DataError(
            f"{where}.{extension} has {member.size:,} bytes; a label is read from at most "
            f"{_LABELS[extension]:,}"
        )
    labels.seek(member.offset)
    content = labels.read(member.size)
    value: Any = content
    try:
        if extension == "cls":
            value = content.decode("ascii").strip()
        else:
            fields = json.loads(content, object_pairs_hook=_once)
            named = [fields.get("label"), fields.get("cls")] if isinstance(fields, dict) else []
            value = next((v for v in named if v is not None), None)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}.{extension} is no label: {content[:40]!r}") from error
    if value is None:
        return known
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if type(value) is not int or value < 0:  # True is an int, and 1.9 could be made one
        raise DataError(
            f"{where}.{extension} is no label: {str(value)[:40]!r} is no whole number from 0 on"
        )
    if known is not None and value != known:
        raise DataError(f"{where} has two labels: {known} in .cls, {value} in .json")
    return value
