"""How well a segmenter labels the pixels of ADE20k, or of data in its layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.annotations.ade20k import LabelledImage, SegmentationListing, SegmentationSource
from data_pipeline.annotations.ade20k_classes import BACKGROUND
from data_pipeline.annotations.painting import Thing, regions_of
from data_pipeline.annotations.recipes import SegmentationRecipe
from data_pipeline.annotations.segmentation_crop import IGNORE, resized_for_evaluation
from data_pipeline.images.images import BadImage
from data_pipeline.images.location import locate
from model.dense.segmenter import Segmenter
from model.errors import ConfigError, DataError
from trainer.evaluation.benchmarks.base import Outcome
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.confusion import Counts, class_scores, confusion, scores
from trainer.evaluation.measures.pictures import Row, compared, shown_rows
from trainer.evaluation.options import ResolvedOptions
from trainer.evaluation.results import CLASSES
from trainer.evaluation.task import Task

_CLASSES_TOGETHER = 16  # whose logits are in memory at the size of the image
WAYS = ("", "whole_")  # the windows, and the whole image; they begin the names of metrics


def measure(task: Task) -> Outcome:
    """Segment the annotated images, by all ranks together, and compare pixel by pixel. Raises
    ADDPError, also for a class that the segmenter does not know."""
    network, location = task.network, task.options.ade20k
    assert isinstance(network, Segmenter)
    if location is None:
        raise ConfigError("segmentation needs --ade20k, annotated images in ADE20k's layout")
    listing = task.annotations("ade20k", location)
    assert isinstance(listing, SegmentationListing)
    source = SegmentationSource(locate(location).store, listing)
    seen = _Segmentation(network, listing.classes, task.options, task.device)
    documents = task.over_kept("segmentation", location, len(source), source.read, seen.document)
    counts = {way: _added([one[way] for one in documents], seen.classes) for way in WAYS}
    images = torch.tensor(sum(one["images"] for one in documents))
    totals = {way: task.collectives.sum(torch.from_numpy(c)).numpy() for way, c in counts.items()}
    read = int(task.collectives.sum(images))
    if not totals[""].any():
        found = "has a pixel that counts" if read else "can be read"
        raise DataError(f"none of the {len(source)} images of {location} {found}")
    classes = network.config.classes
    metrics: dict[str, Any] = {
        f"{way}{name}": value
        for way, total in totals.items()
        for name, value in scores(total).items()
    }
    metrics |= {"images": read, "unread": len(source) - read}
    metrics[CLASSES] = class_scores(totals[""], classes)
    for name, of_class in class_scores(totals["whole_"], classes).items():
        metrics[CLASSES].setdefault(name, {})["whole_iou"] = of_class["iou"]

    def pictures() -> dict[str, bytes]:
        rows = (seen.row(source, number) for number in shown_rows(len(source)))
        return compared([row for row in rows if row], classes)

    return Outcome(metrics, task.collectives.broadcast_from_rank0(pictures))


class _Segmentation:
    """A segmenter, and how images are shown to it. of_data: the classes of the data."""

    def __init__(
        self,
        network: Segmenter,
        of_data: tuple[str, ...],
        options: ResolvedOptions,
        device: torch.device,
    ) -> None:
        self._network, self._device = network, device
        self.classes = len(network.config.classes)
        self._labels = np.full(IGNORE + 1, -1, np.int64)
        self._labels[: len(of_data)] = labels_in(network.config.classes, of_data)
        assert options.window and options.short_side and options.long_side  # the run's at least
        if options.long_side < options.short_side:
            raise ConfigError(
                f"--long-side {options.long_side} is less than --short-side {options.short_side}"
            )
        self._recipe = SegmentationRecipe(
            size=options.window, short_side=options.short_side, long_side=options.long_side
        )
        self._stride = options.window_stride or max(1, options.window * 2 // 3)
        if self._stride > options.window:
            raise ConfigError(
                f"--window-stride {self._stride} is more than --window {options.window}: some "
                "pixels would lie in no window"
            )

    def document(self, images: list[LabelledImage]) -> dict[str, Any]:
        """Return how many images there are, and by ways the counts that are not zero:
        [places in the flattened matrix, counts]."""
        counts = dict.fromkeys(WAYS, np.zeros((self.classes, self.classes), np.int64))
        for image in images:
            truth = self._labels[image.labels]
            for way, predicted in self._predicted(image).items():
                counts[way] = counts[way] + confusion(truth, predicted, self.classes)
        document: dict[str, Any] = {"images": len(images)}
        for way, matrix in counts.items():
            places = np.flatnonzero(matrix)
            document[way] = [places.tolist(), matrix.ravel()[places].tolist()]
        return document

    def row(self, source: SegmentationSource, number: int) -> Row | None:
        """Return an image with its truth and what the windows find; None where it cannot be
        read."""
        try:
            image = source.read(number)
        except BadImage:  # which was reported
            return None
        truth, predicted = self._labels[image.labels], self._predicted(image)[""]
        return Row(image.image, self._regions(truth), self._regions(predicted))

    def _regions(self, labels: NDArray[np.int64]) -> list[Thing]:
        """Return what is painted: all classes but one that is named background."""
        names = self._network.config.classes
        return [thing for thing in regions_of(labels) if names[thing.label] != BACKGROUND]

    @torch.no_grad()
    def _predicted(self, image: LabelledImage) -> dict[str, NDArray[np.int64]]:
        """Return the label of each pixel of the image as it is stored, by ways."""
        resized = resized_for_evaluation(image.image, self._recipe)
        pixels = torch.from_numpy(resized).to(self._device)[None].float() / 255
        size = image.labels.shape[0], image.labels.shape[1]
        windows = self._network.sliding_logits(pixels, self._recipe.size, self._stride)
        return {"": _largest(windows, size), "whole_": _largest(self._network.logits(pixels), size)}


def _largest(logits: Tensor, size: tuple[int, int]) -> NDArray[np.int64]:
    """Resize the logits (1, C, h, w) of an image, and return the class of the largest at each
    pixel, int64 `size`. Of equal ones, it is the first."""
    best = label = None
    for start in range(0, logits.shape[1], _CLASSES_TOGETHER):
        some = logits[:, start : start + _CLASSES_TOGETHER]
        resized = F.interpolate(some, size, mode="bilinear", align_corners=False)
        value, index = resized[0].max(0)
        if best is None or label is None:
            best, label = value, index
        else:
            label = torch.where(value > best, index + start, label)
            best = torch.maximum(value, best)
    assert label is not None
    return label.cpu().numpy()


def _added(parts: list[list[list[int]]], classes: int) -> Counts:
    """Add counts up, each as [places in the flattened matrix, counts]."""
    total = np.zeros(classes**2, np.int64)
    for places, counts in parts:
        total[places] += np.array(counts, np.int64)
    return total.reshape(classes, classes)
