"""Where images come from: class folders, ImageNet's tars, WebDataset shards; each in a folder or on
S3. Tars also come from other urls that webdataset opens.

A source lists images one by one and holds none of them, so ten million images cost no memory here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from data_pipeline.images.class_names import ClassNames
from data_pipeline.images.images import ImageEntry, ImageSource, is_image
from data_pipeline.images.location import locate, recorded, tars_in
from data_pipeline.images.split import Split, of_split
from data_pipeline.images.streamed import StreamedShards, gathered, only_streams
from data_pipeline.images.tar_members import members
from data_pipeline.images.webdataset_shards import WebDatasetShards
from data_pipeline.storage import Entry, Store
from data_pipeline.storage.urls import UrlStore
from model.errors import DataError

SourceKind = Literal["folders", "imagenet-train", "imagenet-val", "webdataset"]
_WORDNET_TAR = re.compile(r"n\d{8}\.tar")


class Source(Protocol):
    """A listing of images. `classes` is complete once `images` was run through."""

    store: Store

    @property
    def kind(self) -> SourceKind:
        """The kind of layout that was recognised."""

    @property
    def classes(self) -> ClassNames:
        """The classes in the order of their labels."""

    def images(self) -> Iterator[ImageEntry]:
        """Yield every image once, with labels that index `classes`. Raises DataError and
        StorageError."""


class ClassFolders:
    """Images in class folders: CLASS/any/depth/image.jpg. Labels follow the sorted folder names, or
    the given names."""

    kind: SourceKind = "folders"

    def __init__(self, store: Store, names: ClassNames | None = None) -> None:
        self.store = store
        folders = [name for name in store.folders() if not name.startswith(".")]
        if not folders:
            raise DataError(
                f"{store.url} holds no class folders; put the images into one folder for each class"
            )
        self.classes = names or ClassNames(tuple(folders))

    def images(self) -> Iterator[ImageEntry]:
        any_image = False
        for entry in self.store.list():
            folder, slash, _ = entry.name.partition("/")
            if slash and is_image(entry.name) and not folder.startswith("."):
                any_image = True
                yield ImageEntry(entry.name, self.classes.label(folder), entry.name, entry.size)
        if not any_image:
            raise DataError(f"{self.store.url} has class folders but no images in them")


class ImageNetTrain:
    """ILSVRC2012_img_train.tar: a tar that holds one tar for each class, named by its WordNet id.
    The images are read in place."""

    kind: SourceKind = "imagenet-train"

    def __init__(self, store: Store, tar: Entry, names: ClassNames | None = None) -> None:
        self.store, self._tar = store, tar
        self._inner = list(
            members(store, tar.name, tar.size, wanted=lambda name: name.endswith(".tar"))
        )
        if not self._inner:
            raise DataError(
                f"{store.url}/{tar.name} holds no tar of a class; this is not ImageNet's training "
                "tar"
            )
        self.classes = names or ClassNames(tuple(sorted(Path(m.name).stem for m in self._inner)))

    def images(self) -> Iterator[ImageEntry]:
        for inner in self._inner:
            wordnet_id = Path(inner.name).stem
            label = self.classes.label(wordnet_id)
            for m in members(self.store, self._tar.name, inner.size, inner.offset, is_image):
                yield ImageEntry(f"{wordnet_id}/{m.name}", label, self._tar.name, m.size, m.offset)


class ImageNetVal:
    """ILSVRC2012_img_val.tar: a flat tar. labels: the class of each image, in the order of the
    image names."""

    kind: SourceKind = "imagenet-val"

    def __init__(
        self, store: Store, tar: Entry, labels: list[str], names: ClassNames | None = None
    ) -> None:
        self.store, self._tar = store, tar
        self._members = sorted(members(store, tar.name, tar.size, wanted=is_image))
        if len(labels) != len(self._members):
            raise DataError(
                f"{store.url}/{tar.name} has {len(self._members)} images, but {len(labels)} labels "
                "were given; give --labels a file with one class a line, in the order of the image "
                "names"
            )
        self._labels = labels
        self.classes = names or ClassNames(tuple(sorted(set(labels))))

    def images(self) -> Iterator[ImageEntry]:
        for m, name in zip(self._members, self._labels, strict=True):
            yield ImageEntry(m.name, self.classes.label(name), self._tar.name, m.size, m.offset)


def open_source(
    url: str | Path,
    names: ClassNames | None = None,
    labels: list[str] | None = None,
    *,
    commands: bool = False,
) -> Source:
    """Open the source at a folder, a tar, or a list of tars in braces, on disk, on `s3://` or at
    another url; what it holds decides its kind. What cannot be read by range is WebDataset shards.

    names: class names in the order of the labels; else the sorted names of the data. labels: the
    classes of a validation tar's images, in the order of the image names. commands: as for
    `locate`. Raises DataError for what is no source, StorageError if it cannot be reached,
    ConfigError for a command that is not allowed.
    """
    location = locate(url, commands=commands)
    store = location.store
    if location.tars:
        tars = tars_in(location)
        if isinstance(store, UrlStore) and only_streams(store):
            if labels is not None:
                raise DataError(
                    f"{store.url} cannot be read by range, as labels for its images need; copy the "
                    "tar into a folder"
                )
            return StreamedShards(store, names)
        return _of_tars(store, tars, names, labels)
    if any(not folder.startswith(".") for folder in store.folders()):
        return ClassFolders(store, names)
    tars = sorted(e for e in store.list() if e.name.endswith(".tar"))
    if tars:
        return _of_tars(store, tars, names, labels)
    raise DataError(
        f"{url} holds neither class folders nor tars; docs/tokenize.md shows what a source looks "
        "like"
    )


def _of_tars(
    store: Store, tars: list[Entry], names: ClassNames | None, labels: list[str] | None
) -> Source:
    if len(tars) > 1:
        return WebDatasetShards(store, tars, names)
    listing = members(
        store, *tars[0][:2], wanted=lambda name: is_image(name) or name.endswith(".tar")
    )
    first = next(listing, None)
    if first is None:
        raise DataError(f"{store.url}/{tars[0].name} holds no images")
    if _WORDNET_TAR.fullmatch(Path(first.name).name):
        return ImageNetTrain(store, tars[0], names)
    if labels is not None:
        return ImageNetVal(store, tars[0], labels, names)
    return WebDatasetShards(store, tars, names)


def split_of(
    root: Path | str, split: Split = "all", held_out: float = 0.1, *, commands: bool = False
) -> ImageSource:
    """Return the images of one split of a source (their names, not their pixels). commands: as for
    `locate`. Raises DataError for what is no source, a source without images, or an empty split."""
    source = open_source(root, commands=commands)
    images = tuple(sorted(of_split(source.images(), split, held_out)))
    if not images:
        raise DataError(
            f"the {split} split of {recorded(root)} is empty; more images, or another held-out "
            "share, are needed"
        )
    return ImageSource(gathered(source.store, images), images, source.classes.names)
