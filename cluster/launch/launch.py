"""Start ranks by a backend, see them through, and explain how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.launch.backend import HERE, LaunchRequest
from cluster.launch.backends import BACKENDS
from cluster.launch.files import written
from cluster.launch.hosts import Hosts
from cluster.launch.postmortem import explain, last_words
from cluster.launch.process_group import Ended, run_group
from model.errors import ADDPError, ConfigError
from trainer.run_folder import OWN_CODES, RunFolder


class RunFailed(ADDPError):
    """A command that was started did not do its work."""


def start(
    request: LaunchRequest, *, backend: str = "deepspeed", stdout: int | None = None
) -> Ended:
    """Start the processes of a request, wait for their end, and leave no process behind.

    backend: a name in BACKENDS.
    stdout: a file descriptor in place of ours.

    Raises ADDPError where the backend cannot start them all from here.
    """
    chosen = BACKENDS[backend]
    chosen.check(request)
    plan = chosen.plan(request)
    if [command.where for command in plan.commands] != [HERE] or not plan.waits:
        raise ConfigError(f"the backend {backend} does not start and wait for all from here")
    with written(plan.files):
        return run_group(plan.commands[0], stdout)


def train(run: Path, arguments: Sequence[str], hosts: Hosts, *, backend: str = "deepspeed") -> bool:
    """Start `trainer.pretrain` and wait for its end.

    run: the run folder, which the arguments name as well. Only what this attempt writes there
    counts: a launcher's exit code alone proves nothing. DeepSpeed's may exit with 0 although its
    ranks are gone, or with 1 although they saved.

    Returns whether a signal came too late to stop the run. The run is done then, and whatever was
    to follow should not start.

    Raises RunFailed, with the run's own exit code if it has one, unless this attempt finished the
    run; and what `start` raises.
    """
    folder = RunFolder(run)
    exit_before, done_before, words = folder.read_exit(), folder.read_done(), last_words(folder)
    code, signalled = start(LaunchRequest("trainer.pretrain", arguments, hosts), backend=backend)
    last_exit, done = folder.read_exit(), folder.read_done()
    own = last_exit["code"] if last_exit is not None and last_exit != exit_before else None
    finished = done is not None and done != done_before
    if own == 0 or (own is None and code == 0 and finished):
        return signalled
    if last_exit is not None and own in OWN_CODES:
        reason = str(last_exit["reason"])
    else:
        reason = explain(folder, words, code)
    error = RunFailed(f"training in {run} ended: {reason}")
    stated = [c for c in (own, code) if c is not None and c in OWN_CODES]
    error.exit_code = stated[0] if stated else RunFailed.exit_code
    raise error
