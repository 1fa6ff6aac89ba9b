"""Measures a training step beside one as the reference takes it: images/s, their ratio, and of each
stage the rate, the share of the peak, and what bounds it.

    python -m benchmarks.step --size base --micro 2 --precision fp32    # on a CPU, 3 minutes
    python -m benchmarks.step --size base --plot docs/step.png          # as the recipe trains
    python -m benchmarks.step --size large --only ours --kernels 30     # and its longest kernels
    python -m benchmarks.step --size tiny --micro 4 --also zero_stage=1 # two of ours side by side

The real engine and networks, random weights and tokens. Each variant is a process of its own. They
take turns: every turn is the same steps, with the mask ratios that a run draws; one turn each is
not counted. The figure of a turn is the mean of its steps; the median of the turns is printed.
`rest` is what lies between the stages; `least_ms` is what the operators of a stage need at the best
rate of products and of copies on this machine. of_product: share of that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import plot
from benchmarks.step.rates import Rates, device_name, machine_rates
from benchmarks.step.rows import Repeats, medians, ratio_rows, stage_rows
from benchmarks.step.work import stage_work
from benchmarks.step.worker import Variant, Worker
from trainer.engine.precision import MODES


def arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("step", description=__doc__, formatter_class=as_written)
    parser.add_argument("--size", default="base", choices=["base", "large", "demo", "tiny"])
    parser.add_argument("--device", choices=["cuda", "cpu"], help="a GPU, if there is one")
    parser.add_argument("--micro", type=int, help="images of a step, else the recipe's")
    parser.add_argument("--precision", default="bf16-mixed", choices=["fp32", "bf16-mixed", "bf16"])
    parser.add_argument(
        "--reference-precision",
        choices=["fp32", "bf16-mixed"],
        help="else fp32 on a CPU, where the reference's autocast does nothing, and that of ours on "
        "a GPU",
    )
    parser.add_argument("--steps", type=int, help="of a turn, else 8 on a GPU and 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant")
    parser.add_argument("--only", choices=["ours", "reference"], help="leave the other one out")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="KEY=VALUE[,KEY=VALUE]",
        help="a further variant of ours, with these overrides; repeat it",
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="of the stages on a CPU; cpu: seconds of all threads, where other work runs beside",
    )
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    parser.add_argument("--plot", type=Path, help="draw the stages into this PNG file")
    parser.add_argument("overrides", nargs="*", help="key=value of the run's configuration")
    return parser.parse_args()


def variants(options: argparse.Namespace, on_cuda: bool) -> Iterator[Variant]:
    # One rank has nothing to shard. On a CPU a second copy of the weights would be seen.
    stage = () if on_cuda else ("zero_stage=0",)
    own = (f"precision={options.precision}", *stage, *options.overrides)
    if options.only != "ours":
        mixed = "bf16-mixed" if options.precision != "fp32" else "fp32"
        theirs = options.reference_precision or (mixed if on_cuda else "fp32")
        overrides = (f"precision={theirs}",)
        yield Variant("reference", True, options.size, options.micro, overrides)
    if options.only != "reference":
        yield Variant("ours", False, options.size, options.micro, own)
        for also in options.also:
            overrides = (*own, *also.split(","))
            yield Variant(f"ours, {also}", False, options.size, options.micro, overrides)


def measure(workers: list[Worker], steps: int, repeats: int) -> dict[str, Repeats]:
    """Have the variants take turns."""
    turns: dict[str, Repeats] = {worker.variant.name: [] for worker in workers}
    for repeat in range(repeats + 1):  # each length of the decoder chooses its kernels once
        for worker in workers:
            turn = worker.ask("turn", steps)
            name = worker.variant.name
            print(f"{name}: {turn['wall']:.3f} s a step", file=sys.stderr, flush=True)
            if repeat:
                turns[name].append(turn)
    return turns


def show(variant: str | None, row: dict[str, Any]) -> None:
    print(json.dumps(({"variant": variant} if variant else {}) | row), flush=True)


def main() -> None:
    options = arguments()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    steps = options.steps or (8 if device.type == "cuda" else 2)
    chosen = list(variants(options, device.type == "cuda"))
    configs = {variant.name: variant.config() for variant in chosen}
    rates: dict[str, Rates] = {}
    for config in configs.values():
        products = MODES[config.precision].products
        if products not in rates:
            rates[products] = machine_rates(device, getattr(torch, products))
    show(
        None, {"size": options.size, "steps": steps, "repeats": options.repeats, **setting(device)}
    )
    for dtype, of in rates.items():
        rows = {name: round(value / 1e12, 4) for name, value in of._asdict().items() if value}
        show(None, {"rates_of": dtype, "unit": "TFLOP/s; bandwidth TB/s", **rows})
    workers = [Worker(variant, device.type, options.clock == "cpu") for variant in chosen]
    turns = measure(workers, steps, options.repeats)
    for worker in workers:
        name = worker.variant.name
        config = configs[name]
        own = rates[MODES[config.precision].products]
        show(name, worker.ask("summary"))
        work = stage_work(config, device, own, reference=worker.variant.reference)
        for row in stage_rows(turns[name], work, own, config):
            show(name, row)
        for row in worker.ask("kernels", options.kernels) if options.kernels else ():
            show(name, row)
        worker.end()
    if "reference" in turns:
        for name in turns:
            for row in ratio_rows(turns[name], turns["reference"]) if name != "reference" else ():
                show(name, row)
    if options.plot:
        micro = {name: config.batch.micro for name, config in configs.items()}
        title = f"a training step of {options.size}, {device_name(device)}"
        seconds = {name: medians(of) for name, of in turns.items()}
        plot.draw(seconds, micro, options.clock, title, options.plot)
        print(options.plot)


def setting(device: torch.device) -> dict[str, Any]:
    """Return what was measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    main()
