"""What a checkpoint is worth: benchmarks and their metrics, generated images, the report."""
