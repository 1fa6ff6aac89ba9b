"""Variables that a run's ranks need alike. A launcher brings few of them to other hosts, and what
is missing there shows late and oddly: a network that is not found, a store that refuses. Names and
hashes leave a rank, never values. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_NAMES = re.compile(  # storage, proxies, networks between GPUs and between CPUs
    r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|PROFILE|(DEFAULT_)?REGION|ENDPOINT_URL(_S3)?|CA_BUNDLE|CONFIG_FILE"
    r"|SHARED_CREDENTIALS_FILE|ROLE_ARN|WEB_IDENTITY_TOKEN_FILE|MAX_ATTEMPTS|RETRY_MODE)"
    r"|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy|((TORCH_)?NCCL|GLOO|TP|UCX|FI)_[A-Z0-9_]+"
)
_PROGRAM = re.compile(  # how the program itself runs
    r"PYTHON[A-Z]*|LD_LIBRARY_PATH|CUDA_DEVICE_ORDER|DS_ACCELERATOR|(OMP|MKL|TORCH|PYTORCH|ADDP)_[A-Z0-9_]+"
)
_CALL = "ADDP_PROGRAM"  # what the user typed
_OWN = re.compile(r".*(IFNAME|HCA|FILE|DEVICES?|HOSTID)")  # may well differ between hosts


class Settings(NamedTuple):
    """The environment of one rank. names: the variables that are set, each with a hash of its value
    where that must be the same everywhere."""

    host: str
    names: dict[str, str]


def needed_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the variables that a run needs on all hosts as it has them here."""
    wanted = (name for name in environment if _NAMES.fullmatch(name) or _PROGRAM.fullmatch(name))
    return sorted(name for name in wanted if name != _CALL)


def settings(host: str, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this process. host: what its machine is called."""
    names = {}
    for name, value in environment.items():
        if _NAMES.fullmatch(name):
            compared = "NCCL_" in name and not _OWN.fullmatch(name)
            names[name] = (
                hashlib.sha256(value.encode(errors="replace")).hexdigest()[:8] if compared else ""
            )
    return Settings(host, names)


def differences(ranks: Sequence[Settings]) -> list[str]:
    """Return a line for each group of ranks that lack the same variables, or have other values than
    the first rank that has them. ranks: the settings of all ranks, in their order."""
    missing: dict[tuple[int, ...], list[str]] = {}
    other: dict[tuple[int, ...], list[str]] = {}
    for name in sorted({name for rank in ranks for name in rank.names}):
        values = [rank.names.get(name) for rank in ranks]
        known = [value for value in values if value is not None]
        for lines, wrong in ((missing, (None,)), (other, set(known) - {known[0]})):
            if which := tuple(rank for rank, value in enumerate(values) if value in wrong):
                lines.setdefault(which, []).append(name)
    return [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} set {words} "
        f"{_named(which, ranks)}"
        for lines, words in (
            (missing, "on other ranks, but not on"),
            (other, "to another value on"),
        )
        for which, names in lines.items()
    ]


def _named(which: Sequence[int], ranks: Sequence[Settings]) -> str:
    """Return what ranks are called, with their hosts: 0, 1, 2, 5 are `ranks 0-2, 5 (a, b)`."""
    runs: list[list[int]] = []
    for rank in which:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    hosts = list(dict.fromkeys(ranks[rank].host for rank in which))
    shown = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
    listed = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
    return f"rank{'s' if len(which) > 1 else ''} {listed} ({shown})"
