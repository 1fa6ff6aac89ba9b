"""One mask ratio a step against one a micro batch, as the reference draws them: short ADDP
trainings on a demo's data.

    addp demo --scale 0.3 --out runs/short
    python -m benchmarks.mask_ratio_scope runs/short --steps 400

Of each seed and scope, everything else equal: cross-entropy of masked tokens on held-out images,
and kNN.
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
    """Figures of one training."""
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
    found = json.loads(subprocess.run(evaluate, check=True, capture_output=True).stdout)
    return {
        name: value
        for part in found
        for name, value in part["figures"].items()
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
                found = measure(
                    options.demo.resolve(),
                    run,
                    [*shared, f"seed={seed}", f"mask_ratio_scope={scope}"],
                )
                rows[scope].append(found)
                print(f"seed {seed}, {scope}: {found}", file=sys.stderr, flush=True)
    mean = {
        s: {name: statistics.mean(r[name] for r in found) for name in found[0]}
        for s, found in rows.items()
    }
    print(json.dumps({"steps": options.steps, "figures": rows, "mean": mean}, indent=1))


if __name__ == "__main__":
    main()
