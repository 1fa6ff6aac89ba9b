"""What a checkpoint is worth: samples and their quality, recognition, held-out figures, the
report."""
