"""The end of a batch job of Slurm: whether the job is queued again.

    python -m cluster.launch.slurm.requeue --run RUN --code CODE --since SECONDS

runs in the batch script when the supervisors have ended. It queues the job again where the run has
to go on and nobody wanted its end, and exits with the code of the run.

The supervisors restart ranks by themselves, and count failures in the run folder. Only what they
cannot do is left: to get other nodes, and time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.launch.stopped import user_stopped
from cluster.supervise import history
from cluster.supervise.history import EXIT_GAVE_UP, EXIT_INCOMPLETE
from model.errors import DataError
from trainer.run_folder import (
    EXIT_CONFIG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_NO_VALID_CHECKPOINT,
    EXIT_PREEMPTED,
    RunFolder,
)

_FINAL = {
    EXIT_DONE: "the run is complete",
    EXIT_DIVERGED: "the run has diverged",
    EXIT_CONFIG: "the run cannot start like this",
    EXIT_NO_VALID_CHECKPOINT: "the run has no checkpoint that it could go on from",
    EXIT_GAVE_UP: "the supervisors gave up",
}
# Jobs in a row whose supervisors were not complete once. A run that is started counts its failures
# itself.
_MOST_INCOMPLETE = 5


class JobState(NamedTuple):
    """What Slurm says of the job. state: RUNNING while nobody ends it. reason: why it ends."""

    state: str
    reason: str

    @property
    def goes_on(self) -> bool:
        """Whether the job may be queued again: it was not cancelled, and not queued again by Slurm
        itself."""
        return self.state == "RUNNING" or self.reason == "TimeLimit"


class Decision(NamedTuple):
    """Whether the job is queued again, the exit code of this one, and why."""

    again: bool
    code: int
    reason: str


def decide(
    *, code: int, job: JobState, stopped: bool, events: Sequence[history.Event], since: float
) -> Decision:
    """Decide on the end of a job.

    code: of srun, the highest of all supervisors.
    stopped: whether a user has stopped the run.
    events: the history of the run. since: when this job started, in seconds since 1970.
    """
    fresh = [event for event in events if event.time >= since]
    verdict = history.last(fresh, history.Verdict)
    if verdict is not None:  # srun also counts nodes that had lost touch before the end
        code = verdict.code
    if not job.goes_on:
        return Decision(False, code, f"Slurm has ended the job ({job.state})")
    if code in _FINAL:
        return Decision(False, code, _FINAL[code])
    if code == EXIT_PREEMPTED and stopped:
        return Decision(False, code, "a user has stopped the run")
    if code == EXIT_PREEMPTED:
        return Decision(True, code, "the run has saved and stopped, and goes on later")
    if not fresh:  # the batch script lives on the first node, where the first of them had to start
        return Decision(False, code, "the supervisors did not start; the reason stands above")
    if _incomplete(events) >= _MOST_INCOMPLETE:
        reason = f"{_MOST_INCOMPLETE} jobs in a row did not get their nodes together"
        return Decision(False, EXIT_INCOMPLETE, reason)
    return Decision(True, code, "the supervisors have lost each other, and start again")


def _incomplete(events: Sequence[history.Event]) -> int:
    """Return how many verdicts in a row said that nodes are missing, with no start between them."""
    count = 0
    for event in events:
        if isinstance(event, history.Start):
            count = 0
        elif isinstance(event, history.Verdict):
            count = count + 1 if event.verdict == "incomplete" else 0
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide, queue the job again where that is the decision, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--since", type=float, required=True)
    given = parser.parse_args(arguments)
    job = os.environ["SLURM_JOB_ID"]
    folder = RunFolder(given.run)
    events = _history(folder)
    decision = decide(
        code=given.code,
        job=job_state(job),
        stopped=user_stopped(folder, given.since),
        events=events,
        since=given.since,
    )
    if decision.again and decision.code != EXIT_PREEMPTED:
        _record_end(folder, events, given.since, decision)
    after = "the job is queued again" if decision.again else "the job ends"
    print(f"{decision.reason} (exit code {decision.code}); {after}", flush=True)
    if decision.again:
        done = subprocess.run(["scontrol", "requeue", job], check=False)  # ends this process, too
        if done.returncode:
            print(f"`scontrol requeue {job}` failed; submit the script again", flush=True)
    return decision.code


def _record_end(
    folder: RunFolder, events: Sequence[history.Event], since: float, decision: Decision
) -> None:
    """Give a history that ended without a verdict its verdict, so that such ends are counted."""
    if any(isinstance(event, history.Verdict) and event.time >= since for event in events):
        return
    verdict = history.Verdict(
        time=time.time(),
        attempt=history.attempts_so_far(events),
        verdict="incomplete",
        code=EXIT_INCOMPLETE,
        reason=f"the supervisors ended without a word (exit code {decision.code})",
    )
    history.mend(folder.supervision)
    history.append(folder.supervision, verdict)


def job_state(job: str) -> JobState:
    """Return the state of a job. Where Slurm gives no answer, nobody is known to have ended it."""
    found = _shown(job)
    return JobState(found.get("JobState", "RUNNING"), found.get("Reason", "None"))


def batch_host(job: str) -> str | None:
    """Return the node on which the script of a job runs; None where Slurm does not say."""
    return _shown(job).get("BatchHost")


def _shown(job: str) -> dict[str, str]:
    try:
        said = subprocess.run(
            ["scontrol", "show", "job", "-o", job],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    # The first of each is Slurm's own: a path or a comment of the user that reads like one comes
    # later.
    found = re.findall(r"(?<!\S)(JobState|Reason|BatchHost)=(\S+)", said)
    return dict(reversed(found))


def _history(folder: RunFolder) -> list[history.Event]:
    try:
        return history.read(folder.supervision)
    except DataError as error:
        print(error, flush=True)
        return []


if __name__ == "__main__":
    sys.exit(main())
