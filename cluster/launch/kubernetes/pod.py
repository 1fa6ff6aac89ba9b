"""The first process of a pod: it starts the supervisor, and tells Kubernetes how that ended.

    python -m cluster.launch.kubernetes.pod --run RUN -- COMMAND

A Job of Kubernetes knows of a pod's end only its exit code, and the supervisor's 75 says that the
run has saved and stopped: for a node that is drained as well as for a user who wants it to end. The
first is to be started again, and the second is not; so the second becomes a code of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cluster.launch.foreground import run_given
from cluster.launch.stopped import user_stopped
from trainer.run_folder import EXIT_PREEMPTED

EXIT_USER_STOPPED = 82


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, and return the exit code of the pod."""
    folder, started, code = run_given(__doc__, arguments)
    if code == EXIT_PREEMPTED and user_stopped(folder, started):
        print("a user has stopped the run", flush=True)
        return EXIT_USER_STOPPED
    return code


if __name__ == "__main__":
    sys.exit(main())
