"""The largest values of keys and options. They are far beyond what can be meant, and keep
arithmetic, memory and loops within bounds."""

from __future__ import annotations

YEAR = 366 * 86_400  # the longest wait, in seconds; Python cannot wait for some centuries
MOST_STEPS = 10**9
LARGEST_BATCH = 1 << 24
MOST_RANKS = 1 << 20
