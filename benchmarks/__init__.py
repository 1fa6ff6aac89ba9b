"""Benchmarks. Each prints its results and the versions that they were measured with;
docs/benchmarks.md has the results, and the commands that gave them."""
