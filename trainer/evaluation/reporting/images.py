"""Images of the evaluations, made safe for a page that is passed on: decoded, and encoded anew."""

from __future__ import annotations

import base64
import io
import re
from typing import NamedTuple

from PIL import Image

from data_pipeline.storage import StorageError
from trainer.evaluation.benchmarks.base import ImageTitle
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.reporting.files import Unfit
from trainer.evaluation.reporting.records import ReportedResult, RunRecord
from trainer.formats import Weights

_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
# No separator: a file of that very folder.
_NAME = re.compile(rf"[\w][\w .=+-]*\.({'|'.join(_FORMATS)})", re.ASCII)
_MOST = 2**26  # bytes of a file
_PIXELS = 2**26
_LARGE = 3 * 2**20  # bytes; a larger one is compressed with loss
_GRIDS = 6  # samples over time: at most so many checkpoints


class Shown(NamedTuple):
    """An image on the page. data: its URI."""

    caption: str
    data: str


class Group(NamedTuple):
    """Images of one kind, with a title and a note on what they show."""

    title: str
    note: str
    shown: list[Shown]


def image_groups(run: RunRecord) -> list[Group]:
    """Group the images of a run by what they show, in the order of the registry.

    An image that its benchmark shows over time is taken from several checkpoints, another from the
    newest. What is no image is counted in run.left_out.
    """
    groups = []
    for benchmark, key, title in _titles():
        for weights in ("raw", "ema"):
            results = _with_image(run, benchmark, key, weights)
            chosen = _spread(results) if title.over_time else results[-1:]
            shown = _embedded(run, [(f"step {r.step:,}", r) for r in chosen], key)
            if shown and title.beside is not None:
                other, caption = title.beside
                newest = _with_image(run, benchmark, other, weights)[-1:]
                shown += _embedded(run, [(caption, r) for r in newest], other)
            if shown:
                whose = " of the EMA" if weights == "ema" else ""
                groups.append(Group(title.title + whose, title.note, shown))
    return groups


def _titles() -> list[tuple[str, str, ImageTitle]]:
    """(benchmark, key, title) of all images, first of the benchmarks that show some over time."""
    titles = [
        (name, key, title)
        for name, benchmark in BENCHMARKS.items()
        for key, title in benchmark.images.items()
    ]
    over_time = {name for name, _, title in titles if title.over_time}
    return sorted(titles, key=lambda image: image[0] not in over_time)


def _spread(results: list[ReportedResult]) -> list[ReportedResult]:
    """At most `_GRIDS` results, evenly spread; the last one is among them."""
    if not results:
        return []
    last = len(results) - 1
    chosen = {last - round(i * last / (_GRIDS - 1)) for i in range(_GRIDS)}
    return [results[i] for i in sorted(chosen)]


def _with_image(run: RunRecord, benchmark: str, key: str, weights: Weights) -> list[ReportedResult]:
    return [
        result
        for result in run.results
        if result.benchmark == benchmark and result.weights == weights and key in result.images
    ]


def _embedded(run: RunRecord, wanted: list[tuple[str, ReportedResult]], key: str) -> list[Shown]:
    shown = []
    for caption, result in wanted:
        name = result.images[key]
        try:
            if not _NAME.fullmatch(name):
                raise Unfit("is no name of an image beside its result")
            content = result.files.read(f"{result.folder}/{name}", _MOST)
            shown.append(Shown(caption, image_uri(content)))
        except (Unfit, StorageError) as error:
            where = f"{result.folder}/{result.benchmark}"
            run.left_out[f"{where}: the image {name[:200]!r}: {error}"] += 1
    return shown


def image_uri(content: bytes) -> str:
    """Encode an image anew, as a data URI.

    Raises Unfit for what cannot be decoded as an image of a bearable size.
    """
    data = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=sorted(set(_FORMATS.values()))) as opened:
            if opened.width * opened.height > _PIXELS:
                raise Unfit(f"{opened.width} x {opened.height} pixels are too many")
            image = opened.convert("RGB")
        image.save(data, "PNG")
        subtype = "png"
        if data.tell() > _LARGE and max(image.size) < 2**14:  # as far as WebP goes
            data, subtype = io.BytesIO(), "webp"
            image.save(data, "WEBP", quality=90)
    except Unfit:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise Unfit("cannot be decoded as an image") from error
    return f"data:image/{subtype};base64," + base64.b64encode(data.getvalue()).decode()
