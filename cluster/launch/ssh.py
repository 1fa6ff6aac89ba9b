"""What is asked of other hosts over ssh, with the options that pdsh gives it as well."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence

_MOST_AT_ONCE = 32  # hosts that are asked at the same time
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 15
# pdsh's own name for what it gives to ssh.
PDSH_OPTIONS = "PDSH_SSH_ARGS_APPEND"
# Without a sign of life, ssh would wait for a host that is gone until TCP gives up, in a quarter of
# an hour. A connection that asks for a password would wait for ever.
_ALIVE = "-o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=2"


def pdsh_environment() -> dict[str, str]:
    """Return the variables by which pdsh's connections notice a host that is gone."""
    given = os.environ.get(PDSH_OPTIONS, "")
    # ssh takes the first of two values: a user's own goes before ours.
    return {PDSH_OPTIONS: f"{given} {_ALIVE} -o ConnectTimeout={_CONNECT_SECONDS}".strip()}


def unreachable(hosts: Sequence[str]) -> dict[str, str]:
    """Return the hosts on which ssh starts nothing, each with the reason. All are asked at once."""
    from concurrent.futures import ThreadPoolExecutor  # no help waits for it

    with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        answers = list(pool.map(_reach, hosts))
    return {host: answer for host, answer in zip(hosts, answers, strict=True) if answer}


def _reach(host: str) -> str:
    """Return what keeps us from starting something on the host; empty where nothing does."""
    options = shlex.split(os.environ.get(PDSH_OPTIONS, ""))
    options += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    try:
        done = subprocess.run(
            ["ssh", *options, host, "true"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return "ssh is not installed here"
    except subprocess.TimeoutExpired:
        return f"no answer within {_ANSWER_SECONDS} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
