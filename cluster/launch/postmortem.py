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
    """Return the newest heartbeat of each rank, by its file."""
    words = {}
    for path in sorted(folder.heartbeats.glob("rank-*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            words[path] = record
    return words


def explain(folder: RunFolder, before: dict[Path, dict[str, Any]], code: int) -> str:
    """Return why an attempt ended, in one sentence, and whether to run it again.

    before: `last_words` at the start of the attempt; ranks that still say the same did not start.
    code: the launcher's exit code.

    The ranks are asked in this order: one that crashed and said so; those that went silent; one
    that ended with an exit code of ours. Ranks that ended only because another one went away
    explain nothing.
    """
    started = {
        path: words for path, words in last_words(folder).items() if before.get(path) != words
    }
    again = _advice(code)
    for path, words in started.items():
        if words.get("code") is not None and _is_crash(words):
            return (
                f"{_rank(path)} on {words.get('host')} crashed at step {words.get('step')}: "
                f"{words.get('reason')}{again}"
            )
    silent = {path: words for path, words in started.items() if "code" not in words}
    if silent:
        who = ", ".join(
            f"{_rank(path)} (process {words.get('pid')} on {words.get('host')})"
            for path, words in silent.items()
        )
        step = max(int(words.get("step", 0)) for words in silent.values())
        return f"{who} died at step {step}, {_signal(code)}{again}"
    for words in started.values():
        if words.get("code") in OWN_CODES:
            return str(words.get("reason"))
    if code in (EXIT_CONFIG, EXIT_STORAGE):
        return f"it did not start; the reason stands above{again}"
    return f"it died (exit code {code}); the reason stands above{again}"


def _advice(code: int) -> str:
    if code in _NOT_AGAIN:
        return ""
    return f". Run it again{' once that is mended' if code == EXIT_STORAGE else ''} to go on"


def _is_crash(words: dict[str, Any]) -> bool:
    lost = str(words.get("reason")).startswith(LOST_RANK)
    return words["code"] not in (0, *OWN_CODES) and not lost


def _rank(path: Path) -> str:
    return f"rank {int(path.stem.removeprefix('rank-'))}"


def _signal(code: int) -> str:
    """Name the signal that ended a rank.

    A launcher exits with a rank's own code, of which a shell sees eight bits: -9 is 247.
    """
    number = -code if code < 0 else 256 - code
    if code in (0, 255) or number not in set(signal.Signals):
        return f"without a word (exit code {code})"
    name = signal.Signals(number).name
    if name == "SIGKILL":
        return f"ended by {name}; the kernel does so where memory runs out, and says it in `dmesg`"
    return f"ended by {name}"
