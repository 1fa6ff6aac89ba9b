"""Fine-tuning the demo's encoder against training the same network from scratch, same budget, after
`make demo`.

    python -m benchmarks.finetuning runs/demo
    python -m benchmarks.finetuning runs/demo --labelled 0.2 --epochs 40

Each seed fine-tunes from the pre-trained weights and from scratch; both are measured on images that
no training saw. --labelled: share of the images whose labels are used; the held-out tenth is never
among them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ADDP = [sys.executable, "-m", "cluster.cli"]
# From scratch, small rates in early layers would hold the training back.
SCRATCH = ("addp.weights=null", "classifier.layer_decay=1.0")


def measure(demo: Path, run: Path, overrides: list[str]) -> float:
    """Fine-tune, and return the top-1 accuracy on the held-out images."""
    files = [
        f"data.images={demo / 'images'}",
        f"addp.weights={demo / 'addp' / 'network.safetensors'}",
    ]
    command = [*ADDP, "train", "demo-finetune", f"run={run}", *files, *overrides]
    subprocess.run([*command, "--processes", "2"], check=True, capture_output=True)
    evaluate = [*ADDP, "evaluate", str(run), "--suite", "accuracy", "--held-out", "0.1", "--json"]
    results = json.loads(subprocess.run(evaluate, check=True, capture_output=True).stdout)
    return float(results[0]["figures"]["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the demo's folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labelled", type=float, default=0.9)
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    shared = [f"data.held_out={1 - options.labelled:.6g}", f"schedule.total={options.epochs}"]
    rows: dict[str, list[float]] = {"pre-trained": [], "from scratch": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, arm in (("pre-trained", []), ("from scratch", list(SCRATCH))):
                run = Path(folder) / f"{name.replace(' ', '-')}-{seed}"
                rows[name].append(
                    measure(options.demo.resolve(), run, [*shared, f"seed={seed}", *arm])
                )
                print(f"seed {seed}, {name}: {rows[name][-1]:.1%}", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "processor": platform.processor() or platform.machine(),
                "labelled": options.labelled,
                "epochs": options.epochs,
                "top1": rows,
                "mean": {name: round(statistics.mean(values), 4) for name, values in rows.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
