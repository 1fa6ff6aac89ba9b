"""Names of the classes: as the data has them (WordNet ids, for ImageNet) and as people say them."""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.images.tar_members import PlainHeader
from model.documents import MIB, read_file, show
from model.errors import DataError

# Bytes of a list of classes or labels, and of the devkit, packed and unpacked; it has 5 MiB.
_LARGEST = 64 * MIB
_CLASSES = 1000  # the devkit's table also lists inner nodes of the hierarchy behind them


@dataclass(frozen=True)
class ClassNames:
    """The classes in the order of their labels: label i is names[i]. titles: what people call them,
    or empty."""

    names: tuple[str, ...]
    titles: tuple[str, ...] = ()
    _labels: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.names:
            if not name.isascii() and name != name.encode(errors="ignore").decode():
                raise DataError(f"the name of the class {show(name)} is not UTF-8; rename it")
        object.__setattr__(self, "_labels", {name: i for i, name in enumerate(self.names)})
        if len(self._labels) != len(self.names):
            raise DataError("a class name stands twice in the list of classes")

    def label(self, name: str) -> int:
        """Return the label of a class. Raises DataError for a class that is not in the list."""
        try:
            return self._labels[name]
        except KeyError:
            raise DataError(
                f"the class {show(name)} is not among the {len(self.names)} named classes"
            ) from None


def read_class_names(path: Path) -> ClassNames:
    """Read a text file with one class a line, in the order of the labels: its name and, after a
    space, its title. Raises DataError."""
    rows = [line.split(maxsplit=1) for line in _lines(path)]
    titles = tuple(row[1] if len(row) > 1 else "" for row in rows)
    return ClassNames(tuple(row[0] for row in rows), titles if any(titles) else ())


def read_labels(path: Path) -> list[str]:
    """Read a text file with one class name a line. Raises DataError."""
    return [line.split()[0] for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    try:
        lines = [
            line.strip() for line in read_file(path, _LARGEST, DataError).decode().splitlines()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return [line for line in lines if line]


def read_devkit(path: Path) -> tuple[ClassNames, list[str]]:
    """Read ImageNet's development kit (ILSVRC2012_devkit_t12.tar.gz, or the folder in it).

    Returns the thousand classes sorted by WordNet id, and the class of each validation image in the
    order of the image names. Raises DataError.
    """
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(_devkit_file(path, "data/meta.mat")), squeeze_me=True)[
            "synsets"
        ][:_CLASSES]
        truth = _devkit_file(path, "data/ILSVRC2012_validation_ground_truth.txt").split()
        wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        titles = {str(row["WNID"]): str(row["words"]) for row in synsets}
        labels = [wordnet[int(number)] for number in truth]
    except DataError:
        raise
    except Exception as error:  # the reader may raise anything for a file that is no table
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is not ImageNet's development kit (ILSVRC2012_devkit_t12): {reason}"
        ) from error
    names = tuple(sorted(titles))
    return ClassNames(names, tuple(titles[name] for name in names)), labels


def _devkit_file(path: Path, name: str) -> bytes:
    if path.is_dir():
        return read_file(path / name, _LARGEST, DataError)
    packed = read_file(path, _LARGEST, DataError)
    unpacker = zlib.decompressobj(wbits=47)  # gzip
    content = unpacker.decompress(packed, _LARGEST) if packed.startswith(b"\x1f\x8b") else packed
    if unpacker.unconsumed_tail:
        raise DataError(
            f"{path} is not ImageNet's development kit: it unpacks to more than {_LARGEST // MIB} "
            "MiB"
        )
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:", tarinfo=PlainHeader) as tar:
        for member in tar:
            if member.name.endswith(name) and (file := tar.extractfile(member)) is not None:
                return file.read()
    raise KeyError(f"it holds no {name}")
