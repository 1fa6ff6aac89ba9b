"""What checkpoints are measured by: one file for each kind of benchmark, and the registry."""
