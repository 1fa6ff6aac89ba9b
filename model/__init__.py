"""The ADDP model: networks, mask law, training step and sampler. Imports nothing else of this
project."""
