"""What a pre-trained encoder is worth for segmentation and detection where few images are
annotated: the demo's trainings from it, and from encoders to compare it with, on the same scenes
and for as many steps.

    python -m benchmarks.dense runs/demo/addp/network.safetensors --out runs/dense
    python -m benchmarks.dense MINE.safetensors --out runs/dense --beside pixels=OTHER.safetensors
    python -m benchmarks.dense MINE.safetensors --out runs/dense --scenes 800 --only segment

A fresh encoder is always one of them. Trainings take half of the demo's steps. Seeds change the
heads, the order of the scenes and their augmentation. The rows stand in OUT/N-scenes/results.jsonl,
so that the same command goes on where it stopped. At the end: each encoder's mean over the seeds
with its standard error, and what the pre-trained one is ahead of each other by, seed by seed. The
goal is 3 points.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cluster.demo.dense import BENCHMARKS, LAYOUTS, SCENES
from data_pipeline.progress import Progress
from data_pipeline.scenes.making import make_scenes

ADDP = [sys.executable, "-m", "cluster.cli"]
METRICS = {
    "segment": ("miou", "pixel_accuracy", "miou_of_things"),
    "detect": ("box_ap50", "box_ap", "mask_ap50", "mask_ap"),
}
GOAL = {"segment": "miou", "detect": "box_ap50"}
STEPS = {"segment": 300, "detect": 400}
POINTS = 3.0  # that the pre-trained encoder must be ahead by
FRESH, OURS = "fresh", "pre-trained"


def measure(task: str, run: Path, scenes: Path, overrides: list[str]) -> dict[str, float]:
    """Train, and return the CPU seconds and the metrics on the held-out scenes, in percent."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    data = f"data.images={scenes / LAYOUTS[task]}"
    train = [*ADDP, "train", f"demo-{task}", f"run={run}", data, *overrides, "--processes", "2"]
    evaluate = [*ADDP, "evaluate", str(run), "--suite", BENCHMARKS[task], "--json"]
    output_of(train)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (result,) = json.loads(output_of(evaluate))
    figures: dict[str, Any] = result["figures"]
    if task == "segment":
        things = [
            row["iou"]
            for name, row in figures["classes"].items()
            if name != "background" and "iou" in row
        ]
        figures["miou_of_things"] = statistics.mean(things)
    cpu = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    found = {name: round(100 * figures[name], 2) for name in METRICS[task]}
    return {**found, "training_cpu_seconds": round(cpu, 1)}


def output_of(command: list[str]) -> str:
    """Return what a command writes to its standard output. Where it fails, end with what it says of
    that."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean, and its standard error; that of one value is not known."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def report(rows: list[dict[str, Any]], tasks: list[str]) -> None:
    for task in tasks:
        by_encoder: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["task"] == task:
                by_encoder.setdefault(row["encoder"], {})[row["seed"]] = row
        for name, of_seed in by_encoder.items():
            for metric in METRICS[task]:
                mean, error = mean_and_error([row[metric] for row in of_seed.values()])
                print(f"{task:8s} {name:14s} {metric:16s} {mean:6.2f} ± {error:.2f}")
        for name, of_seed in by_encoder.items():
            if name == OURS or OURS not in by_encoder:
                continue
            for metric in METRICS[task]:
                both = of_seed.keys() & by_encoder[OURS].keys()
                ahead = [by_encoder[OURS][s][metric] - of_seed[s][metric] for s in sorted(both)]
                mean, error = mean_and_error(ahead)
                verdict = ""
                if name == FRESH and metric == GOAL[task]:
                    met = "met" if mean >= POINTS else "MISSED"
                    verdict = f"  {met}: the goal is {POINTS:g} points"
                print(f"{task:8s} ahead of {name}: {metric:16s} {mean:+.2f} ± {error:.2f}{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", type=Path, help="the file of the pre-trained encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of scenes, runs and rows")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", choices=sorted(METRICS))
    parser.add_argument("--scenes", type=int, default=100, help="annotated scenes to train on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    encoders = {OURS: str(options.encoder.resolve()), FRESH: "null"}
    encoders |= {
        name: str(Path(file).resolve())
        for name, _, file in (text.partition("=") for text in options.beside)
    }
    tasks = [options.only] if options.only else list(METRICS)
    out = options.out.resolve() / f"{options.scenes}-scenes"
    scenes, results = out / "scenes", out / "results.jsonl"
    settings = SCENES.model_copy(update={"training": options.scenes})
    make_scenes(scenes, settings, processes=len(os.sched_getaffinity(0)))
    rows = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    done = {(row["task"], row["encoder"], row["seed"], tuple(row["overrides"])) for row in rows}
    wanted = [
        (task, name, seed)
        for seed in range(options.seeds)
        for task in tasks
        for name in encoders
        if (task, name, seed, tuple(options.overrides)) not in done
    ]
    with Progress("training", len(wanted), "networks") as progress, results.open("a") as kept:
        for task, name, seed in wanted:
            label = "-".join([task, name, str(seed), *options.overrides]).replace("/", "_")
            overrides = [f"addp.weights={encoders[name]}", f"seed={seed}"]
            overrides += [f"schedule.total={STEPS[task]}", *options.overrides]
            found = measure(task, out / label, scenes, overrides)
            row = {"task": task, "encoder": name, "seed": seed, "overrides": options.overrides}
            rows.append({**row, **found})
            print(json.dumps(rows[-1]), file=kept, flush=True)
            progress.advance(1)
    report([row for row in rows if row["overrides"] == options.overrides], tasks)
    versions = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({**versions, "cores": len(os.sched_getaffinity(0)), "seeds": options.seeds}))


if __name__ == "__main__":
    main()
