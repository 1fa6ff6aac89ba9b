"""The effective training time ratio (ETTR) of an unattended run into which faults come at random.

    python -m benchmarks.ettr --minutes 60 --mean-minutes 10 --seed 0 --plot docs/ettr.png
    python -m benchmarks.ettr --draw ettr.jsonl --plot docs/ettr.png     # only the picture, again

Two hosts and a small training as in `benchmarks.faults`. Faults of different kinds come at random
moments, on average one in so many minutes; the waits are exponential, cut to between a third and
twice their mean. Nobody helps. Two ratios are printed:

- ETTR: time in which steps were made that count, over all time since `addp launch`, by what the
  supervisors wrote: starts, waiting, and steps that were lost and made again count as lost,
- strict: the seconds of the steps that count alone, so that saves and logging count as lost, too.

Afterwards the first steps are made again without any fault, and their losses compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import Bench, versions
from benchmarks.injections import FAULTS
from benchmarks.supervised import Job
from cluster.supervise.downtime import times
from cluster.supervise.history import read

# Each of these interrupts the run; a slow rank or a disk that is full for a while would not.
KINDS = (
    "rank-killed",
    "rank-stopped",
    "host-back",
    "link-cut",
    "supervisor-killed",
    "launcher-killed",
    "supervisor-term",
    "rank-term",
)
EVERY = 15  # steps between checkpoints: about 5 s
_SAMPLE = 2.0  # seconds between two looks at the step
_LONG = 300.0  # seconds after which nothing is expected of a fault any more
_QUIET = 90.0  # seconds before the end in which no fault comes any more


class Record:
    """JSON lines that are written as they come, so that a crash of ours loses none."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path, self._lock = path, threading.Lock()
        path.write_text("")

    def add(self, kind: str, **content: Any) -> None:
        row = {"kind": kind, "time": round(time.time(), 2), **content}
        with self._lock, self._path.open("a") as file:
            self.rows.append(row)
            file.write(json.dumps(row) + "\n")
        if kind != "step":
            print(json.dumps(row), flush=True)

    def last_moment(self, began: float) -> float:
        """Return when the last fault came, or when the run began."""
        return max([began, *(row["moment"] for row in self.rows if row["kind"] == "fault")])


def plan(minutes: float, mean: float, dice: random.Random) -> list[tuple[float, str]]:
    """Return (seconds since the start, kind) of each fault. No kind repeats before all came."""
    planned: list[tuple[float, str]] = []
    deck: list[str] = []
    moment = 0.0
    while True:
        wait = min(max(dice.expovariate(1 / mean), mean / 3), mean * 2)
        moment += wait * 60
        if moment > minutes * 60 - min(_QUIET, minutes * 15):
            return planned
        deck = deck or dice.sample(KINDS, len(KINDS))
        planned.append((moment, deck.pop()))


def step_of(job: Job) -> int | None:
    """Return the step of rank 0, None where nothing is to be read."""
    try:
        return int(json.loads(job.folder.heartbeat(0).read_text())["step"])
    except (OSError, ValueError, KeyError):
        return None


def is_over(job: Job, moment: float) -> bool:
    """Return whether the run has got over the fault of this moment, so that the next one may come.

    It has if an attempt that began later has made a step, or if nothing came of the fault for long.
    """
    start = next(job.events_after(moment, "start"), None)
    if start is None:
        return time.time() - moment > _LONG
    return any(job.events_after(start["time"], "progress"))


def inject(job: Job, name: str, turn: int, record: Record) -> None:
    """Put one fault in. Where its target is not there at this moment, look again."""
    for _ in range(20):
        began = time.time()
        try:
            moment = FAULTS[name].inject(job, turn)
        except (LookupError, ProcessLookupError):
            time.sleep(1)
            continue
        except Exception as error:  # noqa: BLE001 - the hour goes on; the record says what failed
            record.add("problem", what=f"{name}: {type(error).__name__}: {error}", moment=began)
            return
        record.add("fault", fault=name, moment=round(moment, 2))
        return
    record.add("problem", what=f"{name}: there was nothing to hit")


def watch(job: Job, planned: Sequence[tuple[float, str]], seconds: float, record: Record) -> None:
    """Let the run go on for so long, and put the faults in.

    Hosts are started by this thread: they end with the thread that started them.
    """
    began, waiting, turn = time.time(), list(planned), 0
    ended = threading.Event()
    sampler = threading.Thread(target=sample, args=(job, record, ended), daemon=True)
    sampler.start()
    while (now := time.time() - began) < seconds:
        if job.poll() is not None:
            record.add("problem", what=f"`addp launch` ended with {job.poll()}; given again")
            print(job.last_lines(), file=sys.stderr)
            job.start()
        if waiting and now >= waiting[0][0] and is_over(job, record.last_moment(began)):
            inject(job, waiting.pop(0)[1], turn, record)
            turn += 1
        time.sleep(1)
    ended.set()
    sampler.join(10)


def sample(job: Job, record: Record, ended: threading.Event) -> None:
    """Record the step again and again."""
    while not ended.wait(_SAMPLE):
        record.add("step", step=step_of(job))


def stop(job: Job, record: Record) -> None:
    """Ask the job to save and stop, as at the end of the hour."""
    record.add("stop", step=step_of(job))
    try:
        os.kill(job.launcher(), signal.SIGTERM)
        code = job.wait(120)
    except (LookupError, ProcessLookupError, TimeoutError) as error:
        record.add("problem", what=f"at the stop: {error}")
        return
    took, left = job.until_nothing_is_left()
    record.add("stopped", code=code, left=left, seconds=round(took, 1))


def down_times(job: Job, record: Record) -> None:
    """Record for each fault when it was noticed and when the next new step came."""
    for row in [row for row in record.rows if row["kind"] == "fault"]:
        start = next(job.events_after(row["moment"], "start"), None)
        noticed = next(job.events_after(row["moment"], "fault", "left", "end"), None)
        stepped = next(job.events_after(start["time"], "progress"), None) if start else None
        if start is None or stepped is None:
            record.add("problem", what=f"nothing came after {row['fault']}")
            continue
        if noticed is not None and noticed["time"] > start["time"]:
            noticed = None  # it killed the coordinator, which writes the events
        record.add(
            "recovery",
            fault=row["fault"],
            moment=row["moment"],
            detection=round(noticed["time"] - row["moment"], 1) if noticed else None,
            total=round(stepped["time"] - row["moment"], 1),
            until=stepped["time"],
        )


def verify(bench: Bench, training: Sequence[str], disturbed: Path, steps: int) -> dict[str, Any]:
    """Make the first steps again without a fault. Returns how many losses are the same."""
    run = bench.folder / "undisturbed-hour"
    with bench.hosts() as hosts:
        job = Job(hosts, run, training)
        try:
            job.start()
            job.until_step(steps, 60 + 2 * steps)
        finally:
            job.kill_all()
    pairs = [
        (a["loss"], b["loss"])
        for a, b in zip(_rows(disturbed), job.folder.read_metrics(), strict=False)
    ]
    return {"compared": len(pairs), "equal": sum(a == b for a, b in pairs)}


def _rows(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def summary(job: Job, record: Record, began: float, ended: float) -> dict[str, Any]:
    """Return the ratios. began, ended: of the time that counts, in epoch seconds."""
    rows = [row for row in job.folder.read_metrics() if row["time"] <= ended]
    steps = [row["step"] for row in rows]
    spent = times([e for e in read(job.folder.supervision) if e.time <= ended], ended)
    wall = ended - began
    return {
        "minutes": round(wall / 60, 2),
        "faults": sum(row["kind"] == "fault" for row in record.rows),
        "steps": len(steps),
        "each_once": steps == list(range(len(steps))),
        "ettr": round(spent.trained / wall, 4),
        "strict": round(rows[-1]["train_seconds"] / wall, 4),
        "repeated_seconds": round(spent.repeated, 1),
        "down_seconds": round(wall - spent.trained - spent.repeated, 1),
        "problems": sum(row["kind"] == "problem" for row in record.rows),
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the steps over time, the faults, and the time that was lost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def of(kind: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["kind"] == kind]

    began, total = of("began")[0]["time"], of("summary")[-1]
    steps = [row for row in of("step") if row["step"]]  # a rank that starts stands at 0
    figure, axes = pyplot.subplots(figsize=(11, 5), dpi=130)
    axes.plot(
        [(row["time"] - began) / 60 for row in steps],
        [row["step"] for row in steps],
        color="#1f5fa8",
        linewidth=1.6,
    )
    for row in of("recovery"):
        span = (row["moment"] - began) / 60, (row["until"] - began) / 60
        axes.axvspan(*span, color="#d94f3d", alpha=0.3)
    top = max((row["step"] for row in steps), default=1)
    known = {row["moment"]: row for row in of("recovery")}
    for row in of("fault"):
        minute = (row["moment"] - began) / 60
        axes.axvline(minute, color="#d94f3d", linewidth=0.8, linestyle=":")
        label = FAULTS[row["fault"]].what.replace("`", "")
        if back := known.get(row["moment"]):
            label += f": next new step after {back['total']:.0f} s"
        late = minute > total["minutes"] / 2  # the label goes where the line is not
        place = {"y": top * 0.02, "va": "bottom"} if late else {"y": top, "va": "top"}
        axes.text(minute, s=label, rotation=90, fontsize=7, ha="right", **place)
    axes.set_xlabel("minutes since `addp launch`")
    axes.set_ylabel("step")
    axes.set_xlim(0, total["minutes"])
    axes.set_ylim(0, top * 1.02)
    axes.set_title(
        f"{total['minutes']:.0f} minutes, {total['faults']} faults, nobody helped: "
        f"ETTR {total['ettr']:.1%} (shaded: from a fault to the next new step)"
    )
    figure.tight_layout()
    figure.savefig(path)


def run_hour(options: argparse.Namespace, folder: Path, record: Record) -> None:
    """Make the run, and record all that came of it."""
    bench = Bench(folder)
    training = (*bench.training, "schedule.total=1000000", f"checkpoint.every={EVERY}")
    planned = plan(options.minutes, options.mean_minutes, random.Random(options.seed))
    record.add("plan", versions=versions(), faults=[(round(s), name) for s, name in planned])
    with bench.hosts() as hosts:
        job = Job(hosts, folder / "run", training)
        job.log = folder / "launch.log"
        try:
            job.start()
            began = time.time()
            record.add("began")
            watch(job, planned, options.minutes * 60, record)
            ended = time.time()
            stop(job, record)
        finally:
            job.kill_all()
            for name in ("supervision.jsonl", "metrics.jsonl", "logs", "incidents"):
                source = job.run / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                if source.exists():
                    copy(source, folder / name)
        down_times(job, record)
        record.add("summary", **summary(job, record, began, ended))
    if options.verify_steps:
        compared = verify(bench, training, folder / "metrics.jsonl", options.verify_steps)
        record.add("verified", **compared)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--mean-minutes", type=float, default=10, help="between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verify-steps", type=int, default=500, help="made again; 0: none")
    parser.add_argument("--json", type=Path, default=Path("ettr.jsonl"), help="gets all lines")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--folder", type=Path, help="for logs, kept; else a temporary one")
    parser.add_argument("--draw", type=Path, help="draw these JSON lines, and measure nothing")
    options = parser.parse_args()
    if options.draw:
        draw(_rows(options.draw), options.plot)
        return
    record = Record(options.json)
    with tempfile.TemporaryDirectory() as scratch:
        run_hour(options, options.folder or Path(scratch), record)
    if options.plot:
        draw(record.rows, options.plot)


if __name__ == "__main__":
    main()
