"""The text of a batch script for Slurm. A pure function; what reaches it has been checked.

    sbatch --> batch shell on the first node
                 |  srun: one supervisor on each node, and each may end without the others
                 |
    time limit --+--> TERM --> scancel --signal=TERM JOB.0 --> every supervisor --> ranks save, 75
                 |
                 +--> python -m cluster.launch.slurm.requeue: queue the job again, or let it end

--no-kill keeps the job where a node is lost: the supervisors go on with fewer, or a spare one.

Seen with Slurm 22.05: srun does not pass SIGTERM on to its tasks. It kills them at once, so that
nothing would be saved. Slurm itself has to bring the signal to them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import ConfigError

_PLAIN = re.compile(r"[\w@%+=:,./&|*()\[\]~-]*", re.ASCII)  # needs no quotes in a #SBATCH line

_BODY = """\
# One supervisor on each node starts the ranks there and sees them through. This shell brings a stop
# to them, and has the job queued again where the run has to go on.

cd -- {folder} || exit 78
supervisor=({supervisor})
ending=({ending})
started=$(date +%s)

# Slurm signals this shell ahead of the time limit. If srun were signalled, it would kill the
# supervisors: so Slurm is asked to signal them, again and again until they are there.
bring_stop() {{
  signalled=yes
  until scancel --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null; do
    kill -0 "$srun" 2> /dev/null || return
    sleep 1
  done
}}
trap bring_stop TERM

# A supervisor that ends takes no other with it, not even later (--wait).
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 --no-kill {srun} "${{supervisor[@]}}" &
srun=$!
while signalled=; wait "$srun"; code=$?; [ -n "$signalled" ]; do :; done

trap '' TERM
exec "${{ending[@]}}" --code "$code" --since "$started"
"""


@dataclass(frozen=True)
class BatchScript:
    """What a script says.

    options: for the #SBATCH lines, as (name, value); a value of None: a flag.
    srun: more options for srun.
    folder: the directory in which everything runs.
    supervisor: the command that runs once on each node.
    ending: the command that decides at the end; it gets --code and --since.
    """

    options: Sequence[tuple[str, str | None]]
    srun: Sequence[str]
    folder: str
    supervisor: Sequence[str]
    ending: Sequence[str]

    def text(self) -> str:
        """Return the script."""
        lines = [_option(name, value) for name, value in self.options]
        body = _BODY.format(
            folder=shlex.quote(self.folder),
            supervisor=shlex.join(self.supervisor),
            ending=shlex.join(self.ending),
            srun=shlex.join(self.srun),
        )
        return "\n".join(["#!/bin/bash", *lines, "", body])


def _option(name: str, value: str | None) -> str:
    """Return a #SBATCH line. sbatch splits it into words by rules of its own, much like a shell's,
    but expands nothing."""
    if value is None:
        return f"#SBATCH --{name}"
    return f"#SBATCH --{name}={value}" if _PLAIN.fullmatch(value) else f'#SBATCH --{name}="{value}"'


def log_pattern(path: str) -> str:
    """Return the name of a log for --output, in which %j becomes the number of the job.

    path: without that number; only what stands behind its last slash may be replaced by Slurm.
    Raises ConfigError for characters that a #SBATCH line cannot hold.
    """
    if bad := sorted(set(re.findall(r"[\"'\\#\x00-\x1f\x7f]", path))):
        raise ConfigError(
            f"the run folder {path!r} has {', '.join(map(repr, bad))} in its name, which a "
            "batch script of Slurm cannot hold; take another folder"
        )
    return path.replace("%", "%%") + "/slurm-%j.log"
