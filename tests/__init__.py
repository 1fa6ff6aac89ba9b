"""Tests; `tests.s3_server` also serves the benchmarks."""
