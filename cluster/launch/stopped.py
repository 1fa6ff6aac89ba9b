"""Who stopped a run. A scheduler starts it again, unless a user wanted its end."""

from __future__ import annotations

from cluster.supervise import history
from model.errors import DataError
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_FILE = "file"  # RUN/STOP, which `addp stop` writes


def verdict_since(folder: RunFolder, since: float) -> history.Verdict | None:
    """Return the supervisors' last verdict, if it came since then and can be read.

    since: seconds since 1970.
    """
    try:
        verdict = history.last(history.read(folder.supervision), history.Verdict)
    except DataError:
        return None
    return verdict if verdict is not None and verdict.time >= since else None


def user_stopped(folder: RunFolder, since: float) -> bool:
    """Return whether the run has stopped since then because a user asked for it by RUN/STOP.

    The supervisors say so, or the ranks, where no supervisor lived to say it. since: seconds since
    1970.
    """
    if (verdict := verdict_since(folder, since)) is not None:
        return verdict.by_user
    ended = folder.read_exit()
    return (
        ended is not None
        and ended["code"] == EXIT_PREEMPTED
        and ended.get("stop") == _FILE
        and isinstance(ended.get("time"), int | float)
        and ended["time"] >= since
    )
