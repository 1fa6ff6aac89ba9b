"""Who stopped a run. A scheduler starts it again, unless a user wanted its end."""

from __future__ import annotations

from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_FILE = "file"  # RUN/STOP, which `addp stop` writes


def user_stopped(folder: RunFolder, since: float) -> bool:
    """Return whether the run has stopped since then because a user asked for it by RUN/STOP.

    since: seconds since 1970.
    """
    ended = folder.read_exit()
    return (
        ended is not None
        and ended["code"] == EXIT_PREEMPTED
        and ended.get("stop") == _FILE
        and isinstance(ended.get("time"), int | float)
        and ended["time"] >= since
    )
