from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.annotations.pycoco import mask_of_rings
from data_pipeline.annotations.run_lengths import mask_of_runs
from data_pipeline.storage import open_store
from model.errors import DataError
from tests.data_pipeline.annotations.small_data import (
    annotation,
    changed,
    coco,
    with_document,
    write,
)
from tests.tars import tar_of


def read(root: Path, document: dict[str, Any], **options: Any) -> CocoIndex:
    files, _ = coco()
    return read_coco(write(root, with_document(files, document)), "train", **options)


def test_a_split_is_read(tmp_path: Path) -> None:
    index = read(tmp_path, coco()[1])
    assert index.classes == ("car", "kite") and index.category_ids.tolist() == [3, 7]
    assert index.image_ids.tolist() == [97, 98, 99, 100]
    assert [image.id for image in index.images] == [f"{i:012d}.png" for i in (3, 2, 1, 0)]
    found = index.annotated(0)
    assert (found.image_id, found.height, found.width) == (97, 48, 67)
    assert found.ids.tolist() == [30, 31, 32] and found.labels.tolist() == [1, 0, 0]
    assert found.crowd.tolist() == [False, False, True]
    assert found.boxes[1].tolist() == [40, 8, 20, 22]
    assert found.without_crowds().ids.tolist() == [30, 31]
    assert index.rows_with_instances().tolist() == [0, 1, 2, 3]
    assert not index.problems.counts and not index.image_problems.counts
    sent = pickle.loads(pickle.dumps(index))  # as rank 0 sends it to the others
    assert sent.fingerprint() == index.fingerprint()


@pytest.mark.parametrize("place", ["s3", "tars"])
def test_where_it_may_lie(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    files, document = coco()
    url = f"{request.getfixturevalue('bucket')}/coco" if place == "s3" else str(tmp_path / "coco")
    store = open_store(url)
    stored = with_document(files, document)
    if place == "tars":  # as they are distributed: one for images, one for annotations
        stored = {
            "train2017.tar": tar_of({f"./{name}": content for name, content in files.items()}),
            "annotations.tar": tar_of({n: c for n, c in stored.items() if n not in files}),
        }
    for name, content in stored.items():
        store.create(name, content)
    there = read_coco(url, "train2017").fingerprint()
    assert there == read(tmp_path / "folder", document).fingerprint()


def test_ground_truth_is_the_document(tmp_path: Path) -> None:
    """And pycocotools sees the same masks in it as the index has."""
    document = coco()[1]
    index = read(tmp_path, document, exact=True)
    truth = index.ground_truth(np.arange(4))
    for key in ("annotations", "categories"):
        expected = sorted(document[key], key=lambda record: record["id"])
        assert sorted(truth[key], key=lambda record: record["id"]) == expected
    reference = COCO()
    reference.dataset = json.loads(json.dumps(truth))
    reference.createIndex()
    for row in range(4):
        found = index.annotated(row)
        assert found.shapes is not None
        for number, shape in zip(found.ids.tolist(), found.shapes, strict=True):
            size = found.height, found.width
            mask = (
                mask_of_rings(shape, *size)
                if isinstance(shape, list)
                else mask_of_runs(shape, *size)
            )
            assert np.array_equal(mask, reference.annToMask(reference.anns[number]))
            assert mask.any()


RLE = {"size": [48, 64], "counts": [48 * 64]}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": None}, "annotation without id, image_id"),
    "an id that is no number": ({"id": "1"}, "annotation without id, image_id"),
    "an id beyond 64 bits": ({"id": 2**63}, "annotation without id, image_id"),
    "the id of another": ({"id": 0}, "id of an annotation that stands twice"),
    "no image": ({"image_id": None}, "annotation without id, image_id"),
    "an image that is not listed": ({"image_id": 5}, "annotation of an image that is not listed"),
    "a class that is not listed": ({"category_id": 5}, "annotation of a class that is not listed"),
    "iscrowd of 2": ({"iscrowd": 2}, "or iscrowd of 0 or 1"),
    "no box": ({"bbox": None}, "annotation without a box of four numbers"),
    "a box of three numbers": ({"bbox": [1, 2, 3]}, "annotation without a box of four numbers"),
    "a box of text": ({"bbox": ["1", 2, 3, 4]}, "annotation without a box of four numbers"),
    "an infinite box": ({"bbox": [1, 2, 1e999, 4]}, "annotation without a box of four numbers"),
    "a box without width": ({"bbox": [1, 2, 0, 4]}, "box without area"),
    "a box of negative height": ({"bbox": [1, 2, 3, -4]}, "box without area"),
    "a box beside its image": ({"bbox": [64, 2, 3, 4]}, "box outside of its image"),
    "a negative area": ({"area": -1}, "area that is no number"),
    "polygons of two corners": ({"segmentation": [[1, 2, 3, 4]]}, "without a polygon of three"),
    "half a corner": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "without a polygon of three"),
    "corners of text": ({"segmentation": [["1"] * 6]}, "without a polygon of three"),
    "a corner far away": ({"segmentation": [[1, 2, 3, 4, 1e9, 6]]}, "polygon far outside"),
    "a text as outline": ({"segmentation": "x"}, "neither polygons nor an RLE"),
    "no outline": ({"segmentation": None}, "annotation without an outline, although"),
    "no polygons": ({"segmentation": []}, "annotation without an outline, although"),
    "an RLE without size": ({"segmentation": {"counts": [1]}}, "RLE without a size"),
    "an RLE that is no RLE": ({"segmentation": {**RLE, "counts": "~"}}, "does not decode"),
    "a short RLE": ({"segmentation": {**RLE, "counts": [5]}}, "runs do not fill its size"),
    "a long RLE": ({"segmentation": {**RLE, "counts": [5000]}}, "runs do not fill its size"),
    "another size": (
        {"segmentation": {"size": [64, 48], "counts": [48 * 64]}},
        "RLE of another size than its image",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_annotation_is_left_out_and_counted(fault: str, tmp_path: Path) -> None:
    fields, reason = FAULTS[fault]
    index = read(tmp_path, changed(coco()[1], **fields))
    (text, count), *others = [
        (text, count)
        for text, count in index.problems.counts.items()
        if "polygon of fewer" not in text
    ]
    assert reason in text and count == 1 and not others and index.problems.lost == 1
    row = index.image_ids.tolist().index(100)
    assert index.annotated(row).ids.tolist() == [0, 2]


def test_what_is_mended_or_of_no_consequence_is_counted_too(tmp_path: Path) -> None:
    document = changed(
        coco()[1], bbox=[40, 10, 40, 20], segmentation=[[1, 1, 5, 1, 5, 9], [1, 2, 3, 4]]
    )
    index = read(tmp_path, document)
    assert dict(index.problems.counts) == {
        "box that reaches out of its image": 1,
        "polygon of fewer than three corners": 1,
    }
    shapes = index.annotated(3).shapes
    assert shapes is not None and len(shapes[1]) == 1
    assert index.problems.lost == 0


def test_images_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    document = coco()[1]
    document["images"] += [
        {"id": 100, "file_name": "again.png", "width": 64, "height": 48},
        {"id": 7, "file_name": "../secret.png", "width": 64, "height": 48},
        {"id": 8, "file_name": "x.png", "width": 0, "height": 48},
    ]
    document["annotations"].append(annotation(900, 7, 3, [[1, 1, 5, 1, 5, 9]]))
    index = read(tmp_path, document, bad_limit=0.5)
    assert index.image_ids.tolist() == [97, 98, 99, 100]
    assert dict(index.image_problems.counts) == {
        "record of an image without id, file_name, height or width": 1,
        "id of an image that stands twice": 1,
        "image that is not in train2017/": 1,
    }
    assert dict(index.problems.counts) == {"annotation of an image that is left out": 1}
    with pytest.raises(DataError, match=r"images: 3 of 7 cannot be used.*secret"):
        read(tmp_path, document)


def test_images_without_single_things_are_kept_but_not_for_training(tmp_path: Path) -> None:
    document = coco()[1]
    document["annotations"] = document["annotations"][:4] + document["annotations"][5:6]
    document["annotations"][3]["iscrowd"] = 1
    index = read(tmp_path, document)
    assert len(index.images) == 4 and index.rows_with_instances().tolist() == [3]
    assert not index.problems.counts


def test_data_with_boxes_alone_have_no_shapes(tmp_path: Path) -> None:
    document = coco()[1]
    for record in document["annotations"]:
        del record["segmentation"]
    index = read(tmp_path, document)
    assert index.shapes is None and index.annotated(0).shapes is None and len(index.ids) == 12
    assert "segmentation" not in index.ground_truth(np.arange(1))["annotations"][0]


def test_what_is_no_annotation_file_of_coco(tmp_path: Path) -> None:
    files, document = coco()
    root = write(tmp_path / "coco", with_document(files, document))
    with pytest.raises(DataError, match=r"has no annotations/instances_val.json; check the split"):
        read_coco(root, "val")
    for key in ("images", "categories"):
        with pytest.raises(DataError, match=f"has no {key}"):
            read(tmp_path / key, {**document, key: []})
    for categories in ([{"id": 3, "name": "car"}] * 2, [{"id": 3, "name": ""}]):
        with pytest.raises(DataError, match="no class with an id and a name of its own"):
            read(tmp_path / "classes", {**document, "categories": categories})
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(DataError, match="there are train2014, train2017; name one"):
        read_coco(root, "train")
    with pytest.raises(DataError, match="no folder annotations"):
        read_coco(root / "train2017", "train")


_OTHERS = (None, True, 0, -1, 1.5, "", "x", [], [1], {}, 2**63, 1e300, [[1e8] * 6])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_document_with_any_value_changed_is_read_or_refused(
    data: st.DataObject, tmp_path: Path
) -> None:
    root = tmp_path if (tmp_path / "train2017").exists() else write(tmp_path, coco()[0])
    document = copy.deepcopy(coco()[1])
    holder: Any = document
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = data.draw(st.sampled_from(list(keys)))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        holder = inner
    holder[key] = data.draw(st.sampled_from(_OTHERS))
    write(root, with_document({}, document))
    try:
        index = read_coco(root, "train", bad_limit=0.3)
    except DataError:
        return
    for row in range(len(index.images)):
        assert len(index.annotated(row).ids) <= 3
