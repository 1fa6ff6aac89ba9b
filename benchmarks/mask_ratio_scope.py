"""One mask ratio a step against one a micro batch, as the reference draws them: short ADDP
trainings on a demo's data.

    addp demo --scale 0.3 --out runs/short
    python -m benchmarks.mask_ratio_scope runs/short --steps 400

It prints, for each seed and scope with everything else equal, the cross-entropy of masked tokens on
held-out images, and kNN.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ADDP = [sys.executable, "-m", "cluster.cli"]
BATCH, MICRO = 8, 2  # four ratios a step
RATE = 0.032  # base_lr: the demo's rate of 0.001, at half of its batch
SCOPES = ("step", "micro")


def measure(demo: Path, run: Path, overrides: list[str]) -> dict[str, float]:
    """Train once, and return the metrics of its evaluation that are numbers."""
    tokens = demo / "tokens"
    files = [
        f"data.tokens={tokens / 'train'}",
        f"tokenizer.weights={demo / 'tokenizer/network.safetensors'}",
        f"predictor.weights={demo / 'predictor/network.safetensors'}",
    ]
    train = [*ADDP, "train", "demo-addp", "--processes", "1", f"run={run}", *files, *overrides]
    subprocess.run(train, check=True, capture_output=True)
    evaluate = [
        *ADDP,
        "evaluate",
        str(run),
        "--suite",
        "held-out,knn",
        "--images",
        str(demo / "images"),
        "--tokens",
        str(tokens / "val"),
        "--train-tokens",
        str(tokens / "train"),
        "--json",
    ]
    results = json.loads(subprocess.run(evaluate, check=True, capture_output=True).stdout)
    return {
        name: value
        for result in results
        for name, value in result["figures"].items()
        if isinstance(value, int | float)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "demo", type=Path, help="a demo's folder: images, tokens, tokenizer, predictor"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    shared = [
        f"batch.global_batch={BATCH}",
        f"batch.micro={MICRO}",
        f"optimizer.base_lr={RATE}",
        f"schedule.total={options.steps}",
        f"schedule.warmup={options.steps // 10}",
        f"checkpoint.every={options.steps}",
    ]
    rows: dict[str, list[dict[str, float]]] = {scope: [] for scope in SCOPES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for scope in SCOPES:
                run = Path(folder) / f"{scope}-{seed}"
                metrics = measure(
                    options.demo.resolve(),
                    run,
                    [*shared, f"seed={seed}", f"mask_ratio_scope={scope}"],
                )
                rows[scope].append(metrics)
                print(f"seed {seed}, {scope}: {metrics}", file=sys.stderr, flush=True)
    mean = {
        scope: {name: statistics.mean(row[name] for row in seeds) for name in seeds[0]}
        for scope, seeds in rows.items()
    }
    print(json.dumps({"steps": options.steps, "metrics": rows, "mean": mean}, indent=1))


if __name__ == "__main__":
    main()
