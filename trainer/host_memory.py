"""Memory of a process that computes on the CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free, for the next ones. It would give large blocks back to the
    system each time, and decoding images on a CPU would spend a fifth of its time on fresh pages.
    Without glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
