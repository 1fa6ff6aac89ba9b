"""A report is written whatever is broken in what a run wrote, and no other file of the machine gets
onto it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.storage import open_store
from trainer.evaluation.reporting.images import image_groups, image_uri
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.reporting.records import read_run
from trainer.run_folder import RunFolder

STEP = "evaluation/step-00000004"
RESULT = {
    "step": 4,
    "part": "samples",
    "weights": "raw",
    "figures": {"samples": 4},
    "pictures": {"": "samples.png"},
}
RECORDS: dict[str, Any] = {
    "config.resolved.yaml": {
        "objective": "addp",
        "schedule": {"unit": "steps", "total": 9},
        "checkpoint": {"upload": None},
    },
    "environment.json": {"world_size": 2, "device": "cpu"},
    "metrics.jsonl": {"step": 3, "loss": "nan", "time": 1.8e9, "train_seconds": 9.5},
    "incidents.jsonl": {"time": 1.8e9, "rank": 0, "event": "spike", "reason": "loss"},
    "incidents/rank-00001.jsonl": {"time": 1.7e9, "rank": 1, "event": "storage fault"},
    "done.json": {"step": 4, "checkpoint": "step-00000004"},
    "exit.json": {"code": 75, "reason": "SIGTERM", "time": 1.8e9},
    "heartbeats/rank-00000.json": {"time": 1.8e9, "section": "step", "step": 3},
    "evaluation/targets.json": [{"name": "PSNR", "value": "20 dB", "target": "19 dB", "met": True}],
    f"{STEP}/samples.json": RESULT,
    f"{STEP}/knn.json": {
        **RESULT,
        "part": "knn",
        "figures": {"top1_k20": 0.5, "images": 185},
        "pictures": {},
    },
}


def png(color: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (9, 9), color).save(data, "PNG")
    return data.getvalue()


def lay(folder: Path, changed: dict[str, bytes]) -> Path:
    """A small run, some of whose records are others."""
    for name, content in RECORDS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed.get(name, json.dumps(content).encode() + b"\n"))
    (folder / STEP / "samples.png").write_bytes(png())
    return folder


def report(folder: Path) -> str:
    return write_report([str(folder)], folder / "report.html").read_text()


def test_incidents_of_all_ranks_in_the_order_of_time(bucket: str, tmp_path: Path) -> None:
    """And of an earlier version, where all wrote one file; here and on a store."""
    lay(tmp_path / "run", {})
    (tmp_path / "run" / "incidents" / "other.jsonl").write_text('{"event": "none of ours"}')
    RunFolder(tmp_path / "run").incident({"event": "now", "rank": 2, "time": 1.75e9})
    store = open_store(f"{bucket}/run")
    for name in ("config.resolved.yaml", *RunFolder(tmp_path / "run").incident_files()):
        store.create(name, tmp_path / "run" / name)
    for run in (str(tmp_path / "run"), f"{bucket}/run"):
        events = [row["event"] for row in read_run(run).incidents]
        assert events == ["storage fault", "now", "spike"]
    assert [row["rank"] for row in RunFolder(tmp_path / "run").read_incidents()] == [1, 2, 0]


def test_metrics_of_classes_are_taken_one_by_one(tmp_path: Path) -> None:
    lay(tmp_path, {})
    for name, classes in (
        ("segmentation", {"sky": {"iou": 0.25, "pixels": "many"}, "sea": 3}),
        ("detection", [1]),
    ):
        stated = {**RESULT, "part": name, "figures": {"classes": classes}}
        (tmp_path / STEP / f"{name}.json").write_text(json.dumps(stated))
    text = report(tmp_path)
    for words in (
        "<td>sky</td>",
        "segmentation.json: the metric pixels is no number",
        "segmentation.json: the metrics of a class are no mapping",
        "detection.json: the metrics of classes are no mapping",
    ):
        assert words in text, words


def test_broken_records_are_left_out_and_counted(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "config.resolved.yaml": b"objective: [addp\n",
            "environment.json": b"[1]",
            "metrics.jsonl": b'{"step": 0, "loss": 5.5}\n{"step": 1, "lo\n[3]\n{"loss": '
            b'4}\n{"step": 4, "loss": [5]}\n'
            b'\xff\xfe\n{"step": 6, "loss": "nan"}\n{"step": 7, "loss": NaN}\n{"step": '
            b'8}\n{"step": 9, "loss": 5.25}\n',
            "incidents.jsonl": b'{"event": {"a": "<u>"}, "time": "late"}\n7\n',
            "done.json": b'{"step": "never"}',
            "exit.json": b'{"code": 77, "reason": "diverged", "time": Infinity}',
            "heartbeats/rank-00000.json": b"{",
            "evaluation/targets.json": b'[{"name": "<u>PSNR", "value": "20 dB"}, {"name": 3}, 4]',
            f"{STEP}/samples.json": json.dumps(RESULT).encode()[:40],
            f"{STEP}/knn.json": b'{"step": 4, "part": "knn", "weights": "raw", '
            b'"figures": {"top1_k20": "much", "kid": NaN}}',
        },
    )
    (tmp_path / STEP / "linear.json").write_text(json.dumps({**RESULT, "step": "4"}))
    text = report(tmp_path)
    for fault in (
        "config.resolved.yaml: cannot be parsed",
        "environment.json: holds a list",
        "metrics.jsonl: a line: cannot be parsed (2 times)",
        "metrics.jsonl: a line: holds a list",
        "metrics.jsonl: a line without a step",
        "metrics.jsonl: a line whose loss is no number (2 times)",
        "incidents.jsonl: a line: holds a int",
        "done.json: step: ",
        "exit.json: time: ",
        "heartbeats/rank-00000.json: cannot be parsed",
        "targets.json: name: ",
        f"{STEP}/samples.json: cannot be parsed",
        "linear.json: step: ",
        "the metric top1_k20 is no number",
        "the metric kid is not finite",
    ):
        assert fault in text, fault
    assert "18 records could not be read" in text
    assert "objective: [addp" in text and 'aria-label="Training loss' in text and "5.2500" in text
    assert "&lt;u&gt;PSNR" in text and "<u>" not in text


def bomb() -> bytes:
    """A PNG that would be 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


def test_only_images_of_the_evaluation_are_embedded(tmp_path: Path) -> None:
    """Whatever a record or a link in the folder names."""
    secret, run = tmp_path / "secret.png", lay(tmp_path / "run", {})
    secret.write_bytes(png("blue"))
    folder = run / STEP
    (folder / "linked.png").symlink_to(secret)
    os.mkfifo(folder / "pipe.png")
    (folder / "text.png").write_text("root:x:0:0")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.png").write_bytes(png()[:45])
    (folder / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**27)
    refused = [
        "../../../secret.png",
        str(secret),
        "../../../../../../../../etc/passwd",
        "..",
        "",
        "a\x00b.png",
        "samples.json",
        "linked.png",
        "pipe.png",
        "text.png",
        "bomb.png",
        "cut.png",
        "vector.svg",
        "huge.png",
        "none.png",
    ]
    for name in refused:
        (folder / "samples.json").write_text(
            json.dumps({**RESULT, "pictures": {"": "samples.png", "steps": name}})
        )
        record = read_run(str(run))
        (group,) = image_groups(record)
        assert group.title == "Samples" and record.left_out.total() == 1, (name, record.left_out)

    (run / "evaluation" / "step-00000005").symlink_to(tmp_path)
    (tmp_path / "samples.json").write_text(
        json.dumps({**RESULT, "step": 5, "pictures": {"": "secret.png"}})
    )
    (run / "config.resolved.yaml").unlink()
    (run / "config.resolved.yaml").symlink_to("/etc/passwd")
    text = report(run)
    assert "config.resolved.yaml: a link, which is not followed" in text and "root:" not in text
    assert "step-00000005/samples.json: a link, which is not followed" in text
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert Image.open(io.BytesIO(base64.b64decode(embedded))).getpixel((4, 4)) == (255, 0, 0)


def test_a_large_image_is_compressed() -> None:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1100, 1100, 3), np.uint8)).save(
        data, "PNG"
    )
    uri = image_uri(data.getvalue())
    assert uri.startswith("data:image/webp;base64,") and len(uri) < data.tell()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**60, 2**1100)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [
            "nan",
            "-inf",
            "\ud800",
            "</pre><script>",
            "{{ title }}",
            "$\\frac{",
            "../../x.png",
            "\x00",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name of a record, what it holds instead)."""
    name = draw(st.sampled_from(sorted(RECORDS)))
    whole = json.dumps(RECORDS[name]).encode()
    how = draw(st.sampled_from(["value", "value", "value", "key", "whole", "bytes", "cut"]))
    if how == "bytes":
        return name, whole[: draw(st.integers(0, len(whole)))] + draw(
            st.binary(max_size=8)
        ) + whole[3:]
    if how == "cut":
        return name, whole[: draw(st.integers(0, len(whole) - 1))]
    if how == "whole":
        return name, json.dumps(draw(JSON)).encode()
    content = json.loads(whole)
    inner = content[0] if isinstance(content, list) else content
    if how == "key":
        del inner[draw(st.sampled_from(sorted(inner)))]
    else:
        key = draw(st.sampled_from(sorted(inner)))
        if isinstance(inner[key], dict) and inner[key] and draw(st.booleans()):
            inner, key = inner[key], draw(st.sampled_from(sorted(inner[key])))
        inner[key] = draw(JSON)
    return name, json.dumps(content).encode() + b"\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["one", "two"]), mutations(), min_size=1))
def test_whatever_a_record_holds_there_is_a_page(changed: dict[str, tuple[str, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        text = report(lay(Path(folder), dict(changed.values())))
        assert text.rstrip().endswith("</html>") and 'class="badge' in text and "Incidents" in text
        assert "<script" not in text and ("data:image/png" in text or "left-out" in text)


@pytest.mark.parametrize("name", ["evaluation", f"{STEP}/samples.json", "metrics.jsonl"])
def test_a_record_that_is_no_plain_file(name: str, tmp_path: Path) -> None:
    """A pipe would be waited for."""
    lay(tmp_path, {})
    if (tmp_path / name).is_dir():
        (tmp_path / name).rename(tmp_path / "elsewhere")
        (tmp_path / name).symlink_to("elsewhere")
    else:
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    assert f"{name.partition('/')[0]}" in report(tmp_path).partition('id="left-out"')[2]
