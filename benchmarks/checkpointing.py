"""How long training waits for a save, and how long a run takes to notice a dead rank and to go on.

    python -m benchmarks.checkpointing

Two ranks under the deepspeed launcher, a token predictor of about 41 million parameters (a
checkpoint of 0.6 GiB with two moments and the ema), once with synchronous and once with
asynchronous saves, in turn. Then rank 1 is killed in the middle of the run, and the run is started
again as soon as the launcher has ended.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import deepspeed
import torch

from data_pipeline.storage import LocalStore
from tests.token_sets import write_tokens
from tests.trainer.launching import launcher_command
from trainer.checkpointing.catalog import LocalCatalog
from trainer.run_folder import RunFolder

OPTIONS = (
    "objective=mage",
    "precision=fp32",
    "tokenizer.sizes.image_size=64",
    "predictor.sizes.dim=512",
    "predictor.sizes.depth=8",
    "predictor.sizes.heads=8",
    "predictor.sizes.decoder_depth=4",
    "predictor.sizes.decoder_heads=8",
    "batch.global_batch=16",
    "batch.micro=8",
    "schedule.unit=steps",
    "schedule.warmup=2",
    "log_every=1",
    "ema_decay=0.999",
    "zero_stage=1",
)
EVERY, SAVES = 6, 4


def start(run: Path, tokens: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = launcher_command(
        2, "trainer.pretrain", [f"run={run}", f"data.tokens={tokens}", *OPTIONS, *overrides]
    )
    return subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )


def waits_for_saves(run: Path, tokens: Path, asynchronous: bool) -> tuple[list[float], float]:
    """Return (seconds that training waited for each save but the last, median seconds of a step
    without one)."""
    total = EVERY * SAVES + EVERY // 2
    process = start(
        run,
        tokens,
        f"checkpoint.every={EVERY}",
        f"schedule.total={total}",
        f"checkpoint.asynchronous={asynchronous}",
    )
    process.wait(600)
    assert RunFolder(run).is_done
    rows = RunFolder(run).read_metrics()
    waited = [row["save_stall_seconds"] for row in rows]
    stalls = [b - a for a, b in pairwise(waited) if b > a]
    return stalls, statistics.median(row["seconds_per_step"] for row in rows)


def wait_for_steps(run: Path, count: int) -> float:
    while len(RunFolder(run).read_metrics()) < count:
        time.sleep(0.01)
    return time.monotonic()


def recovery(run: Path, tokens: Path) -> tuple[float, float]:
    """Return (seconds from the kill of a rank to the launcher's end, seconds from the new start to
    its first step)."""
    options = ("checkpoint.every=10", "schedule.total=10000")
    process = start(run, tokens, *options)
    while not (run / "checkpoints" / "step-00000010").exists():
        time.sleep(0.01)
    ranks = subprocess.run(
        ["pgrep", "-f", f"trainer.pretrain --local_rank=1 run={run}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    killed = time.monotonic()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    process.wait(120)
    ended = time.monotonic()
    (run / "metrics.jsonl").unlink()
    process = start(run, tokens, *options)
    try:
        going = wait_for_steps(run, 1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ended - killed, going - ended


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, deepspeed {deepspeed.__version__}"
    )
    waits: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tokens(LocalStore(folder / "tokens"), [1000, 1000], views=1, length=16)
        for repeat in range(options.repeats):
            for asynchronous in (False, True):
                run = folder / f"{asynchronous}-{repeat}"
                stalls, step = waits_for_saves(run, folder / "tokens", asynchronous)
                waits[asynchronous] += stalls
                kind = "asynchronous" if asynchronous else "synchronous"
                print(
                    f"{kind:13s} {', '.join(f'{1000 * w:.0f}' for w in stalls)} ms a save; a step "
                    f"{1000 * step:.0f} ms"
                )
        catalog = LocalCatalog(RunFolder(folder / "True-0"))
        size = catalog.verify(catalog.steps()[0]).size
        detected, resumed = zip(
            *(recovery(folder / f"r{i}", folder / "tokens") for i in range(options.repeats)),
            strict=True,
        )
    slow, fast = (statistics.median(waits[kind]) for kind in (False, True))
    print(
        f"checkpoint {size / 2**30:.2f} GiB; stall {1000 * fast:.0f} ms against {1000 * slow:.0f} "
        f"ms: {fast / slow:.1%}"
    )
    print(
        f"a dead rank: launcher ended after {statistics.median(detected):.1f} s; first step after "
        f"a new start {statistics.median(resumed):.1f} s"
    )


if __name__ == "__main__":
    main()
