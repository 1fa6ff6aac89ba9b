"""Where pictures come from: class folders, ImageNet's tars, WebDataset shards; each in a folder or on S3.

A source lists pictures one by one and holds none of them, so ten millions cost no memory here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from data_pipeline.class_names import ClassNames
from data_pipeline.pictures import Picture, PictureSource, Split, is_picture, of_split
from data_pipeline.storage import Entry, Store, open_store, split_url
from data_pipeline.tar_members import ObjectReader, members
from model.errors import DataError

Kind = Literal["folders", "imagenet-train", "imagenet-val", "webdataset"]
_WORDNET_TAR = re.compile(r"n\d{8}\.tar")


class Source(Protocol):
    """A listing. `classes` is complete once `pictures` was run through."""

    store: Store
    kind: Kind

    @property
    def classes(self) -> ClassNames: ...

    def pictures(self) -> Iterator[Picture]:
        """Every picture once, with labels that index `classes`."""


class ClassFolders:
    """CLASS/any/depth/picture.jpg; labels follow the sorted folder names, or the given class names."""

    kind: Kind = "folders"

    def __init__(self, store: Store, names: ClassNames | None = None) -> None:
        self.store = store
        folders = [name for name in store.folders() if not name.startswith(".")]
        if not folders:
            raise DataError(f"{store.url} holds no class folders; put the pictures into one folder for each class")
        self.classes = names or ClassNames(tuple(folders))

    def pictures(self) -> Iterator[Picture]:
        found = False
        for entry in self.store.list():
            folder, slash, _ = entry.name.partition("/")
            if slash and is_picture(entry.name) and not folder.startswith("."):
                found = True
                yield Picture(entry.name, self.classes.label(folder), entry.name, entry.size)
        if not found:
            raise DataError(f"{self.store.url} has class folders but no pictures in them")


class ImageNetTrain:
    """ILSVRC2012_img_train.tar: a tar of one tar for each class, named by its WordNet id; read in place."""

    kind: Kind = "imagenet-train"

    def __init__(self, store: Store, tar: Entry, names: ClassNames | None = None) -> None:
        self.store, self._tar = store, tar
        self._inner = [m for m in members(store, tar.name, tar.size) if m.name.endswith(".tar")]
        if not self._inner:
            raise DataError(f"{store.url}/{tar.name} holds no tar of a class; this is not ImageNet's training tar")
        self.classes = names or ClassNames(tuple(sorted(Path(m.name).stem for m in self._inner)))

    def pictures(self) -> Iterator[Picture]:
        for inner in self._inner:
            wordnet_id = Path(inner.name).stem
            label = self.classes.label(wordnet_id)
            for m in members(self.store, self._tar.name, inner.size, inner.offset):
                if is_picture(m.name):
                    yield Picture(f"{wordnet_id}/{m.name}", label, self._tar.name, m.size, m.offset)


class ImageNetVal:
    """ILSVRC2012_img_val.tar: a flat tar; labels come one a line, in the order of the names."""

    kind: Kind = "imagenet-val"

    def __init__(self, store: Store, tar: Entry, labels: list[str], names: ClassNames | None = None) -> None:
        self.store, self._tar = store, tar
        self._members = sorted(m for m in members(store, tar.name, tar.size) if is_picture(m.name))
        if len(labels) != len(self._members):
            raise DataError(
                f"{store.url}/{tar.name} has {len(self._members)} pictures, but {len(labels)} labels were given; "
                "give --labels a file with one class a line, in the order of the picture names"
            )
        self._labels = labels
        self.classes = names or ClassNames(tuple(sorted(set(labels))))

    def pictures(self) -> Iterator[Picture]:
        for m, name in zip(self._members, self._labels, strict=True):
            yield Picture(m.name, self.classes.label(name), self._tar.name, m.size, m.offset)


class WebDatasetShards:
    """*.tar with KEY.jpg (or another picture) and its label beside it: KEY.cls, or "label" or "cls" in KEY.json."""

    kind: Kind = "webdataset"

    def __init__(self, store: Store, tars: list[Entry], names: ClassNames | None = None) -> None:
        self.store, self._tars = store, tars
        self._named = names
        self._largest = -1

    @property
    def classes(self) -> ClassNames:
        return self._named or ClassNames(tuple(str(i) for i in range(self._largest + 1)))

    def pictures(self) -> Iterator[Picture]:
        for tar in self._tars:
            for key, picture, label in self._samples(tar):
                if picture is None:
                    continue
                if label is None:
                    raise DataError(f"{self.store.url}/{tar.name}: {key} has no label (.cls, or label in .json)")
                if self._named and label >= len(self._named.names):
                    raise DataError(
                        f"{tar.name}: {key} has label {label}, but {len(self._named.names)} classes are named"
                    )
                self._largest = max(self._largest, label)
                yield picture._replace(label=label)

    def _samples(self, tar: Entry) -> Iterator[tuple[str, Picture | None, int | None]]:
        """(key, picture, label) of each run of members with one key, as WebDataset groups them."""
        labels = ObjectReader(self.store, tar.name, tar.size)
        now, picture, label = "", None, None
        for m in members(self.store, tar.name, tar.size):
            folder, slash, base = m.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}{slash}{stem}"
            if key != now:
                if now:
                    yield now, picture, label
                now, picture, label = key, None, None
            if is_picture(m.name):
                picture = Picture(f"{tar.name}/{m.name}", 0, tar.name, m.size, m.offset)
            elif extension.lower() in ("cls", "json"):
                labels.seek(m.offset)
                label = _label(labels.read(m.size), extension.lower(), f"{tar.name}/{m.name}", label)
        if now:
            yield now, picture, label


def _label(content: bytes, extension: str, where: str, known: int | None) -> int | None:
    try:
        if extension == "cls":
            label = int(content)
        else:
            fields = json.loads(content)
            found = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
            if found is None:
                return known
            label = int(found)
    except ValueError as error:
        raise DataError(f"{where} is no label: {content[:40]!r}") from error
    if label < 0:
        raise DataError(f"{where}: the label {label} is negative")
    return label


def open_source(url: str | Path, names: ClassNames | None = None, labels: list[str] | None = None) -> Source:
    """The source at a folder, a tar, or the same on `s3://`; what it holds decides its kind.

    names: class names and their order (else: what is found, sorted). labels: of a validation tar, class by class.
    Raises DataError for what is no source, StorageError where it cannot be reached.
    """
    if str(url).endswith(".tar"):
        folder, name = split_url(url)
        store = open_store(folder)
        entry = next((e for e in store.list(name) if e.name == name), None)
        if entry is None:
            raise DataError(f"there is no tar {url}")
        first = next(members(store, entry.name, entry.size), None)
        if first is None:
            raise DataError(f"{url} is empty")
        if _WORDNET_TAR.fullmatch(Path(first.name).name):
            return ImageNetTrain(store, entry, names)
        if labels is not None:
            return ImageNetVal(store, entry, labels, names)
        return WebDatasetShards(store, [entry], names)
    store = open_store(url)
    if store.folders():
        return ClassFolders(store, names)
    tars = sorted(e for e in store.list() if e.name.endswith(".tar"))
    if tars:
        return WebDatasetShards(store, tars, names)
    raise DataError(f"{url} holds neither class folders nor tars; docs/tokenize.md shows what a source looks like")


def split_of(root: Path | str, split: Split = "all", held_out: float = 0.1) -> PictureSource:
    """The pictures of one split of a source, in memory (their names, not their pixels).

    Raises DataError for what is no source, one without pictures, or a split left empty.
    """
    source = open_source(root)
    pictures = tuple(sorted(of_split(source.pictures(), split, held_out)))
    if not pictures:
        raise DataError(f"the {split} split of {root} is empty; more pictures, or another held-out share, are needed")
    return PictureSource(source.store, pictures, source.classes.names)
