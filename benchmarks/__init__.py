"""Benchmarks: each prints JSON lines with its versions; docs/benchmarks.md has the figures and the
commands."""
