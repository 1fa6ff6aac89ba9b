"""The benchmark `segmentation` as a whole, on a small untrained segmenter."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.dense.segmenter import Segmenter
from model.errors import ConfigError, DataError
from tests.data_pipeline.annotations.small_data import COLORS, png, regions, write
from tests.model.dense.small import small_segmenter
from tests.trainer.evaluation.measures.dense_run import STEP, evaluate, evaluated, make_run
from tests.trainer.worlds import Ranks
from trainer.evaluation.contents import annotations_of
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.segmentation import _Segmentation
from trainer.evaluation.options import ResolvedOptions
from trainer.evaluation.reporting.page import write_report
from trainer.run_folder import step_folder

SIZES = ("--short-side", "64", "--long-side", "256", "--window", "64")
CLASSES = ("sea", "sky")  # the network knows sky, sea and sand


def ade20k(root: Path, images: int = 7) -> Path:
    """Validation images of two classes. The second has no labelled pixel, the third an annotation
    of another size, and the last one is larger than a window."""
    rows = "\n".join(f"{i}\t0.1\t2\t1\t{name}" for i, name in enumerate(CLASSES, 1))
    files = {"objectInfo150.txt": f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n".encode()}
    for i in range(images):
        shape = (90, 150) if i == images - 1 else (40, 60 + i)
        values = regions(*shape) % 3
        labels = np.zeros_like(values) if i == 1 else values[:, :-1] if i == 2 else values
        files[f"images/validation/ADE_val_{i}.png"] = png(COLORS[values])
        files[f"annotations/validation/ADE_val_{i}.png"] = png(labels)
    return write(root, files)


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return small_segmenter().eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ade20k(tmp_path_factory.mktemp("data") / "ade20k")


@pytest.fixture(scope="module")
def run(network: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", network)


@torch.no_grad()
def counted(network: Segmenter, data: Path, whole: bool) -> np.ndarray:
    """The counts of the network's three classes, pixel by pixel."""
    counts = np.zeros((3, 3), np.int64)
    for path in sorted((data / "images/validation").glob("*.png")):
        image = Image.open(path).convert("RGB")
        labels = np.asarray(Image.open(data / "annotations/validation" / path.name))
        if labels.shape != image.size[::-1]:
            continue
        scale = min(64 / min(image.size), 256 / max(image.size))
        size = tuple(round(side * scale) for side in image.size)
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255
        logits = network.logits(pixels) if whole else network.sliding_logits(pixels, 64, 42)
        logits = F.interpolate(logits, labels.shape, mode="bilinear", align_corners=False)
        predicted = logits[0].argmax(0).numpy()
        for truth, label in zip(labels.ravel(), predicted.ravel(), strict=True):
            if truth:
                counts[{1: 1, 2: 0}[int(truth)], label] += 1
    return counts


def test_it_is_a_count_of_pixels(network: Segmenter, data: Path, run: Path) -> None:
    """By two ranks; and the report shows it."""
    result = evaluated(run, "--suite", "segmentation", "--ade20k", str(data), *SIZES, ranks=2)
    assert (result.metrics["images"], result.metrics["unread"]) == (6, 1)
    for prefix, whole in (("", False), ("whole_", True)):
        counts = counted(network, data, whole)
        with np.errstate(invalid="ignore"):
            iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
        assert result.metrics[f"{prefix}miou"] == pytest.approx(np.nanmean(iou))
        accuracy = np.trace(counts) / counts.sum()
        assert result.metrics[f"{prefix}pixel_accuracy"] == pytest.approx(accuracy)
    of_classes = result.metrics["classes"]
    assert {of_classes[name]["pixels"] for name in CLASSES} == {
        int(counts[1].sum()),
        int(counts[0].sum()),
    }
    folder = run / "evaluation" / step_folder(STEP)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "segmentation.json",
        "segmentation-predictions.png",
    }
    assert not list(folder.rglob("00*.json"))  # what was kept of chunks
    page = write_report([str(run)], run.parent / "report.html").read_text()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert f"<summary>Segmentation by class, step {STEP}</summary>" in page
    assert "<td>mean IoU, whole images in one pass ↑</td>" in page
    assert f'alt="Segmentation, step {STEP}"' in page


def test_classes_are_matched_by_name() -> None:
    assert labels_in(("sky", "sea", "sand"), ("sea", "sky")) == [1, 0]
    assert labels_in(("a", "a"), ("a", "a")) == [0, 1]
    with pytest.raises(ConfigError, match="knows no class 'wall' of the data"):
        labels_in(("sky", "sea"), ("sky", "wall"))
    with pytest.raises(ConfigError, match="two classes have one name"):
        labels_in(("sky", "sky", "sea"), ("sea", "sky"))


def test_windows_leave_no_pixel_out(network: Segmenter) -> None:
    own = {"held_out": 0.1, "seed": 0, "batch": 1, "short_side": 64, "long_side": 256, "window": 64}
    for stride, message in ((64, None), (65, "65 is more than --window 64")):
        options = ResolvedOptions.model_validate({**own, "window_stride": stride})
        with pytest.raises(ConfigError, match=message) if message else nullcontext():
            _Segmentation(network, CLASSES, options, torch.device("cpu"))


def test_data_that_cannot_be_measured(data: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ADE20k has the splits train, val"):
        annotations_of("ade20k", str(data), "test")
    with pytest.raises(DataError, match="has no annotated images of training"):
        annotations_of("ade20k", str(data), "train")
    with pytest.raises(DataError, match="has no folder annotations"):
        annotations_of("coco", str(tmp_path), "val")
    # Without a labelled pixel; all ranks end alike.
    empty = ade20k(tmp_path / "empty", 2)
    (empty / "annotations/validation/ADE_val_0.png").write_bytes(png(np.zeros((40, 60), np.uint8)))
    (empty / "annotations/validation/ADE_val_1.png").write_bytes(png(np.zeros((90, 150), np.uint8)))
    arguments = ["0", str(run), "--suite", "segmentation", *SIZES]
    (run / "evaluation" / step_folder(STEP) / "segmentation.json").unlink(missing_ok=True)
    done = Ranks(evaluate, [*arguments, "--ade20k", str(empty)], 2, tmp_path / "log").wait()
    assert done.codes == [1, 1] and "has a pixel that counts" in done.output, done.output
