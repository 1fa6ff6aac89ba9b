"""How the benchmarks' metrics are computed."""
