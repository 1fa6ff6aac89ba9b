"""Images of the evaluations, made safe for a page that is passed on: decoded, and encoded anew."""

from __future__ import annotations

import base64
import io
import re
from typing import NamedTuple

from PIL import Image

from data_pipeline.storage import StorageError
from trainer.evaluation.reporting.files import Unfit
from trainer.evaluation.reporting.records import Result, RunRecord
from trainer.run_folder import Weights

_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
_NAME = re.compile(
    rf"[\w][\w .=+-]*\.({'|'.join(_FORMATS)})", re.ASCII
)  # no separator: a file of that very folder
_MOST = 2**26  # bytes of a file
_PIXELS = 2**26
_LARGE = 3 * 2**20  # bytes; a larger one is compressed with loss
_GRIDS = 6  # samples over time: at most so many checkpoints
_TITLES = {  # in the order of the page
    ("samples", ""): ("Samples", "Generated from nothing but masked tokens; none was chosen."),
    ("samples", "steps"): (
        "How they come about",
        "One sample a row, its denoising steps from left to right.",
    ),
    ("held-out", "x_t"): (
        "What ADDP sees",
        "Held-out images, from left: the image; decoded with 99, 90, 75, 60 and 51 % of its tokens "
        "unreliable (the predictor's expected codes); decoded from all its own tokens.",
    ),
    ("held-out", "reconstructions"): (
        "Reconstructions",
        "Held-out images; below, what the tokenizer keeps.",
    ),
}
_REAL = "real"  # key of the real images beside samples


class Shown(NamedTuple):
    """data: the image as URI."""

    caption: str
    data: str


class Group(NamedTuple):
    title: str
    note: str
    shown: list[Shown]


def image_groups(run: RunRecord) -> list[Group]:
    """By what they show: samples over time and real images beside them, of the others the latest.
    What is no image is counted in run.left_out."""
    groups = []
    for (part, key), (title, note) in _TITLES.items():
        for weights in ("raw", "ema"):
            found = _with_image(run, part, key, weights)
            last, most = len(found) - 1, 1 if key else _GRIDS
            chosen = (
                sorted({last - round(i * last / max(1, most - 1)) for i in range(most)})
                if found
                else []
            )
            shown = _embedded(run, [(f"step {found[i].step:,}", found[i]) for i in chosen], key)
            if shown and not key:
                shown += _embedded(
                    run,
                    [
                        ("real images, held out", r)
                        for r in _with_image(run, part, _REAL, weights)[-1:]
                    ],
                    _REAL,
                )
            if shown:
                groups.append(
                    Group(title + (" of the average" if weights == "ema" else ""), note, shown)
                )
    return groups


def _with_image(run: RunRecord, part: str, key: str, weights: Weights) -> list[Result]:
    return [r for r in run.results if r.part == part and r.weights == weights and key in r.images]


def _embedded(run: RunRecord, wanted: list[tuple[str, Result]], key: str) -> list[Shown]:
    shown = []
    for caption, result in wanted:
        name = result.images[key]
        try:
            if not _NAME.fullmatch(name):
                raise Unfit("is no name of an image beside its result")
            shown.append(
                Shown(caption, image_uri(result.files.read(f"{result.folder}/{name}", _MOST)))
            )
        except (Unfit, StorageError) as error:
            run.left_out[f"{result.folder}/{result.part}: the image {name[:200]!r}: {error}"] += 1
    return shown


def image_uri(content: bytes) -> str:
    """Raises Unfit for what cannot be decoded as an image of a bearable size."""
    data = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=sorted(set(_FORMATS.values()))) as opened:
            if opened.width * opened.height > _PIXELS:
                raise Unfit(f"{opened.width} x {opened.height} pixels are too many")
            image = opened.convert("RGB")
        image.save(data, "PNG")
        kind = "png"
        if data.tell() > _LARGE and max(image.size) < 2**14:  # as far as WebP goes
            data, kind = io.BytesIO(), "webp"
            image.save(data, "WEBP", quality=90)
    except Unfit:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise Unfit("cannot be decoded as an image") from error
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode()
