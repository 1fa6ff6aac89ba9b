"""The parts of `model.sampler` that options change."""
