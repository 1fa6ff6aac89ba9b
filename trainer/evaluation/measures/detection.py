"""How well a detector finds the objects of COCO, or of data in its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.annotations.painting import Thing
from data_pipeline.annotations.placement import Placement, fitted
from data_pipeline.annotations.pycoco import mask_of_rings, packed_masks
from data_pipeline.annotations.run_lengths import mask_of_runs, parse_runs
from data_pipeline.images.images import BadImage
from data_pipeline.images.location import locate
from data_pipeline.streaming.detection_loader import DetectionSource
from model.dense.detector import Detector
from model.dense.regions import pasted
from model.errors import ConfigError, DataError
from trainer.evaluation.benchmarks.base import Outcome
from trainer.evaluation.measures.average_precision import average_precision
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.pictures import Row, compared, shown_rows
from trainer.evaluation.results import CLASSES
from trainer.evaluation.task import Task

if TYPE_CHECKING:
    from model.dense.mask_rcnn import Found

Record = dict[str, Any]  # an object that was found, in the form of COCO's results
Document = dict[str, Any]  # of a chunk: the rows that were read, and the records of what was found


def measure(task: Task) -> Outcome:
    """Find the objects of the annotated images, by all ranks together, and let pycocotools compare
    them on rank 0. Raises ADDPError, also for a class that the detector does not know."""
    network, location = task.network, task.options.coco
    assert isinstance(network, Detector)
    if location is None:
        raise ConfigError("detection needs --coco, annotated images in COCO's layout")
    index = task.annotations("coco", location)
    assert isinstance(index, CocoIndex)
    source = DetectionSource(locate(location).store, index)
    seen = CocoPredictor(network, source, task.device)
    documents = task.over_kept("detection", location, len(index.images), seen.read, seen.document)
    told = task.collectives.collect(documents)
    return task.collectives.broadcast_from_rank0(
        lambda: _outcome(seen, [document for of_rank in told for document in of_rank], location)
    )


def _outcome(seen: CocoPredictor, documents: list[Document], location: str) -> Outcome:
    """Compare what all ranks have found with the truth. Raises DataError where there is none."""
    index = seen.source.index
    rows = sorted(row for document in documents for row in document["rows"])
    if not rows:
        raise DataError(f"none of the {len(index.images)} images of {location} can be read")
    found = [record for document in documents for record in document["found"]]
    row_of = {number: row for row, number in enumerate(index.image_ids.tolist())}
    found.sort(key=lambda record: row_of[record["image_id"]])  # the same for any number of ranks
    truth = index.ground_truth(np.array(rows))
    totals, of_classes = average_precision(
        truth, found, index.classes, masks=index.shapes is not None
    )
    if not totals:
        raise DataError(f"no image of {location} has an annotation of a single thing")
    metrics: dict[str, Any] = {
        **totals,
        "images": len(rows),
        "unread": len(index.images) - len(rows),
        "objects": sum(not one["iscrowd"] for one in truth["annotations"]),
        CLASSES: of_classes,
    }
    shown = (seen.row(number, found) for number in shown_rows(len(index.images)))
    return Outcome(metrics, compared([row for row in shown if row], index.classes))


class _Seen(NamedTuple):
    """An image in the square that the network sees: uint8 (3, S, S)."""

    row: int
    pixels: NDArray[np.uint8]
    placement: Placement


class CocoPredictor:
    """A detector, and how images are shown to it."""

    def __init__(self, network: Detector, source: DetectionSource, device: torch.device) -> None:
        self._network, self.source, self._device = network, source, device
        windows = network.config.backbone.windows
        self._side = windows.image_size if windows else network.geometry.image_size
        index = source.index
        labels = labels_in(network.config.classes, index.classes)
        # By labels of the network; it may know classes that the data do not have.
        self._category = dict(zip(labels, index.category_ids.tolist(), strict=True))
        self._label = {number: i for i, number in enumerate(index.category_ids.tolist())}

    def read(self, row: int) -> _Seen:
        """Read an image. Raises BadImage."""
        image = self.source.image(row)
        placement = fitted(*image.size, self._side)
        pixels = placement.padded(placement.cut(image, Image.Resampling.BILINEAR))
        return _Seen(row, pixels, placement)

    def document(self, images: list[_Seen]) -> Document:
        """Return the rows of the images, and what is found in them, in the form of COCO's
        results."""
        if not images:
            return {"rows": [], "found": []}
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        sizes = [image.placement.seen for image in images]
        found = self._network.detect(pixels.to(self._device).float() / 255, sizes)
        records = [
            record
            for image, of_image in zip(images, found, strict=True)
            for record in self._records(image, of_image)
        ]
        return {"rows": [image.row for image in images], "found": records}

    def _records(self, image: _Seen, found: Found) -> list[Record]:
        """Put what is found into the coordinates of the image as it is stored. Boxes without an
        area there are left out, as in detectron2, and classes that the data do not have."""
        width, height = image.placement.width, image.placement.height
        corners = image.placement.restored(found.boxes.double().cpu().numpy().reshape(-1, 2, 2))
        corners = corners.clip(0, (width, height))
        sides = corners[:, 1] - corners[:, 0]
        labels = found.labels.tolist()
        keep = [
            i for i in range(len(labels)) if labels[i] in self._category and (sides[i] > 0).all()
        ]
        records: list[Record] = [
            {
                "image_id": int(self.source.index.image_ids[image.row]),
                "category_id": self._category[labels[i]],
                "bbox": [*corners[i, 0].tolist(), *sides[i].tolist()],
                "score": float(found.scores[i]),
            }
            for i in keep
        ]
        if self.source.index.shapes is not None and keep:
            boxes = torch.from_numpy(corners[keep].reshape(-1, 4)).float().to(found.masks.device)
            # One by one: a hundred masks of a photograph of 12 megapixels take a GiB.
            for record, mask, box in zip(records, found.masks[keep], boxes, strict=True):
                whole = pasted(mask[None], box[None], (height, width)).cpu().numpy()
                (counts,) = packed_masks(whole)
                record["segmentation"] = {"size": [height, width], "counts": counts}
        return records

    def row(self, number: int, found: list[Record]) -> Row | None:
        """Return an image with its truth, and the surest of what was found: as many as are
        annotated, but one at least. None where it cannot be read."""
        try:
            image = self.source.image(number)
        except BadImage:  # which was reported
            return None
        annotated = self.source.index.annotated(number)
        size = annotated.height, annotated.width
        truth = []
        for i, label in enumerate(annotated.labels.tolist()):
            mask = None
            if annotated.shapes is not None:
                shape = annotated.shapes[i]
                if isinstance(shape, list):
                    mask = mask_of_rings(shape, *size).astype(bool)
                else:
                    mask = mask_of_runs(shape, *size).astype(bool)
            truth.append(Thing(label, mask, tuple(annotated.boxes[i].tolist())))
        predicted = []
        here = [record for record in found if record["image_id"] == annotated.image_id]
        surest = here[: max(1, len(truth))]  # a fixed score would show nothing of a weak network
        for record in reversed(surest):  # the surest lies on top
            mask = None
            if "segmentation" in record:
                runs = np.array(parse_runs(record["segmentation"]["counts"]), np.uint32)
                mask = mask_of_runs(runs, *size).astype(bool)
            label = self._label[record["category_id"]]
            predicted.append(Thing(label, mask, tuple(record["bbox"])))
        return Row(image, truth, predicted)
