"""RUN/failure.txt: why the supervisors of a run gave up, for the person who has to look.

What to do comes first, then the history of the attempts, then the last words of each rank: its
heartbeat, its trace, the last lines of its log. What ranks have printed may be anything: it is
bounded, and nothing of it reaches a terminal but printable characters. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.supervise import history
from cluster.supervise.history import Attempt, Event, Fault, FaultKind
from model.documents import read_file
from model.errors import DataError
from trainer.run_folder import LOST_RANK, OWN_CODES, RunFolder

_MOST_ATTEMPTS = 20  # rows of the table; the latest
_MOST_RANKS = 16  # of which all is shown; those that tell most
_MOST_LINES = 15  # of a trace, and of a log
_LONGEST_LINE = 300
_TAIL = 32 << 10  # bytes that are read of a trace or a log
_LARGEST_WORD = 64 << 10  # bytes of a heartbeat
_SLACK = 5.0  # seconds by which clocks of hosts may differ
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?", re.DOTALL)

_ADVICE: dict[FaultKind, str] = {
    "death": (
        "A signal ended a rank. SIGKILL without a word is most often the kernel where memory runs "
        "out: look for `oom` in `dmesg` on its host, and lower batch.micro. SIGSEGV and SIGABRT "
        "come from a library or the hardware: their words are in the log below."
    ),
    "crash": "A rank ended by an error of the program: its words and its trace are below.",
    "hang": (
        "A rank was silent for longer than its section may take. Where all ranks were is in "
        "stacks/: look at the ranks that were somewhere else than most. If they were only slow, "
        "raise the limit of that section (--limit-...)."
    ),
    "lost node": (
        "A node was silent, or its supervisor was killed. Look whether its host is up, and whether "
        "the network between the hosts holds: `addp doctor`."
    ),
    "unfit node": "A node failed its health check: `addp doctor` on it says what to mend.",
    "storage": (
        "Storage failed: look for room and rights in the run folder, the data and the store of "
        "checkpoint.upload: `addp doctor`."
    ),
    "stopped": "Somebody stopped a rank again and again: look who sends signals to it.",
    "diverged": "Training does not recover: look at incidents/ and metrics.jsonl.",
    "refused": "The configuration or the checkpoints are refused: the reason is below.",
}


def failure_report(
    folder: RunFolder, events: Sequence[Event], *, reason: str, code: int, now: float
) -> str:
    """Return why a run was given up, and all that helps to mend it.

    events: the history of its supervisors. reason, code: of the verdict. now: seconds since 1970.
    What cannot be read of the run folder is left out.
    """
    attempts = history.attempts(events)
    parts = [
        f"{folder.path} was given up at {_when(now)}: {clean(reason)} (exit code {code})",
        _advice(folder, attempts),
        _table(attempts),
        _stacks(events),
    ]
    if attempts:
        parts.append(_ranks(folder, attempts[-1]))
    return "\n\n".join(part for part in parts if part) + "\n"


def clean(text: str, longest: int = 4000) -> str:
    """Return foreign text for one line: without control characters and colours, and bounded."""
    plain = "".join(c if c.isprintable() else " " for c in _ESCAPES.sub("", text[: 4 * longest]))
    plain = plain.strip()
    return plain if len(plain) <= longest else plain[: longest - 3] + "..."


# What to do.


def _advice(folder: RunFolder, attempts: Sequence[Attempt]) -> str:
    faults = [attempt.faults[0] for attempt in attempts[-_MOST_ATTEMPTS:] if attempt.faults]
    lines = ["What to do"]
    if suspect := _suspect(faults):
        lines.append(f"  - {suspect}")
    lines += [
        f"  - {_ADVICE[kind]}" for kind in dict.fromkeys(fault.kind for fault in faults[::-1])
    ]
    newest = max((a.reached for a in attempts if a.reached is not None), default=None)
    goes_on = (
        f"goes on from the checkpoint of step {newest}"
        if newest is not None
        else "begins at step 0, since no checkpoint was made"
    )
    lines.append(
        f"  - Once it is mended, remove {folder.failure} and start the run again with the same "
        f"command: it {goes_on}."
    )
    return "\n".join(lines)


def _suspect(faults: Sequence[Fault]) -> str | None:
    """Name the node that most of several faults come from."""
    nodes = [f"{fault.node} ({fault.host})" for fault in faults if fault.node and fault.host]
    if len(nodes) < 2:
        return None
    worst = max(dict.fromkeys(nodes), key=nodes.count)
    if nodes.count(worst) * 2 <= len(faults):
        return None
    return (
        f"{nodes.count(worst)} of the last {len(faults)} faults were on {clean(worst, 200)}: try "
        "to go on without it."
    )


# The history.


def _table(attempts: Sequence[Attempt]) -> str:
    """The attempts, one a line."""
    if not attempts:
        return "No attempt was made."
    head = ("attempt", "started", "ran", "ranks", "from step", "reached", "how it ended")
    rows = [head, *(_row(attempt) for attempt in attempts[-_MOST_ATTEMPTS:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = [
        "  " + "  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows
    ]
    left_out = len(attempts) - _MOST_ATTEMPTS
    title = f"Attempts (the latest of {len(attempts)})" if left_out > 0 else "Attempts"
    return "\n".join([title, *lines])


def _row(attempt: Attempt) -> tuple[str, ...]:
    start, end = attempt.start, attempt.end
    if end is None:
        ended = "its supervisors were killed"
    else:
        fault = attempt.faults[0] if attempt.faults else None
        ended = f"{fault.kind}: {fault.reason}" if fault else end.reason
    return (
        str(start.attempt),
        _when(start.time),
        _lasted(end.time - start.time) if end else "?",
        f"{start.ranks} on {len(start.nodes)} node{'s' if len(start.nodes) > 1 else ''}",
        str(start.checkpoint or 0),
        "-" if attempt.reached is None else str(attempt.reached),
        clean(ended, _LONGEST_LINE),
    )


def _stacks(events: Sequence[Event]) -> str:
    found = [event for event in events if isinstance(event, history.Stacks)]
    lines = [
        f"  attempt {event.attempt}: {clean(event.summary, 1000)} ({clean(event.file, 200)})"
        for event in found[-3:]
    ]
    return "\n".join(["Where the ranks hung", *lines]) if lines else ""


# The ranks.


class _Last(NamedTuple):
    """The last word of a rank. word: its heartbeat, None where it gave none in the attempt."""

    rank: int
    word: dict[str, Any] | None

    @property
    def weight(self) -> int:
        """How much it tells; the smallest tells most."""
        if self.word is None:
            return 2
        code = self.word.get("code")
        if code is None:
            return 1  # it was killed, or hung
        if str(self.word.get("reason")).startswith(LOST_RANK):
            return 4  # it ended only since another one did
        return 3 if code in (0, *OWN_CODES) else 0


def _ranks(folder: RunFolder, attempt: Attempt) -> str:
    since, count = attempt.start.time, attempt.start.ranks
    last = sorted(
        (_Last(rank, _word(folder.heartbeat(rank), since)) for rank in range(count)),
        key=lambda one: (one.weight, one.rank),
    )
    blocks = [_rank(folder, one, since) for one in last[:_MOST_RANKS]]
    title = f"Last words of the ranks in attempt {attempt.start.attempt}"
    if count > _MOST_RANKS:
        title += f" (of {_MOST_RANKS} that tell most; there were {count})"
    return "\n\n".join([title, *blocks])


def _rank(folder: RunFolder, last: _Last, since: float) -> str:
    word = last.word or {}
    host = word.get("host") if isinstance(word.get("host"), str) else None
    lines = [f"rank {last.rank}{_place(word)}: {_said(last.word)}"]
    trace = folder.trace(last.rank)
    if _is_of(trace, since):
        lines += _tail("its trace", trace)
    if (log := _log(folder, last.rank, host)) is not None:
        lines += _tail("its log", log)
    return "\n".join(lines)


def _word(file: Path, since: float) -> dict[str, Any] | None:
    """Read a heartbeat. None where there is none of this attempt."""
    try:
        word = json.loads(read_file(file, _LARGEST_WORD, DataError))
    except (OSError, DataError, ValueError, RecursionError):
        return None
    when = word.get("time") if isinstance(word, dict) else None
    if not isinstance(when, int | float) or isinstance(when, bool) or when < since - _SLACK:
        return None
    return word


def _place(word: dict[str, Any]) -> str:
    if not word:
        return ""
    return f" on {_value(word.get('host'))} (process {_value(word.get('pid'))})"


def _said(word: dict[str, Any] | None) -> str:
    if word is None:
        return "gave no sign of life"
    step, section = _value(word.get("step")), _value(word.get("section"))
    if word.get("code") is None:
        return f"no last word; it was in {section} at step {step} at {_when(word['time'])}"
    reason = clean(str(word.get("reason")), 1000)
    return f"ended with {_value(word['code'])} at step {step}: {reason}"


def _value(value: object) -> str:
    return clean(str(value), 100) if isinstance(value, str | int | float) else "?"


def _is_of(file: Path, since: float) -> bool:
    try:
        return file.stat().st_mtime >= since - _SLACK
    except OSError:
        return False


def _log(folder: RunFolder, rank: int, host: str | None) -> Path | None:
    """Find a rank's log: on the host that it named, else the one that was written last."""
    name = f"rank-{rank:05d}.log"
    if host and "/" not in host and host not in (".", ".."):
        named = folder.logs / host / name
        if named.is_file():
            return named
    found: list[tuple[float, Path]] = []
    try:
        for path in folder.logs.glob(f"*/{name}"):
            found.append((path.stat().st_mtime, path))
    except OSError:
        pass
    return max(found)[1] if found else None


def _tail(title: str, file: Path) -> list[str]:
    """Return the last lines of a file under a title; none where it cannot be read."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                return []
            opened.seek(max(0, status.st_size - _TAIL))
            content = opened.read(_TAIL).decode(errors="replace")
    except (OSError, ValueError):
        return []
    lines = [line for raw in re.split(r"[\r\n]+", content) if (line := clean(raw, _LONGEST_LINE))]
    shown = [f"    {line}" for line in lines[-_MOST_LINES:]]
    return [f"  {title}, {file}:", *shown] if shown else []


# Times.


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "an absurd time"


def _lasted(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
