"""Says what a step costs on 1 to 1,024 GPUs, and where that stops scaling.

    python -m benchmarks.scaling --steps docs/gpu/h200.jsonl --run Large --run 'Large 128' \\
        --plot docs/scaling.png
    python -m benchmarks.scaling --check    # on this machine: predicted and measured, 2 processes

Compute comes from a file of `benchmarks.step`. What is sent is counted in real steps of two
processes here, once and twice accumulated in each ZeRO stage, with the trained network at its own
size. What the links do is assumed: NVLink 4 in a node (450 GB/s a direction by the data sheet) and
one 400 Gb/s port for each GPU between nodes, both at 80 %; latencies are those of one message. The
optimizer's time is not divided by the number of GPUs, so it is an upper bound.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.scaling import plot
from benchmarks.scaling.counting import Link, Traffic, count, traffic
from benchmarks.scaling.model import Cluster, Compute, exchange_seconds, measured_compute, predict
from benchmarks.scaling.plot import Curve
from trainer import costs
from trainer.config.reading import load_config
from trainer.recipes import recipe

LEAST = 0.8  # efficiency below which a run no longer scales
NUMBERS = [2**k for k in range(11)]
GB, US = 1e9, 1e-6


def arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scaling", description=__doc__, formatter_class=as_written)
    parser.add_argument("--steps", type=Path, default=Path("docs/gpu/h200.jsonl"))
    parser.add_argument("--run", action="append", help="in that file; two differ in micro batch")
    parser.add_argument("--size", default="large", choices=["base", "large"])
    parser.add_argument("--stage", type=int, default=1, choices=[0, 1, 2, 3], help="of ZeRO")
    parser.add_argument("--global-batch", type=int, default=4096)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--nvlink", type=float, default=360, help="GB/s of a GPU in its node")
    parser.add_argument("--network", type=float, default=320, help="GB/s of a node to the others")
    parser.add_argument("--slow-network", type=float, default=10, help="GB/s, for one more curve")
    parser.add_argument("--latency", type=float, nargs=2, default=[5, 15], help="us in, between")
    parser.add_argument("--overlap", type=float, default=0.0, help="share of it beside computing")
    parser.add_argument("--traffic", type=Path, help="keep the counts in this file, and read them")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with steps on this machine")
    return parser.parse_args()


def counted(stages: list[int], kept: Path | None) -> dict[int, tuple[list[Traffic], int]]:
    """Return what each ZeRO stage sends, and the parameters of the network that sent it."""
    found: dict[int, tuple[list[Traffic], int]] = {}
    if kept and kept.is_file():
        for stage, (rows, parameters) in json.loads(kept.read_text()).items():
            found[int(stage)] = ([Traffic(*row) for row in rows], parameters)
    for stage in stages:
        if stage not in found:
            once, twice = (
                count(2, stage=stage, accumulation=n, micro=1, size="base", steps=1) for n in (1, 2)
            )
            found[stage] = (traffic(once, twice), once.parameters)
    if kept:
        kept.write_text(json.dumps(found))
    return found


def check(stage: int, micro: int) -> dict[str, Any]:
    """Take steps in one process and in two, and predict the second from the first."""
    one, two, twice = (
        count(n, stage=stage, accumulation=a, micro=micro, size="base", steps=steps)
        for n, a, steps in ((1, 1, 5), (2, 1, 5), (2, 2, 1))
    )
    sent = 0.0
    for of in traffic(two, twice):
        link = two.links.get(of.kind, two.links["all_reduce"])
        sent += exchange_seconds(of, 2, Cluster(link, link, 2, 0.0))
    divided = one.optimizer / 2 if stage else 0.0
    predicted = one.seconds - divided + sent
    return {
        "stage": stage,
        "micro": micro,
        "measured_1_ms": round(one.seconds * 1e3),
        "measured_2_ms": round(two.seconds * 1e3),
        "predicted_2_ms": round(predicted * 1e3),
        "of_measured": round(predicted / two.seconds, 3),
        "exchange_ms": round(sent * 1e3),
        "gb_per_s": {kind: round(link.bandwidth / GB, 2) for kind, link in two.links.items()},
    }


def curves(
    options: argparse.Namespace, compute: Compute, largest: int, cluster: Cluster
) -> list[Curve]:
    """Predict the setting that is asked for, and for each that moves its end, one more."""
    found = counted(sorted({options.stage, 3}), options.traffic)
    trained, _ = costs.parameters(load_config(recipe(options.size), []))
    slow = cluster._replace(outside=Link(options.slow_network * GB, 4 * cluster.outside.latency))
    batch, stage = options.global_batch, options.stage
    settings = [
        (f"global batch {batch:,}, ZeRO-{stage}", batch, stage, cluster),
        (f"global batch {4 * batch:,}", 4 * batch, stage, cluster),
        (f"global batch {batch:,}, {options.slow_network:g} GB/s a node", batch, stage, slow),
        (f"global batch {4 * batch:,}, {options.slow_network:g} GB/s", 4 * batch, stage, slow),
        (f"global batch {batch:,}, ZeRO-3", batch, 3, cluster),
    ]
    result = []
    for label, images, stage, over in settings:
        sent, parameters = found[stage]
        scaled = [of._replace(bytes=of.bytes * trained / parameters) for of in sent]
        steps = [predict(compute, scaled, n, images, largest, over) for n in NUMBERS]
        result.append(Curve(label, images, steps))
    return result


def main() -> None:
    options = arguments()
    if options.check:
        for stage in (0, 1, 2, 3):
            print(json.dumps(check(stage, 8)), flush=True)
        return
    compute, largest = measured_compute(options.steps, options.run or ["Large", "Large 128"])
    inside, outside = (latency * US for latency in options.latency)
    cluster = Cluster(
        Link(options.nvlink * GB, inside),
        Link(options.network * GB, outside),
        options.gpus,
        options.overlap,
    )
    settings = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps(settings | compute._asdict() | {"micro": largest}))
    found = curves(options, compute, largest, cluster)
    for curve in found:
        print(json.dumps({"curve": curve.label, "scales_to": curve.last_above(LEAST)}))
        for prediction, share in zip(curve.predictions, curve.efficiencies(), strict=True):
            row = {
                "curve": curve.label,
                "gpus": prediction.gpus,
                "micro": prediction.micro,
                "accumulation": prediction.accumulation,
                "step_ms": round(prediction.seconds * 1e3, 2),
                "exposed_ms": round(prediction.exposed * 1e3, 2),
                "images_per_second": round(curve.images / prediction.seconds),
                "efficiency": round(share, 3),
            }
            print(json.dumps(row))
    if options.plot:
        title = f"a step of {options.size.capitalize()} on N GPUs, predicted from one"
        plot.draw(found, LEAST, title, options.plot)
        print(options.plot)


if __name__ == "__main__":
    main()
