"""Measures samples/s of this loader beside webdataset, MosaicML streaming, litdata and
Megatron-Energon: in one process, warm, shuffled.

    pip install 'addp[peers]' && python -m benchmarks.streaming [--plot docs/streaming.png]

    pip install megatron-energon xattr
    python -m benchmarks.streaming --only addp Megatron-Energon

The same 20,000 samples (256 uint16 tokens and a label), written in each system's own format by its
own writer, are read in interleaved repeats; every system ends at the same NumPy batch (B, 256).
The results are medians, per second of wall time and of CPU time. A peer that is not installed is
left out, and the first line of output says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from tests.token_sets import write_tokens

SHARDS, ROWS, TOKENS = 20, 1000, 256
SAMPLES = SHARDS * ROWS
EPOCHS = 20  # of ours a repeat, which would be over in milliseconds; one of each peer
Batches = Iterator[tuple[np.ndarray, np.ndarray | None]]
Reader = Callable[[Path, int, bool], Batches]


def payload(n: int) -> np.ndarray:
    return ((np.arange(TOKENS) * 7 + n) % 1024).astype(np.uint16)


def write_addp(folder: Path) -> None:
    write_tokens(LocalStore(folder), [ROWS] * SHARDS, views=1, length=TOKENS)


def read_addp(folder: Path, batch: int, labels: bool) -> Batches:
    loader = TokenLoader(folder, global_batch=batch, seed=0, options=LoaderOptions(labels=labels))
    for step in range(EPOCHS * loader.schedule.steps_per_epoch):
        samples = loader.batch(step, 0, batch)
        yield samples.ids, samples.labels if labels else None
    loader.close()


def write_webdataset(folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "s-%06d.tar"), maxcount=ROWS, verbose=0) as writer:
        for n in range(SAMPLES):
            writer.write({"__key__": f"{n:09d}", "tokens.npy": payload(n), "cls": n})


def read_webdataset(folder: Path, batch: int, labels: bool) -> Batches:
    import webdataset

    urls = sorted(str(p) for p in folder.glob("*.tar"))
    names = ("tokens.npy", "cls") if labels else ("tokens.npy",)
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode().to_tuple(*names)
    )
    yield from _collated(iter(data), batch, labels)


def write_mosaicml(folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"tokens": f"ndarray:uint16:{TOKENS}", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=ROWS * (2 * TOKENS + 40)) as writer:
        for n in range(SAMPLES):
            writer.write({"tokens": payload(n), "label": n})


def read_mosaicml(folder: Path, batch: int, labels: bool) -> Batches:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)
    yield from _collated(((s["tokens"], s["label"]) for s in data), batch, labels)


def _litdata_sample(n: int) -> dict[str, Any]:
    return {"tokens": payload(n), "label": n}


def write_litdata(folder: Path) -> None:
    import litdata

    litdata.optimize(
        _litdata_sample,
        list(range(SAMPLES)),
        str(folder),
        chunk_size=ROWS,
        num_workers=1,
        verbose=False,
    )


def read_litdata(folder: Path, batch: int, labels: bool) -> Batches:
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True)
    yield from _collated(((s["tokens"], s["label"]) for s in data), batch, labels)


def write_energon(folder: Path) -> None:
    """Energon reads WebDataset tars with an index, which its command makes. It decodes no arrays,
    so tokens are written as they lie in memory."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "s-%06d.tar"), maxcount=ROWS, verbose=0) as writer:
        for n in range(SAMPLES):
            sample = {"tokens": payload(n).tobytes(), "label": str(n).encode()}
            writer.write({"__key__": f"{n:09d}", **sample})
    command = Path(sys.executable).with_name("energon")
    settings = "--non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset --num-workers 1"
    subprocess.run(
        [command, "prepare", folder, *settings.split(), "--no-progress"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def read_energon(folder: Path, batch: int, labels: bool) -> Batches:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        basic_sample_keys,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: Any) -> dict[str, Any]:
        tokens = np.frombuffer(sample["tokens"], np.uint16)
        return {**basic_sample_keys(sample), "tokens": tokens, "label": int(sample["label"])}

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc, type-arg]
        decoder = None
        cookers = [Cooker(cook)]  # noqa: RUF012 - as the base class has it

        def batch(self, samples: list[Any]) -> tuple[np.ndarray, np.ndarray | None]:
            kept = np.array([s["label"] for s in samples]) if labels else None
            return np.stack([s["tokens"] for s in samples]), kept

    data = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=batch,
        batch_drop_last=True,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=False,
    )
    for ids, kept in get_loader(data):  # torch's loader has made tensors of the arrays
        yield ids.numpy(), kept.numpy() if labels else None


def _collated(samples: Iterator[Any], batch: int, labels: bool) -> Batches:
    ids, kept = [], []
    for sample in samples:
        ids.append(sample[0])
        kept.append(sample[1] if labels else 0)
        if len(ids) == batch:
            yield np.stack(ids), np.array(kept) if labels else None
            ids, kept = [], []


SYSTEMS: dict[str, tuple[str, Callable[[Path], None], Reader]] = {
    "addp": ("addp", write_addp, read_addp),
    "litdata": ("litdata", write_litdata, read_litdata),
    "Megatron-Energon": ("megatron-energon", write_energon, read_energon),
    "MosaicML streaming": ("mosaicml-streaming", write_mosaicml, read_mosaicml),
    "webdataset": ("webdataset", write_webdataset, read_webdataset),
}


def measure(reader: Reader, folder: Path, batch: int, labels: bool) -> tuple[float, float]:
    """Return samples per second of wall time and of CPU time, without the first batch."""
    batches = reader(folder, batch, labels)
    next(batches)
    samples, started, used = 0, time.perf_counter(), time.process_time()
    for ids, _ in batches:
        samples += len(ids)
        assert ids.shape == (batch, TOKENS)
    return samples / (time.perf_counter() - started), samples / (time.process_time() - used)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, batch in zip(axes, (64, 1024), strict=True):
        shown = [r for r in rows if r["batch"] == batch]
        names = list(dict.fromkeys(r["system"] for r in shown))[::-1]
        for shift, labels in ((0.2, False), (-0.2, True)):
            values = [
                next(
                    r["per_cpu_second"] for r in shown if r["system"] == n and r["labels"] == labels
                )
                for n in names
            ]
            bars = axis.barh(
                np.arange(len(names)) + shift,
                values,
                0.38,
                color="#2a6fbb" if labels else "#9ec1e6",
                label="tokens and label" if labels else "tokens",
            )
            axis.bar_label(bars, [f"{v:,.0f}" for v in values], fontsize=8, padding=3)
        axis.set(
            xscale="log",
            yticks=np.arange(len(names)),
            yticklabels=names,
            title=f"batch {batch}",
            xlabel="samples per CPU-second, one process",
            xlim=(1e3, 3e7),
        )
    axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    present = {}
    for name in options.only:
        package, write, read = SYSTEMS[name]
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "in this tree" if name == "addp" else "not installed: left out"
        if "not" not in str(versions[name]):
            present[name] = (write, read)
    print(json.dumps(versions), flush=True)
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for name, (write, _) in present.items():
            folders[name] = Path(root) / name.replace(" ", "-")
            folders[name].mkdir()
            write(folders[name])
        rows: list[dict[str, Any]] = []
        for batch in (64, 1024):
            for labels in (False, True):
                measured: dict[str, list[tuple[float, float]]] = {name: [] for name in present}
                for repeat in range(-1, options.repeats):  # the first one warms up
                    for name, (_, read) in present.items():
                        result = measure(read, folders[name], batch, labels)
                        if repeat >= 0:
                            measured[name].append(result)
                for name, results in measured.items():
                    wall, cpu = (statistics.median(r[i] for r in results) for i in (0, 1))
                    size = sum(p.stat().st_size for p in folders[name].rglob("*") if p.is_file())
                    rows.append(
                        {
                            "system": name,
                            "batch": batch,
                            "labels": labels,
                            "per_second": round(wall),
                            "per_cpu_second": round(cpu),
                            "bytes_a_sample": round(size / SAMPLES),
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
                rates = {r["system"]: r["per_cpu_second"] for r in rows[-len(present) :]}
                ours = rates.pop("addp", None)
                if ours and rates:
                    ratio = round(ours / max(rates.values()), 1)
                    setting = {"batch": batch, "labels": labels}
                    print(json.dumps({**setting, "times_the_fastest_peer": ratio}))
        if options.plot:
            draw(rows, options.plot)
            print(options.plot)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
