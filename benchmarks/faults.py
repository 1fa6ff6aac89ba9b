"""What a supervised run does about faults, on two hosts with a real launcher, unattended.

    python -m benchmarks.faults --repeats 5 --json faults.jsonl
    python -m benchmarks.faults --faults rank-killed --faults link-cut

`addp launch --backend deepspeed` starts a small training over pdsh on two hosts in namespaces of
their own (`tests/cluster/launch/two_hosts.py`; needs root). In its middle comes one fault. Nobody
helps. Checked are the end (done; every loss, the weights and their EMA those of the undisturbed
run, bit for bit; on fewer ranks within rounding) and that no process of the run is left 60 s later.
Measured are

- detection: from the fault to the first word about it in RUN/supervision.jsonl,
- recovery: from there to the first new step.

Both count while other work uses the cores, too: measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import deepspeed
import torch

from benchmarks.injections import FAULTS, Fault
from benchmarks.supervised import TRAINING, Job, write_data
from tests.cluster.launch.two_hosts import Host, several_hosts
from tests.trainer.comparing import losses, same_end
from trainer.run_folder import RunFolder

STEPS, FAULT_STEP, EVERY = 60, 22, 10
_DISK_MIB = 192
_FEWER = 1e-4  # how far losses may differ on another number of ranks; those of other samples: 1e-2
_RECOVERY_LIMIT = 30.0  # seconds from there to the next new step
_NOTICED = ("fault", "left", "end")


@dataclass
class Outcome:
    """What came of a fault.

    detection, recovery, total: seconds to the first word about the fault, from there to the next
    new step, and from the fault to that step; None where nothing was to be noticed. There is no
    word where the fault killed the coordinator, which writes them. left: seconds until no process
    was left. restarts: starts beyond the first. problems: what must not be.
    """

    fault: str
    repeat: int
    detection: float | None = None
    recovery: float | None = None
    total: float | None = None
    left: float | None = None
    restarts: int = 0
    ranks: int = 0
    equal: bool = False
    difference: float | None = None
    problems: list[str] = field(default_factory=list)


class Bench:
    """The hosts and the undisturbed run. folder: for everything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        folder.mkdir(parents=True, exist_ok=True)
        self.training = (
            *TRAINING,
            f"data.tokens={write_data(folder / 'tokens')}",
            f"schedule.total={STEPS}",
            f"checkpoint.every={EVERY}",
        )
        self._whole = folder / "undisturbed"

    @contextmanager
    def hosts(self, count: int = 2) -> Iterator[list[Host]]:
        """Hosts, and a small disk that they see."""
        self.disk.mkdir(exist_ok=True)
        size = f"size={_DISK_MIB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.disk], check=True)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="hosts-", dir=self.folder) as scratch,
                several_hosts(Path(scratch), count) as hosts,
            ):
                yield hosts
        finally:
            subprocess.run(["umount", "-l", self.disk], check=False)

    def undisturbed(self) -> Path:
        """Return the undisturbed run; the first call makes it. Raises AssertionError where it does
        not come to its end."""
        if not RunFolder(self._whole).is_done:
            with self.hosts() as hosts:
                job = Job(hosts, self._whole, self.training)
                job.start()
                code = job.wait(300)
                assert code == 0, f"the undisturbed run ended with {code}:\n{job.last_lines()}"
        return self._whole

    def measure(self, name: str, repeat: int) -> Outcome:
        """Put a fault into a run and see it through. Problems stand in the outcome."""
        fault, outcome, whole = FAULTS[name], Outcome(name, repeat), self.undisturbed()
        parent = self.disk if fault.disk else self.folder
        run = parent / f"{name}-{repeat}"
        with self.hosts(max(fault.nodes)) as hosts:
            job = Job(hosts, run, self.training, nodes=fault.nodes, options=fault.options)
            job.log = self.folder / f"{name}-{repeat}.log"
            try:
                job.start()
                moment = _disturb(job, fault, repeat)
                _see_through(job, fault, moment, outcome)
                _compare(job, whole, fault, outcome)
            except (TimeoutError, RuntimeError, AssertionError, LookupError, OSError) as error:
                outcome.problems.append(f"{type(error).__name__}: {error}")
            finally:
                job.kill_all()
                self._keep(job, name, repeat)
        return outcome

    def _keep(self, job: Job, name: str, repeat: int) -> None:
        """Keep the records of a run, and remove its checkpoints."""
        kept = self.folder / f"{name}-{repeat}.supervision.jsonl"
        if job.folder.supervision.exists():
            shutil.copy(job.folder.supervision, kept)
        shutil.rmtree(job.run, ignore_errors=True)


def _disturb(job: Job, fault: Fault, repeat: int) -> float:
    """Put the fault in, in the middle of the run. Returns its moment."""
    at_the_end = fault.what.endswith("at the end")
    job.until_step(STEPS - EVERY // 2 if at_the_end else FAULT_STEP + repeat)
    return fault.inject(job, repeat)


def _see_through(job: Job, fault: Fault, moment: float, outcome: Outcome) -> None:
    """Wait for the end, and take the times."""
    code = job.wait(300)
    if fault.again:
        if code != 75:
            outcome.problems.append(f"`addp launch` ended with {code} in place of 75")
        job.start()
        code = job.wait(300)
    outcome.left, left = job.until_nothing_is_left()
    if left:
        outcome.problems.append(f"still there after 60 s: {'; '.join(left)}")
    if code != 0:
        outcome.problems.append(f"ended with {code}:\n{job.last_lines()}")
    starts = [event for event in job.events if event["event"] == "start"]
    outcome.restarts = len(starts) - 1
    outcome.ranks = starts[-1].get("ranks", 0) if starts else 0
    if fault.limit is None:
        if outcome.restarts:
            outcome.problems.append("the run was restarted, although nothing asked for it")
        return
    start = next((e["time"] for e in job.events_after(moment, "start")), None)
    noticed = next((e["time"] for e in job.events_after(moment, *_NOTICED)), None)
    stepped = next((e["time"] for e in job.events_after(start or moment, "progress")), None)
    if start is None or stepped is None:
        outcome.problems.append("the run was not started again")
        return
    outcome.total = stepped - moment
    if noticed is not None and noticed < start:
        outcome.detection, outcome.recovery = noticed - moment, stepped - noticed
    if (outcome.detection or 0) > fault.limit:
        outcome.problems.append(f"noticed after {outcome.detection:.1f} s of {fault.limit:.0f} s")
    if outcome.total > max(fault.limit, fault.outage) + _RECOVERY_LIMIT:
        outcome.problems.append(f"the next new step came {outcome.total:.1f} s after the fault")


def _compare(job: Job, whole: Path, fault: Fault, outcome: Outcome) -> None:
    """Compare the end with that of the undisturbed run."""
    if not fault.fewer:
        outcome.equal = same_end(job.run, whole)
        if not outcome.equal:
            outcome.problems.append("the end is not that of the undisturbed run")
        return
    pairs = zip(losses(job.run), losses(whole), strict=True)
    outcome.difference = max(abs(a - b) for a, b in pairs)
    if outcome.difference > _FEWER or not job.folder.is_done:
        outcome.problems.append(f"a loss differs by {outcome.difference:.1e}")


def table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table of what was measured."""
    lines = [
        "| fault | n | noticed after | from there to the next new step | together | result |",
        "|---|---|---|---|---|---|",
    ]
    for name, fault in FAULTS.items():
        of_it = [outcome for outcome in outcomes if outcome.fault == name]
        if not of_it:
            continue
        failed = sum(1 for outcome in of_it if outcome.problems)
        lines.append(
            f"| {fault.what} | {len(of_it)} | {_spread([o.detection for o in of_it])} | "
            f"{_spread([o.recovery for o in of_it])} | {_spread([o.total for o in of_it])} | "
            f"{_result(fault, of_it, failed)} |"
        )
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    return f"{statistics.median(there):.1f} s, worst {max(there):.1f} s"


def _result(fault: Fault, outcomes: list[Outcome], failed: int) -> str:
    if failed:
        return f"**{failed} failed**"
    if fault.fewer:
        worst = max(outcome.difference or 0.0 for outcome in outcomes)
        return f"done on {outcomes[0].ranks} rank; losses within {worst:.0e}"
    return "bit-equal" if fault.limit else "bit-equal, no restart"


def versions() -> str:
    """Return what a figure depends on, in one line."""
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, deepspeed {deepspeed.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", action="append", choices=list(FAULTS), help="all if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file that gets one line for each run")
    parser.add_argument("--folder", type=Path, help="for runs and logs, kept; else a temporary one")
    options = parser.parse_args()
    print(versions(), flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.folder or Path(scratch))
        for repeat in range(options.repeats):
            for name in options.faults or FAULTS:
                outcome = bench.measure(name, repeat)
                outcomes.append(outcome)
                print(json.dumps(asdict(outcome)), flush=True)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
    print(table(outcomes))
    raise SystemExit(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    main()
