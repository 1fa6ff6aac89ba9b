"""Why a run ended, in one sentence, from what its ranks left behind and the launcher's exit
code."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from trainer.run_folder import (
    EXIT_CONFIG,
    EXIT_DIVERGED,
    EXIT_NO_VALID_CHECKPOINT,
    EXIT_STORAGE,
    LOST_RANK,
    OWN_CODES,
    RunFolder,
)

_NOT_AGAIN = (EXIT_CONFIG, EXIT_DIVERGED, EXIT_NO_VALID_CHECKPOINT)


def last_words(folder: RunFolder) -> dict[Path, dict[str, Any]]:
    """The newest heartbeat of each rank."""
    found = {}
    for path in sorted(folder.heartbeats.glob("rank-*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            found[path] = record
    return found


def explain(folder: RunFolder, before: dict[Path, dict[str, Any]], code: int) -> str:
    """before: `last_words` at the start, which tells this start's ranks from those of an earlier
    one."""
    started = {
        path: words for path, words in last_words(folder).items() if before.get(path) != words
    }
    again = (
        ""
        if code in _NOT_AGAIN
        else f". Run it again{' once that is mended' if code == EXIT_STORAGE else ''} to go on"
    )
    crashed = {p: w for p, w in started.items() if w.get("code") is not None and _is_crash(w)}
    for path, words in crashed.items():
        return (
            f"{_rank(path)} on {words.get('host')} crashed at step {words.get('step')}: "
            f"{words.get('reason')}{again}"
        )
    silent = {p: w for p, w in started.items() if "code" not in w}
    if silent:
        how = _signal(code)
        who = ", ".join(
            f"{_rank(path)} (process {w.get('pid')} on {w.get('host')})"
            for path, w in silent.items()
        )
        step = max(int(w.get("step", 0)) for w in silent.values())
        return f"{who} died at step {step}, {how}{again}"
    for words in started.values():
        if words.get("code") in OWN_CODES:
            return str(words.get("reason"))
    what = (
        "it did not start" if code in (EXIT_CONFIG, EXIT_STORAGE) else f"it died (exit code {code})"
    )
    return f"{what}; the reason stands above{again}"


def _is_crash(words: dict[str, Any]) -> bool:
    return words["code"] not in (0, *OWN_CODES) and not str(words.get("reason")).startswith(
        LOST_RANK
    )


def _rank(path: Path) -> str:
    return f"rank {int(path.stem.removeprefix('rank-'))}"


def _signal(code: int) -> str:
    """A launcher exits with a rank's own code, of which a shell sees eight bits: -9 is 247."""
    number = -code if code < 0 else 256 - code
    if code in (0, 255) or number not in set(signal.Signals):
        return f"without a word (exit code {code})"
    name = signal.Signals(number).name
    memory = (
        "; the kernel does so where memory runs out, and says it in `dmesg`"
        if name == "SIGKILL"
        else ""
    )
    return f"ended by {name}{memory}"
